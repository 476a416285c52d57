"""Bytes from one socket to the other, both ways, at the speed of the slower one.

One of the two belongs to a sandbox, whose PID 1 may still hold it: nothing here relies on the socket being
non-blocking or on what it is set to. Every call says so itself (``MSG_DONTWAIT``).
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable

from ringfence.engine.egress.inspection import ForgedNameError, Inspector

_BLOCK = 256 * 1024
_RESET = struct.pack("ii", 1, 0)
_NO_LINGER = struct.pack("ii", 0, 0)
_buffer = memoryview(bytearray(_BLOCK))  # there is one thread, and nothing stays in it between two calls
_SEND = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class _Flow:
    """One direction. `judge` turns what was read into what is passed on."""

    def __init__(
        self,
        source: socket.socket,
        sink: socket.socket,
        judge: Callable[[bytes], bytes] | None,
        ended: Callable[[Exception | None], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._source = source
        self._sink = sink
        self._judge = judge
        self._ended = ended
        self._pending = b""
        self._over = False
        self.count = 0

    def start(self) -> None:
        self._loop.add_reader(self._source, self._read)

    def stop(self) -> None:
        self._loop.remove_reader(self._source)
        self._loop.remove_writer(self._sink)

    def _read(self) -> None:
        try:
            size = self._source.recv_into(_buffer, _BLOCK, socket.MSG_DONTWAIT)
            if not size:
                self._over = True
                self._loop.remove_reader(self._source)
                if not self._pending:
                    self._finish()
                return
            self.count += size
            if self._judge is None:
                self._write(_buffer[:size])
            else:
                self.push(self._judge(bytes(_buffer[:size])))
        except BlockingIOError:
            return
        except (OSError, ForgedNameError) as error:
            self._ended(error)

    def push(self, data: bytes) -> None:
        """Pass `data` on, after what is still waiting."""
        if self._pending:
            self._pending += data
        elif data:
            self._write(memoryview(data))

    def _write(self, data: memoryview) -> None:
        try:
            sent = self._sink.send(data, _SEND)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self._pending = bytes(data[sent:])
            self._loop.remove_reader(self._source)
            self._loop.add_writer(self._sink, self._flush)

    def _flush(self) -> None:
        try:
            sent = self._sink.send(self._pending, _SEND)
        except BlockingIOError:
            return
        except OSError as error:
            self._ended(error)
            return
        self._pending = self._pending[sent:]
        if self._pending:
            return
        self._loop.remove_writer(self._sink)
        if self._over:
            self._finish()
        else:
            self._loop.add_reader(self._source, self._read)

    def _finish(self) -> None:
        with contextlib.suppress(OSError):
            self._sink.shutdown(socket.SHUT_WR)
        self._ended(None)


class Relay:
    """Connects a sandbox's connection with one to the outside. `done` gets the error, if it was one."""

    def __init__(
        self,
        inside: socket.socket,
        outside: socket.socket,
        inspector: Inspector | None,
        done: Callable[[Exception | None], None],
    ) -> None:
        self._inside = inside
        self._outside = outside
        self._inspector = inspector
        self._done = done
        self._left = 2
        self._closed = False
        answered = None if inspector is None else self._answered
        self._up = _Flow(inside, outside, inspector.from_client if inspector else None, self._ended)
        self._down = _Flow(outside, inside, answered, self._ended)

    @property
    def sent(self) -> int:
        """Bytes that the sandbox has sent."""
        return self._up.count

    @property
    def received(self) -> int:
        """Bytes that the sandbox has got."""
        return self._down.count

    def start(self, head: bytes) -> None:
        """Start, with what was read from the sandbox already."""
        self._up.start()
        self._down.start()
        if head:
            try:
                self._up.push(self._inspector.from_client(head) if self._inspector else head)
            except (OSError, ForgedNameError) as error:
                self._ended(error)

    def abort(self) -> None:
        """End it so that both sides see an error."""
        self._ended(ConnectionAbortedError())

    def _answered(self, data: bytes) -> bytes:
        if self._inspector is not None:
            self._up.push(self._inspector.from_server(data))
        return data

    def _ended(self, error: Exception | None) -> None:
        self._left -= 1
        if self._closed or (error is None and self._left):
            return
        self._closed = True
        self._up.stop()
        self._down.stop()
        for end in (self._inside, self._outside):
            close(end, reset=error is not None)
        self._done(error)


def close(connection: socket.socket, *, reset: bool) -> None:
    """Close without waiting, whatever the sandbox has set; `reset`: as an error."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET if reset else _NO_LINGER)
    connection.close()
