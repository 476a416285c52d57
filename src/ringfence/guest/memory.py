"""The sandbox's memory counters, through descriptors that the host opened: the sandbox sees no cgroups."""

import contextlib
import os
from collections.abc import Sequence

_MIB = 1 << 20


class MemoryMeter:
    """Reads the counters; where the host has none, it counts nothing.

    counters: descriptors of the peak file and the events file, of cgroup v1 (``memory.max_usage_in_bytes``,
        ``memory.oom_control``) or v2 (``memory.peak``, ``memory.events``).
    limit: the sandbox's memory limit in bytes.
    """

    def __init__(self, counters: Sequence[int] = (), limit: int = 0) -> None:
        self._counters = tuple(counters)
        self._limit = limit

    def oom_kills(self) -> int:
        """How many processes of the sandbox the kernel has killed for want of memory."""
        if len(self._counters) == 2:
            with contextlib.suppress(OSError, ValueError):
                for line in os.pread(self._counters[1], 4096, 0).splitlines():
                    name, _, value = line.partition(b" ")
                    if name == b"oom_kill":
                        return int(value)
        return 0

    def peak(self) -> int:
        """The most memory the sandbox has used at once, in bytes; 0 where nobody counts."""
        if len(self._counters) == 2:
            with contextlib.suppress(OSError, ValueError):
                return int(os.pread(self._counters[0], 64, 0))
        return 0

    def describe(self) -> str:
        """What befell a process that was killed for want of memory, as a sentence without its subject."""
        limit, peak = self._limit // _MIB, self.peak() // _MIB
        return f"was killed because the memory limit of {limit} MiB was reached (peak {peak} MiB)"
