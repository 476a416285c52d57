"""Whom the kernel ends first when the whole machine runs out of memory: sandboxes, not the engine."""

import contextlib
import os

_FILE = "/proc/self/oom_score_adj"
PROTECTED = -500
"""Of -1000 (never) to 1000 (always first)."""


def protect() -> bool:
    """Have this process and what it starts go late; whether it may (it takes CAP_SYS_RESOURCE)."""
    return _write(PROTECTED)


def expose() -> None:
    """Take it back for a process that will be a sandbox's, so that it cannot take the protection again.

    To be called while the privilege is still there: only then the kernel forgets the lower value.
    """
    _write(0)


def _write(value: int) -> bool:
    with contextlib.suppress(OSError):
        fd = os.open(_FILE, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, str(value).encode())
        finally:
            os.close(fd)
        return True
    return False
