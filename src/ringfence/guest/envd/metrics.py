"""``GET /metrics``: what the sandbox uses, seen from inside.

No cgroup files are visible here, so use is summed over the processes in /proc. The engine, which sees the
cgroup, has the exact figures.
"""

import os
import time
from pathlib import Path

from ringfence.guest.config import GuestConfig
from ringfence.guest.connect import Message

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")
_MIB = 1024 * 1024


class Metrics:
    """Measures use; CPU use is the average since the measurement before (at first since the start)."""

    def __init__(self, config: GuestConfig) -> None:
        """Relate use to the limits in `config`."""
        self._config = config
        self._measured: tuple[float, float] | None = None

    def measure(self) -> Message:
        """Use now. Memory and disk in bytes, ``cpu_used_pct`` in percent of the sandbox's processors."""
        seconds, memory = _processes()
        now = time.monotonic()
        before = self._measured or (now, seconds)
        self._measured = (now, seconds)
        elapsed = now - before[0]
        used = 100 * (seconds - before[1]) / elapsed / self._config.cpus if elapsed > 0 else 0.0
        disk = os.statvfs("/")
        total = self._config.memory_bytes or _total_memory()
        return {
            "ts": int(time.time()),
            "cpu_count": max(1, round(self._config.cpus)),
            "cpu_used_pct": round(max(0.0, used), 2),
            "mem_total_mib": total // _MIB,
            "mem_used_mib": memory // _MIB,
            "mem_total": total,
            "mem_used": memory,
            "mem_cache": 0,
            "disk_used": (disk.f_blocks - disk.f_bfree) * disk.f_frsize,
            "disk_total": self._config.disk_bytes or disk.f_blocks * disk.f_frsize,
        }


def _processes() -> tuple[float, int]:
    """CPU seconds (with those of children that ended) and private memory in bytes of all processes."""
    ticks = pages = 0
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            stat = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            size = (entry / "statm").read_bytes().split()
        except OSError:
            continue  # gone meanwhile
        ticks += sum(int(value) for value in stat[11:15])
        pages += max(0, int(size[1]) - int(size[2]))
    return ticks / _TICKS, pages * _PAGE_BYTES


def _total_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0
