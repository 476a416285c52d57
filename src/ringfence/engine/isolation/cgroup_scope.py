"""A place in the cgroup v2 tree that may be divided: our own group, or one that systemd gives us.

A group can hand controllers to children only while no process is in it. So the processes of the engine move
into a leaf, which is done only where nobody else's processes are: a service or scope of our own.
"""

import contextlib
import os
import subprocess

from . import cgroup_base as base

_LEAF = "ringfence-engine"
_MANAGER = (
    "org.freedesktop.systemd1",
    "/org/freedesktop/systemd1",
    "org.freedesktop.systemd1.Manager",
    "StartTransientUnit",
    "ssa(sv)a(sa(sv))",
)
_TIMEOUT = 5.0


def make_room(directory: str) -> str | None:
    """What to divide if the caller's own group `directory` is ours; its processes are in a leaf then."""
    if os.path.basename(directory) == _LEAF:  # an earlier engine of the same service has moved us already
        parent = os.path.dirname(directory)
        return parent if not _pids(parent) and os.access(parent, os.W_OK) else None
    if not os.access(f"{directory}/cgroup.procs", os.W_OK) or not _is_ours(directory):
        return None
    leaf = f"{directory}/{_LEAF}"
    try:
        os.makedirs(leaf, mode=0o755, exist_ok=True)
        for _ in range(10):  # a process that forks meanwhile shows up in the next round
            pids = _pids(directory)
            if not pids:
                return directory
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    base.write(f"{leaf}/cgroup.procs", str(pid))
    except OSError:
        return None
    return None


def _pids(directory: str) -> list[int]:
    return [int(pid) for pid in base.read(f"{directory}/cgroup.procs").split()]


def _is_ours(directory: str) -> bool:
    for attribute in ("user.delegate", "trusted.delegate"):  # systemd marks what it has given away
        with contextlib.suppress(OSError):
            if os.getxattr(directory, attribute) == b"1":
                return True
    return all(_is_family(pid) for pid in _pids(directory))


def _is_family(pid: int) -> bool:
    """Whether `pid` is this process, the one that started it, or a descendant of either."""
    family = {os.getpid(), os.getppid()} - {0, 1}
    while pid > 1:
        if pid in family:
            return True
        pid = _parent(pid)
    return False


def _parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except OSError:
        return 0


def scope_command(name: str, pid: int, user: bool, busctl: str = "busctl") -> list[str]:
    """The command that asks systemd to put process `pid` into a new scope `name`, delegated to us."""
    properties = [
        "PIDs",
        "au",
        "1",
        str(pid),
        "Delegate",
        "b",
        "true",
        "CollectMode",
        "s",
        "inactive-or-failed",
    ]
    manager = ["--user"] if user else ["--system"]
    return [busctl, *manager, "--quiet", "call", *_MANAGER, name, "fail", "3", *properties, "0"]


def enter_scope(busctl: str = "busctl") -> bool:
    """Have systemd move this process into a scope of its own; False when there is no systemd that does.

    It does what ``systemd-run --scope -p Delegate=yes`` does, for a process that runs already.
    """
    uid = os.geteuid()
    if not os.path.isdir("/run/systemd/system") and busctl == "busctl":
        return False
    name = f"ringfence-{os.getpid()}.scope"
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "XDG_RUNTIME_DIR": os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{uid}"),
    }
    try:
        subprocess.run(
            scope_command(name, os.getpid(), uid != 0, busctl),
            check=True,
            capture_output=True,
            env=environment,
            timeout=_TIMEOUT,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return base.wait_until(lambda: name in base.read("/proc/self/cgroup"), _TIMEOUT)
