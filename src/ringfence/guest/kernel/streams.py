"""The kernel's stdout and stderr: the plain descriptors 1 and 2, flushed often enough to look live."""

import ctypes
import io
import sys
import time

_PARTIAL_LINE_DELAY = 0.05
"""Seconds after which a line that has no end yet is written anyway (progress dots)."""

_libc = ctypes.CDLL(None)


class Stream(io.TextIOWrapper):
    """Text written to descriptor `fd`. A line is written when it ends; nothing that can be printed raises."""

    def __init__(self, fd: int, name: str) -> None:
        raw = io.FileIO(fd, "w", closefd=False)
        super().__init__(
            io.BufferedWriter(raw, 1 << 16), "utf-8", errors="backslashreplace", line_buffering=True
        )
        self._label = name
        self._flushed = 0.0

    @property
    def name(self) -> str:
        """``<stdout>`` or ``<stderr>``, as for a Python's own streams."""
        return self._label

    def write(self, text: str, /) -> int:
        """Write `text`; an unfinished line goes out when the last one did long enough ago."""
        count = super().write(text)
        if not text.endswith("\n"):
            now = time.monotonic()
            if now - self._flushed > _PARTIAL_LINE_DELAY:
                if self._flushed:
                    self.flush()
                self._flushed = now
        return count


def install() -> None:
    """Put fresh streams into `sys`. Those of the parent stay usable: they write to the same descriptors."""
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.FileIO(0, "r", closefd=False), "utf-8")  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = Stream(1, "<stdout>")  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = Stream(2, "<stderr>")  # type: ignore[misc]


def flush() -> None:
    """Write out everything printed so far, by Python and by C libraries."""
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError, AttributeError):
            continue  # the user's own stream, closed or not a stream at all
    _libc.fflush(None)
