"""The sandbox's memory counters, read through descriptors the host opened.

The sandbox itself sees no cgroups.
"""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class MemoryState:
    """Memory of the whole sandbox, in bytes, and how many processes the kernel killed for want of it."""

    peak: int
    limit: int
    oom_kills: int


class MemoryMeter:
    """Reads the counters; says nothing (None) where the host has no cgroups.

    counters: descriptors of the peak file and the events file, of cgroup v1 (``memory.max_usage_in_bytes``,
        ``memory.oom_control``) or v2 (``memory.peak``, ``memory.events``).
    limit: the limit in bytes.
    """

    def __init__(self, counters: Sequence[int], limit: int) -> None:
        self._counters = tuple(counters)
        self._limit = limit

    def read(self) -> MemoryState | None:
        """The state now, or None when there are no counters."""
        if len(self._counters) != 2:
            return None
        with contextlib.suppress(OSError, ValueError):
            peak = int(os.pread(self._counters[0], 64, 0))
            return MemoryState(peak, self._limit, _oom_kills(os.pread(self._counters[1], 4096, 0)))
        return None


def _oom_kills(events: bytes) -> int:
    for line in events.splitlines():
        name, _, value = line.partition(b" ")
        if name == b"oom_kill":
            return int(value)
    return 0
