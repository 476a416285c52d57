"""Keeping a sandbox below its memory limit from within.

To the host, the memory of everything in a gVisor sandbox is that of one process: over the limit, the host's
kernel ends that one, and the sandbox with it. So the guest looks first, and ends the largest process, as the
host's kernel does in the process tier. What grows faster than the guest looks still ends the sandbox.
"""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

from ringfence.guest.gvisor.tasks import TaskLimit
from ringfence.guest.memory import MemoryMeter

_SECONDS = 0.2
_PAGE = os.sysconf("SC_PAGE_SIZE")
_SHARE = 0.8
"""Of the limit, what processes may use; the rest is for gVisor itself and for files in memory."""


class MemoryGuard(MemoryMeter):
    """Ends the largest process when all together use too much. limit: the sandbox's, in bytes; 0: none.

    spared: pids that are not ended, whose end would be the sandbox's. tasks: who counts the processes.
    """

    def __init__(self, limit: int, spared: frozenset[int], tasks: TaskLimit) -> None:
        super().__init__((), limit)
        self._spared = spared
        self._tasks = tasks
        self._most = int(limit * _SHARE)
        self._peak = 0
        self._kills = 0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look, on the running event loop."""
        if self._limit:
            self.look()
            self._task = asyncio.get_running_loop().create_task(self._watch())

    def oom_kills(self) -> int:
        """How many processes were ended for want of memory."""
        return self._kills

    def forks_refused(self) -> int:
        """How often there were as many processes and threads as may be: gVisor counts no refusals. Whoever
        was refused one may just have ended.
        """
        self._tasks.look(slack=1)
        return self._tasks.times_full

    def peak(self) -> int:
        """The most memory that was seen in use, in bytes."""
        return self._peak

    def own_limit(self) -> bool:
        """It ends processes for no other reason."""
        return True

    async def _watch(self) -> None:
        while True:
            self.look()
            self._tasks.look()
            await asyncio.sleep(_SECONDS)

    def look(self) -> None:
        """End the largest process if it is time."""
        used = _used()
        self._peak = max(self._peak, used)
        if used <= self._most:
            return
        candidates = {pid: size for pid, size in _sizes().items() if pid not in self._spared}
        if candidates:
            self._kills += 1
            with contextlib.suppress(ProcessLookupError):
                os.kill(max(candidates, key=candidates.__getitem__), signal.SIGKILL)


def _used() -> int:
    """Bytes of memory of all processes, and of files in memory: a page that several have counts once.

    Raises OSError, ValueError.
    """
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "AnonPages":
            return int(value.split()[0]) << 10
    raise ValueError("gVisor's /proc/meminfo has no AnonPages")


def _sizes() -> dict[int, int]:
    """Bytes of memory by pid; a page that several have counts for each."""
    found = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - often, and names are all that is needed
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                fields = Path(f"/proc/{name}/statm").read_text().split()
                found[int(name)] = (int(fields[1]) - int(fields[2])) * _PAGE
    return found
