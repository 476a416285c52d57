"""How many processes and threads there may be inside gVisor: a cgroup of gVisor's own kernel counts them.

It refuses fork(2) with EAGAIN, as the host's would. The host's cgroup is the backstop: it counts what stands
for them outside, of which gVisor has several for each, and where a thread of gVisor itself is refused, gVisor
ends, and the sandbox with it.

https://docs.kernel.org/admin-guide/cgroup-v1/pids.html
"""

import contextlib
import ctypes
import os
from pathlib import Path

_MOUNT = "/tmp/tasks"  # noqa: S108 - in the container's root, which only our own code has seen
_GROUP = f"{_MOUNT}/sandbox"
_FLAGS = 0x2 | 0x4 | 0x8  # nosuid, nodev, noexec


class TaskLimit:
    """Counts this process and all that it starts. Made while there is the power to mount; `set` when the
    number is known. Where this gVisor cannot count, the host's cgroup alone does.
    """

    def __init__(self) -> None:
        self.times_full = 0
        """How often `look` has seen as many as may be."""
        self._limit = 0
        self._most = -1
        with contextlib.suppress(OSError):
            Path(_MOUNT).mkdir()
            _mount_counter(_MOUNT)
            Path(_GROUP).mkdir()
            with open(f"{_GROUP}/cgroup.procs", "w") as procs:
                procs.write(str(os.getpid()))
            # A file, never a directory: one leads out of the root that this process is about to enter.
            self._most = os.open(f"{_GROUP}/pids.max", os.O_WRONLY | os.O_CLOEXEC)

    def set(self, limit: int) -> None:
        """Put the limit in force, for good: nothing is left that could change it."""
        if self._most < 0:
            return
        os.write(self._most, str(limit).encode())
        os.close(self._most)
        self._most, self._limit = -1, limit

    def look(self, slack: int = 0) -> None:
        """Count a time that it was full, with at most `slack` left."""
        if self._limit and _running() >= self._limit - slack:
            self.times_full += 1


class _Sysinfo(ctypes.Structure):
    """As sysinfo(2) has it on machines of 64 bits."""

    _fields_ = (("before", ctypes.c_ulong * 10), ("tasks", ctypes.c_uint16), ("rest", ctypes.c_byte * 64))


def _running() -> int:
    """All processes and threads of this kernel, which are the sandbox's."""
    info = _Sysinfo()
    ctypes.CDLL(None).sysinfo(ctypes.byref(info))
    return int(info.tasks)


def _mount_counter(place: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"cgroup", place.encode(), b"cgroup", ctypes.c_ulong(_FLAGS), b"pids") != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), place)
