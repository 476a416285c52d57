"""Memory limits where there are no cgroups: look often, and kill what uses too much.

What is counted is the proportional share (PSS) of a sandbox's processes, so that pages they share with the
zygote are not held against each. It takes the kernel a while to work out; so it is asked only when the
resident sizes, which are never less, add up to more than the limit. As the kernel's own killer would, this
one takes the largest process first, and PID 1, whose death is the sandbox's, only when it is that.
"""

import contextlib
import functools
import os
import signal
import time
from collections.abc import Callable, Mapping

from ringfence.engine.isolation import linux

INTERVAL_SECONDS = 0.1
_PAGE = os.sysconf("SC_PAGESIZE")

Tell = Callable[[int, int], None]
"""Is called before a process is killed, with the pid of its PID 1 and the bytes they have together."""


def _tell_nobody(first: int, used: int) -> None:
    """For who does not want to know."""


class Watchdog:
    """Keeps sandboxes, known by the host's pid of their PID 1, below their memory limits in bytes."""

    def __init__(self, tell: Tell = _tell_nobody) -> None:
        self._tell = tell
        self._next = 0.0

    def tick(self, limits: Mapping[int, int]) -> float | None:
        """Look, when it is time; the seconds until the next look, None while there is nothing to look at."""
        if not limits:
            return None
        if time.monotonic() >= self._next:
            enforce(limits, self._tell)
            self._next = time.monotonic() + INTERVAL_SECONDS
        return max(0.0, self._next - time.monotonic())


def enforce(limits: Mapping[int, int], tell: Tell = _tell_nobody) -> list[int]:
    """Kill processes until every sandbox is below its limit; the pids of those that were killed."""
    by_namespace = {link: pid for pid in limits if (link := _namespace(pid))}
    members: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - names only
        if name.isdigit() and (owner := by_namespace.get(_namespace(int(name)))):
            members.setdefault(owner, []).append(int(name))
    killed = []
    for owner, pids in members.items():
        killed += _trim(pids, limits[owner], functools.partial(tell, owner))
    return killed


def _trim(pids: list[int], limit: int, tell: Callable[[int], None]) -> list[int]:
    if sum(_resident(pid) for pid in pids) <= limit:
        return []
    sizes = sorted(((_share(pid), pid) for pid in pids), reverse=True)
    total = sum(size for size, _ in sizes)
    killed = []
    for size, pid in sizes:
        if total <= limit:
            break
        with contextlib.suppress(OSError):
            descriptor = linux.pidfd_open(pid)
            tell(total)  # first, so that the guest knows why when it hears of the end
            linux.pidfd_send_signal(descriptor, signal.SIGKILL)
            os.close(descriptor)
            killed.append(pid)
        total -= size
    return killed


def _namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")  # noqa: PTH115 - no path, a name
    except OSError:
        return ""


def _resident(pid: int) -> int:
    """Resident bytes: never less than the share."""
    with contextlib.suppress(OSError, IndexError, ValueError), open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * _PAGE
    return 0


def _share(pid: int) -> int:
    """The proportional share in bytes."""
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/smaps_rollup") as file:
        for line in file:
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return 0
