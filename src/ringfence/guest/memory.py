"""The sandbox's memory counters, through descriptors that the host opened: the sandbox sees no cgroups."""

import contextlib
import os
from collections.abc import Sequence

_MIB = 1 << 20
_NEAR = 0.9


class MemoryMeter:
    """Reads the counters; where the host has none, it knows what the launcher tells.

    counters: descriptors of the peak file and the events file, of cgroup v1 (``memory.max_usage_in_bytes``,
        ``memory.oom_control``) or v2 (``memory.peak``, ``memory.events``), then of ``pids.events``.
    limit: the sandbox's memory limit in bytes.
    """

    def __init__(self, counters: Sequence[int] = (), limit: int = 0) -> None:
        self._counters = tuple(counters)
        self._limit = limit
        self._told_kills = 0
        self._told_peak = 0

    def oom_kills(self) -> int:
        """How many processes of the sandbox were killed for want of memory."""
        return self._told_kills + self._event(1, b"oom_kill")

    def told(self, used: int) -> None:
        """A process was killed from outside, because all of them together had `used` bytes."""
        self._told_kills += 1
        self._told_peak = max(self._told_peak, used)

    def forks_refused(self) -> int:
        """How often a process or thread could not be started because there were as many as may be."""
        return self._event(2, b"max")

    def _event(self, counter: int, wanted: bytes) -> int:
        if len(self._counters) > counter:
            with contextlib.suppress(OSError, ValueError):
                for line in os.pread(self._counters[counter], 4096, 0).splitlines():
                    name, _, value = line.partition(b" ")
                    if name == wanted:
                        return int(value)
        return 0

    def peak(self) -> int:
        """The most memory the sandbox has used at once, in bytes; 0 where nobody has counted."""
        if self._counters:
            with contextlib.suppress(OSError, ValueError):
                return int(os.pread(self._counters[0], 64, 0))
        return self._told_peak

    def describe(self) -> str:
        """What befell a process that was killed for want of memory, as a sentence without its subject."""
        return f"was killed because {self.reached()}"

    def own_limit(self) -> bool:
        """Whether a kill was for the sandbox's own limit; it never came near it when all sandboxes together
        had no more.
        """
        peak = self.peak()
        return not peak or peak > self._limit * _NEAR

    def reached(self) -> str:
        """Which limit was reached, and the peak."""
        limit, peak = self._limit // _MIB, self.peak() // _MIB
        if not self.own_limit():
            return f"all sandboxes together ran out of memory (this one had up to {peak} of {limit} MiB)"
        return f"the memory limit of {limit} MiB was reached (peak {peak} MiB)"
