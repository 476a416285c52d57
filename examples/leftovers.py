"""What a run of Ringfence could leave on this machine: looked up before and after, and compared."""

import os
import tempfile
import time
from pathlib import Path

_MARK = "RINGFENCE_EXAMPLE_RUN"


def mark() -> dict[str, str]:
    """A variable that every process of this run inherits and that tells them from other users' of this
    machine.
    """
    return {_MARK: f"{os.getpid()}"}


def snapshot() -> set[str]:
    """Mounts, control groups and files of Ringfence's that are there now."""
    found = {
        f"mount {line}" for line in Path("/proc/self/mounts").read_text().splitlines() if "ringfence" in line
    }
    for root in (
        "/sys/fs/cgroup",
        "/run",
        os.environ.get("XDG_RUNTIME_DIR") or "/run",
        tempfile.gettempdir(),
    ):
        for pattern in ("ringfence*", "*/ringfence*"):
            found |= {f"file {path}" for path in Path(root).glob(pattern)}
    return found


def processes() -> set[str]:
    """Processes of this run, other than this one."""
    wanted = f"{_MARK}={os.getpid()}".encode()
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.add(f"process {entry.name} {(entry / 'comm').read_text().strip()}")
        except OSError:
            continue  # it ended meanwhile, or belongs to somebody else
    return found


def remaining(before: set[str], patience_s: float = 10.0) -> set[str]:
    """What is there now and was not `before`; waits up to `patience_s` seconds for the last processes to
    end.
    """
    deadline = time.monotonic() + patience_s
    while (left := processes() | (snapshot() - before)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left
