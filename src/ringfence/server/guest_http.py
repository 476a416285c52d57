"""HTTP/1.1 to a guest, over a Unix socket. The peer is hostile: all it sends is bounded and streamed.

Written on llhttp's callbacks rather than on a client library, because a library hides what is needed here:
the tunnel's handshake before HTTP starts, raw bytes after an upgrade, and an end that is told from a break.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import cast

import httptools

from ringfence.server.headers import Headers

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 256
_MAX_FRAMING_BYTES = 2 * MAX_HEAD_BYTES
"""Bytes of a head, of a chunk's size line or of trailers that may come in a row: the parser gathers a header
until its line ends, and counts nothing itself."""
_HIGH_WATER = 256 * 1024
_MAX_INTERIM = 8


class GuestLostError(Exception):
    """The connection to the guest broke, or the guest did not speak HTTP."""


@dataclass(frozen=True)
class ResponseHead:
    """Status and headers (names in lower case) of a guest's response."""

    status: int
    headers: Headers


class GuestConnection(asyncio.Protocol):
    """One connection to a guest; carries one exchange at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._lost = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._waiter: asyncio.Future[None] | None = None
        self._busy = False
        self._begin(head_only=False)

    def _begin(self, *, head_only: bool) -> None:
        self._head_only = head_only
        self._head: ResponseHead | None = None
        self._headers: Headers = []
        self._head_bytes = 0
        self._framing = 0
        self._interim = 0
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._paused = False
        self._complete = False
        self._until_eof = False
        self._keep_alive = False
        self._leftover = b""

    # One exchange

    @property
    def reusable(self) -> bool:
        """Whether another exchange may follow: the last one is over and both sides are in step."""
        return not self._lost and not self._busy

    @property
    def started(self) -> bool:
        """Whether anything of the response has arrived."""
        return self._head is not None or self._head_bytes > 0 or self._interim > 0

    def start(self, request: bytes, *, head_only: bool) -> None:
        """Send a request's head and what is at hand of its body. `head_only`: it is a HEAD request."""
        self._begin(head_only=head_only)
        self._busy = True
        self._out.write(request)

    async def write(self, data: bytes) -> None:
        """Send more of the body; waits while the guest does not read."""
        if self._lost:
            raise GuestLostError
        self._out.write(data)
        await self._writable.wait()

    async def head(self) -> ResponseHead:
        """Wait for the response's head; there is no time limit. Raises GuestLostError."""
        while self._head is None:
            if self._lost:
                raise GuestLostError
            await self._wait()
        return self._head

    async def body(self) -> AsyncIterator[bytes]:
        """The response's body, as it comes. Raises GuestLostError when it breaks off."""
        while True:
            if self._chunks:
                data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
                self._chunks.clear()
                self._buffered = 0
                self._resume_reading()
                yield data
            elif self._complete:
                self._finish()
                return
            elif self._lost:
                raise GuestLostError
            else:
                await self._wait()

    def close(self) -> None:
        """Break the connection at once; whoever waits on it gets GuestLostError."""
        self._fail()

    def detach(self) -> tuple[asyncio.Transport, bytes]:
        """After a 101: the transport, for raw bytes, and those that came already."""
        return self._out, self._leftover

    def _finish(self) -> None:
        self._busy = False
        if not self._keep_alive:
            self._fail()

    @property
    def _out(self) -> asyncio.Transport:
        if self._transport is None:
            raise GuestLostError
        return self._transport

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self) -> None:
        self._lost = True
        if self._transport is not None:
            self._transport.abort()
        self._writable.set()
        self._wake()

    def _resume_reading(self) -> None:
        if self._paused and not self._lost:
            self._paused = False
            self._out.resume_reading()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if not self._busy:  # bytes nobody asked for: out of step
            self._fail()
            return
        self._framing += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._leftover = data[upgrade.args[0] :]
            self._out.pause_reading()
        except httptools.HttpParserError:
            if not self._complete:
                self._fail()
            self._keep_alive = False
        if self._framing > _MAX_FRAMING_BYTES and not self._complete:
            self._fail()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._until_eof and exc is None and self._head is not None:
            self._complete = True
        self._lost = True
        self._writable.set()
        self._wake()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # llhttp

    def on_message_begin(self) -> None:
        if self._complete:
            raise GuestLostError  # a second response to one request

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head is not None:
            return  # trailers
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > MAX_HEAD_BYTES or len(self._headers) >= MAX_HEADERS:
            raise GuestLostError
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._framing = 0
        status = self._parser.get_status_code()
        if 100 <= status < 200 and status != 101:
            self._interim += 1
            self._headers = []
            if self._interim > _MAX_INTERIM:
                raise GuestLostError
            return
        if not 101 <= status <= 599 or (status == 101) != self._parser.should_upgrade():
            raise GuestLostError
        names = {name for name, _ in self._headers}
        bodiless = self._head_only or status in (101, 204, 304)
        self._until_eof = not bodiless and not names & {b"content-length", b"transfer-encoding"}
        self._keep_alive = self._parser.should_keep_alive() and not self._until_eof
        self._head = ResponseHead(status, self._headers)
        if self._head_only:
            # llhttp cannot be told that no body follows, so this connection ends here.
            self._keep_alive = False
            self._complete = True
        self._wake()

    def on_body(self, body: bytes) -> None:
        self._framing = 0
        if self._head is None or self._complete:
            return
        self._chunks.append(body)
        self._buffered += len(body)
        if self._buffered > _HIGH_WATER and not self._paused:
            self._paused = True
            self._out.pause_reading()
        self._wake()

    def on_message_complete(self) -> None:
        if self._head is not None:
            self._complete = True
            self._wake()
