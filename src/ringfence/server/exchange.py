"""One request on its way to a guest: its head written anew, its body pumped, its client watched."""

import asyncio
import contextlib
from collections.abc import Callable

from starlette.types import Receive, Scope

from ringfence.server.guest_http import GuestConnection, GuestLostError
from ringfence.server.headers import to_guest
from ringfence.server.routing import single


class ClientGoneError(Exception):
    """The client hung up."""


class BodyTooLargeError(Exception):
    """The request's body passes the limit."""


class Exchange:
    """A request being forwarded: `begin`, then `run` (again if the first connection was stale), then `end`.

    While the guest works, the client is watched: when it hangs up, the connection to the guest is broken at
    once, so that what it asked for is stopped.
    """

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        port: int,
        mask_host: str | None,
        max_body: int,
        has_key: Callable[[bytes], bool],
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._max_body = max_body
        self._mask_host = mask_host
        self._has_key = has_key
        self._port = port
        self._first = b""
        self._received = 0
        self._pump: asyncio.Task[None] | None = None
        self.whole = False
        """Whether all of the body is at hand."""
        self.delivered = False
        """Whether the guest has been sent all of it. It may answer before that; then its connection is out of
        step, and no other request can follow on it."""
        self.client_gone = False
        self._too_large = False

    @property
    def upgrade(self) -> bool:
        """Whether the client asks to leave HTTP (WebSocket)."""
        return wants_upgrade(self._scope)

    async def begin(self) -> None:
        """Receive the first part of the body. Raises ClientGoneError, BodyTooLargeError."""
        length = single(self._scope["headers"], b"content-length")
        if length is not None and (not length.isdigit() or int(length) > self._max_body):
            raise BodyTooLargeError
        self._first, self.whole = await self._next()

    async def run(self, connection: GuestConnection) -> None:
        """Send the request and wait until the response's head is there. Raises GuestLostError and others."""
        chunked = not self.whole and single(self._scope["headers"], b"content-length") is None
        request = self._head(chunked=chunked) + (_chunk(self._first) if chunked else self._first)
        connection.start(request, head_only=self._scope["method"] == "HEAD")
        self.delivered = self.whole
        self._pump = asyncio.get_running_loop().create_task(self._run_pump(connection, chunked=chunked))
        try:
            await connection.head()
        except BaseException:
            await self.end()
            if self.client_gone:
                raise ClientGoneError from None
            if self._too_large:
                raise BodyTooLargeError from None
            raise

    async def end(self) -> None:
        """Stop pumping, and stop watching the client."""
        pump, self._pump = self._pump, None
        if pump is None:
            return
        pump.cancel()
        with contextlib.suppress(asyncio.CancelledError, GuestLostError):
            await pump

    async def _next(self) -> tuple[bytes, bool]:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.client_gone = True
            raise ClientGoneError
        body: bytes = message.get("body", b"")
        self._received += len(body)
        if self._received > self._max_body:
            raise BodyTooLargeError
        return body, not message.get("more_body", False)

    async def _run_pump(self, connection: GuestConnection, *, chunked: bool) -> None:
        try:
            done = self.whole
            while not done:
                body, done = await self._next()
                if body:
                    await connection.write(_chunk(body) if chunked else body)
                if done and chunked:
                    await connection.write(b"0\r\n\r\n")
            self.delivered = True
            while not self.client_gone:
                await self._next()
        except ClientGoneError:
            connection.close()
        except BodyTooLargeError:
            self._too_large = True
            connection.close()

    def _head(self, *, chunked: bool) -> bytes:
        scope = self._scope
        path = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        lines = [b"%b %b HTTP/1.1" % (scope["method"].encode(), path)]
        for name, value in to_guest(scope["headers"], self._port, self._mask_host, self._has_key):
            lines.append(b"%b: %b" % (name, value))
        if self.upgrade:
            lines.append(b"connection: Upgrade\r\nupgrade: websocket")
        if chunked:
            lines.append(b"transfer-encoding: chunked")
        elif self.whole and (self._first or scope["method"] in ("POST", "PUT", "PATCH")):
            lines.append(b"content-length: %d" % len(self._first))
        elif not self.whole:
            lines.append(b"content-length: " + (single(scope["headers"], b"content-length") or "0").encode())
        return b"\r\n".join(lines) + b"\r\n\r\n"


def wants_upgrade(scope: Scope) -> bool:
    """Whether a request asks for a WebSocket, the one upgrade that is passed on."""
    upgrade = single(scope["headers"], b"upgrade")
    return upgrade is not None and upgrade.lower() == "websocket"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
