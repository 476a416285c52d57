"""What a run of Ringfence has on this machine while it lives, and what of that is still there afterwards.

Looked up by process tree and by the sandbox's id, so that other users of Ringfence on the same machine do
not count.
"""

import os
import tempfile
import time
from pathlib import Path


class Belongings:
    """Processes, directories, control groups and mounts of this program's sandbox; made while it lives."""

    def __init__(self, sandbox_id: str) -> None:
        self.processes = _descendants(os.getpid())
        self.paths = _paths(sandbox_id, self.processes)
        self.mounts = {line for line in _mounts() if any(str(path) in line for path in self.paths)}

    def remaining(self, patience_s: float = 10.0) -> list[str]:
        """What is still there; waits up to `patience_s` seconds for the last process to end."""
        deadline = time.monotonic() + patience_s
        while (left := self._left()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left

    def _left(self) -> list[str]:
        left = [f"process {pid}" for pid, start in self.processes.items() if _start_time(pid) == start]
        left += [f"file {path}" for path in sorted(self.paths) if path.exists()]
        return left + [f"mount {line}" for line in sorted(self.mounts & _mounts())]


def _paths(sandbox_id: str, pids: dict[int, str]) -> set[Path]:
    """Directories named after the sandbox or its processes, and the engine's own ones around them."""
    found: set[Path] = set()
    for base in {"/run", os.environ.get("XDG_RUNTIME_DIR") or "/run", tempfile.gettempdir()}:
        found |= set(Path(base).glob(f"ringfence-*/{sandbox_id}"))
        found |= {p for p in Path(base).glob("ringfence-*/*-*") if p.name.partition("-")[0] in map(str, pids)}
    found |= set(Path("/sys/fs/cgroup").rglob(sandbox_id))
    return found | {path.parent for path in found if path.name == sandbox_id}


def _descendants(root: int) -> dict[int, str]:
    """The processes below `root` and their start times, in the kernel's clock ticks."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (fields := _stat(int(entry.name))):
            parents[int(entry.name)] = int(fields[1])
    found, new = set[int](), {root}
    while new:
        new = {pid for pid, parent in parents.items() if parent in new}
        found |= new
    return {pid: start for pid in found if (start := _start_time(pid))}


def _stat(pid: int) -> list[str]:
    """The fields of ``/proc/<pid>/stat`` from the state on; empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _start_time(pid: int) -> str | None:
    fields = _stat(pid)
    return fields[19] if fields else None


def _mounts() -> set[str]:
    return set(Path("/proc/self/mounts").read_text().splitlines())
