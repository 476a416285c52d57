"""Tells users which of the sandbox's limits a program has met: by name, with its number, and who sets it."""

import os
from dataclasses import dataclass

from ringfence.guest.memory import MemoryMeter

_MIB = 1 << 20
_METADATA = "a create request may ask for more (metadata {name}), within the operator's ceiling"
_TOTAL = "Try again when others have ended; the operator sets the total (--total-memory-mb)"


@dataclass(frozen=True)
class Mark:
    """Counters at one moment."""

    oom_kills: int
    forks_refused: int
    full: tuple[str, ...] = ()


class LimitWatch:
    """Compares two moments. Where the host gives no counters, only what is full now is told.

    pids: the limit of processes and threads; root: where the writable layer is mounted.
    """

    def __init__(self, meter: MemoryMeter, pids: int = 0, root: str = "/") -> None:
        self._meter = meter
        self._pids = pids
        self._root = root

    def mark(self) -> Mark:
        """The counters as they are now."""
        return Mark(self._meter.oom_kills(), self._meter.forks_refused(), tuple(self._full()))

    def since(self, mark: Mark, *, failed: bool = True, memory: bool = True) -> list[str]:
        """A sentence for each limit that was met since `mark`.

        failed: whether what was done since then failed; then what was full before is told as well.
        memory: whether that limit is told too.
        """
        told = []
        kills = self._meter.oom_kills() - mark.oom_kills
        if memory and kills > 0:
            ended = "a process was" if kills == 1 else f"{kills} processes were"
            more = _more("memory_mb") if self._meter.own_limit() else _TOTAL
            told.append(f"{self._meter.reached()}; {ended} ended. {more}")
        if self._meter.forks_refused() > mark.forks_refused:
            told.append(
                f"the limit of {self._pids} processes and threads was reached; {_more('pids').lower()}"
            )
        told += [text for text in self._full() if failed or text not in mark.full]
        return [f"[limit: {text}]" for text in told]

    def _full(self) -> list[str]:
        try:
            disk = os.statvfs(self._root)
        except OSError:
            return []
        told = []
        if disk.f_blocks and disk.f_bavail == 0:
            size = disk.f_blocks * disk.f_frsize // _MIB
            told.append(f"the disk limit of {size} MiB is reached: nothing is free. {_more('disk_mb')}")
        if disk.f_files and disk.f_favail == 0:
            told.append(
                f"the limit of {disk.f_files} files and directories (inodes) is reached. {_more('inodes')}"
            )
        return told


def _more(name: str) -> str:
    text = _METADATA.format(name=f"ringfence.{name}")
    return text[0].upper() + text[1:]
