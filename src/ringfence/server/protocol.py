"""The HTTP/1.1 connection of a client.

It is uvicorn's, with bounds on what a stranger may send and with three powers that ASGI does not have:
breaking the connection with a reset, refusing a body unread, and taking over the bytes.
"""

import asyncio
import json
import socket
import struct
from collections.abc import Callable
from typing import Any, cast

import httptools
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

EXTENSION = "ringfence.connection"
"""Key of the connection in ``scope["extensions"]``."""

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 200
_MAX_FRAMING_BYTES = 2 * MAX_HEAD_BYTES
"""Bytes of a head, of a chunk's size line or of trailers that may come in a row: the parser gathers a header
until its line ends, and counts nothing itself."""
HEAD_TIMEOUT = 15.0
"""Seconds in which a request's head must have arrived, counted from its first byte or from the connection."""

_LINGER_SECONDS = 3.0
_MAX_EARLY_BYTES = 64 * 1024
_RESET = struct.pack("ii", 1, 0)


class _HeadTooLargeError(Exception):
    """The request's head passes the bounds."""


class ClientConnection(HttpToolsProtocol):
    """One client connection. The application finds it in the scope by `connection_of`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
        self._framing = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._too_large = False
        self._upgrading = False
        self._early = bytearray()
        self._sink: RawSink | None = None
        self._discarding = False

    # The life of the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        if self._sink is not None:
            self._sink.lost()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._sink is not None:
            self._sink.data(data)
        elif self._discarding:
            return
        elif self._upgrading:
            self._keep_early(data)
        else:
            self._parse(data)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._sink is not None:
            self._sink.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._sink is not None:
            self._sink.resume()

    # Parsing, with bounds

    def _parse(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._framing += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgrading = True
            self._keep_early(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            if self._too_large:
                self._answer_and_close(431, "the request's headers are too large")
            else:
                self._answer_and_close(400, "the request is not valid HTTP")
        else:
            if self._framing > _MAX_FRAMING_BYTES:
                self._answer_and_close(431, "the request's headers are too large")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {EXTENSION: cast(Any, self)}
        self._head_bytes = 0
        if self._head_timer is None:
            self._start_head_timer()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._framing = 0
        self._stop_head_timer()
        super().on_headers_complete()
        if self.parser.should_upgrade():
            # Whatever the answer, no other request can be read behind this one.
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._framing = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._framing = 0
        super().on_message_complete()

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES or len(self.headers) >= MAX_HEADERS:
            self._too_large = True
            raise _HeadTooLargeError

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT, self._head_timed_out)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_timed_out(self) -> None:
        self._head_timer = None
        if self.scope is None:
            self.transport.close()
        elif not self.transport.is_closing():
            self._answer_and_close(408, "the request's headers did not arrive in time")

    def _keep_early(self, data: bytes) -> None:
        """Bytes behind an upgrade request wait here until the application takes over or answers."""
        self._early += data
        if len(self._early) > _MAX_EARLY_BYTES:
            self._answer_and_close(400, "too much was sent before the upgrade was answered")

    # What the application may do beyond ASGI

    @property
    def body_pending(self) -> bool:
        """Whether part of the request's body has not arrived."""
        return bool(self.cycle.more_body)

    @property
    def gone(self) -> bool:
        """Whether the client has hung up, or has been given up."""
        return bool(self.cycle.disconnected)

    def reset(self) -> None:
        """Break the connection so that the client sees a reset (TCP RST), not an orderly end."""
        self._end_cycle()
        sock = self.transport.get_extra_info("socket")
        if sock is not None and not self.transport.is_closing():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    def refuse(self, status: int, headers: dict[str, str], body: bytes) -> None:
        """Answer now, although the request's body has not been read, and close.

        The answer would be lost in a reset if the connection were closed with bytes still arriving, so for a
        moment these are taken and thrown away.
        """
        self._end_cycle()
        self._discarding = True
        lines = [STATUS_LINE[status], *(f"{k}: {v}\r\n".encode("latin-1") for k, v in headers.items())]
        lines.append(b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body))
        self.transport.write(b"".join(lines) + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(_LINGER_SECONDS, self.transport.abort)

    def take_over(self, sink: "RawSink") -> asyncio.Transport:
        """Give all further bytes, and those that came early, to `sink`; for uvicorn the exchange is over."""
        self._end_cycle()
        self._sink = sink
        self.flow.resume_reading()
        if self._early:
            sink.data(bytes(self._early))
            self._early.clear()
        return self.transport

    def _end_cycle(self) -> None:
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _answer_and_close(self, status: int, message: str) -> None:
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.abort()  # another request's answer is on its way: nothing can be said in its midst
            return
        body = json.dumps({"code": status, "message": message}).encode()
        self.refuse(status, {"content-type": "application/json"}, body)


class RawSink:
    """Where the bytes of a taken-over connection go. Callbacks run on the loop and return at once."""

    def __init__(
        self,
        *,
        data: Callable[[bytes], None],
        lost: Callable[[], None],
        pause: Callable[[], None],
        resume: Callable[[], None],
    ) -> None:
        self.data = data
        self.lost = lost
        self.pause = pause
        self.resume = resume


def connection_of(scope: Any) -> ClientConnection:
    """The client connection that an ASGI scope belongs to."""
    return cast(ClientConnection, scope["extensions"][EXTENSION])


async def answer(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Send `response`. When part of the request's body is still on its way it is not waited for."""
    connection = connection_of(scope)
    if connection.cycle.response_started:
        connection.reset()  # something went wrong in the midst of another answer
        return
    if not connection.body_pending:
        await response(scope, receive, send)
        return
    headers = {
        key.decode(): value.decode() for key, value in response.raw_headers if key != b"content-length"
    }
    connection.refuse(response.status_code, headers, bytes(response.body))
