"""Storing the state of a sandbox's kernels: it comes out of the sandbox through a pipe, and is not looked at.

The file lies beside the copied layers of a snapshot. Only the child that stores it ever writes to it, so what
sandboxes map later cannot be changed by the one it came from. Each of them gets an inode of its own for it
(`mounts.open_file`).
"""

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Any

from ringfence.engine.launcher.helpers import give_up_power
from ringfence.engine.launcher.records import SandboxRecord

NAME = "states"
"""The file's name in a snapshot's directory."""
SAVE_SECONDS = 40
"""How long a guest may take to save the state of its kernels, give or take its last efforts."""
_STORE_SECONDS = 55
_MORE_THAN_MEMORY = 64 << 20
_PIPE_SIZE = 1 << 20
_CHUNK = 1 << 20


def request_for(record: SandboxRecord) -> dict[str, Any]:
    """What the guest is asked: to write at most ``room`` bytes, using at most ``memory`` bytes for that."""
    limit = int(record.limits["memory_mb"]) << 20
    free = max(0, limit - record.cgroup.stats().memory_used)
    return {"room": limit + _MORE_THAN_MEMORY, "memory": free * 3 // 4, "seconds": SAVE_SECONDS}


def open_place(directory: str) -> tuple[int, int, int]:
    """A new file in a snapshot's directory, and a pipe's two ends."""
    source, target = os.pipe2(os.O_CLOEXEC)
    try:
        file = os.open(f"{directory}/{NAME}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError:
        os.close(source)
        os.close(target)
        raise
    with contextlib.suppress(OSError):  # over the user's limit for pipes: the usual 64 KiB do too
        fcntl.fcntl(target, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
    return file, source, target


def place_in(directory: str) -> tuple[str, str] | None:
    """Where a snapshot has the state of kernels; None when it has none."""
    return (directory, NAME) if Path(directory, NAME).is_file() else None


def store(record: SandboxRecord, source: int, file: int) -> dict[str, int]:
    """Move what comes out of the pipe into the file; in a child, which gives up all power before."""
    give_up_power(record, _STORE_SECONDS)
    most = (int(record.limits["memory_mb"]) << 20) + 2 * _MORE_THAN_MEMORY
    stored = 0
    while count := os.splice(source, file, _CHUNK):
        stored += count
        if stored > most:
            raise ValueError(f"it is larger than {most >> 20} MiB")
    return {"bytes": stored, "entries": 1}
