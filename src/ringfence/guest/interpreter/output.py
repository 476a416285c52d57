"""One stream of a kernel's output: a pipe that is always read, decoded, gathered and limited."""

import asyncio
import codecs
import contextlib
import fcntl
import os
import termios
from collections.abc import Callable

GATHER_SECONDS = 0.02
"""How long output is gathered before it is passed on, so that a million small prints are not a million
events.
"""
_GATHER_BYTES = 128 * 1024
_MUCH = 32 * 1024
_READ_SIZE = 256 * 1024
_PIPE_SIZE = 1024 * 1024


class OutputPipe:
    """Reads `fd` for as long as it is open and gives the text to `emit`, in order.

    `allow` is asked how many of a number of bytes may be passed on; the rest is dropped, but still read, and
    `over` is told how much that was.
    """

    def __init__(
        self, fd: int, emit: Callable[[str], None], allow: Callable[[int], int], over: Callable[[int], None]
    ) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._emit = emit
        self._allow = allow
        self._over = over
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending: list[str] = []
        self._pending_size = 0
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self._readable)
        self._open = True
        self._ended = False

    def drain(self) -> None:
        """Read what is in the pipe at this moment, and pass on everything that was gathered."""
        if self._open:
            waiting = _waiting(self._fd)
            while waiting > 0 and (count := self._read(min(waiting, _READ_SIZE))):
                waiting -= count
        self.flush()

    def finish(self) -> None:
        """As `drain`; a character that is not complete will not be any more."""
        self.drain()
        self._add(self._decoder.decode(b"", final=True))
        self.flush()

    def flush(self) -> None:
        """Pass on what was gathered."""
        if self._pending:
            text = "".join(self._pending)
            self._pending.clear()
            self._pending_size = 0
            self._emit(text)

    def close(self) -> None:
        """Pass on the rest and close the pipe; whoever still writes to it gets SIGPIPE."""
        if self._open:
            self.finish()
            self._open = False
            if self._timer is not None:
                self._timer.cancel()
            self._loop.remove_reader(self._fd)
            os.close(self._fd)

    def _readable(self) -> None:
        """Read at once what is much; what is little may become more, so look again after a while."""
        if self._read(_READ_SIZE) >= _MUCH:
            if self._pending_size >= _GATHER_BYTES:
                self.flush()
        elif self._open:
            self._loop.remove_reader(self._fd)
            self._timer = self._loop.call_later(GATHER_SECONDS, self._resume)

    def _resume(self) -> None:
        self._timer = None
        self._read(_READ_SIZE)
        self.flush()
        if not self._ended:
            self._loop.add_reader(self._fd, self._readable)

    def _read(self, size: int) -> int:
        """Read once; how many bytes there were."""
        try:
            data = os.read(self._fd, size)
        except BlockingIOError:
            return 0
        if not data:
            self._ended = True  # every writer is gone
            return 0
        allowed = self._allow(len(data))
        if allowed:
            self._add(self._decoder.decode(data[:allowed]))
        if allowed < len(data):
            self.flush()
            self._over(len(data) - allowed)
        return len(data)

    def _add(self, text: str) -> None:
        if text:
            self._pending.append(text)
            self._pending_size += len(text)


def _waiting(fd: int) -> int:
    """How many bytes can be read from `fd` now."""
    buffer = bytearray(4)
    fcntl.ioctl(fd, termios.FIONREAD, buffer)
    return int.from_bytes(buffer, "little")


def make_pipe() -> tuple[int, int]:
    """A pipe's two ends, large when the system allows that."""
    read, write = os.pipe2(os.O_CLOEXEC)
    with contextlib.suppress(OSError):  # over the user's limit for pipes: the usual 64 KiB do too
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
    return read, write
