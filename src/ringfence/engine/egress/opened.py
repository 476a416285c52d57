"""A connection to a host whose requests are changed on their way out: it ends here, and another one begins.

The sandbox's TLS is answered with a certificate of this server's authority, which only such sandboxes
trust; the host's own certificate is verified as any client would. Each request is read by a real parser,
checked to be for the host of the connection, and written anew, so that nothing in it can mean something else
to the host.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import urlsplit

import h11

from ringfence.engine.egress.dialer import Destination
from ringfence.engine.egress.http1 import Event, Peer, accept, connect, copy
from ringfence.engine.egress.inspection import host_in
from ringfence.engine.egress.transforms import Edge

_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te",
     b"trailer", b"upgrade")
)  # fmt: skip
_FRAMING = frozenset((b"content-length", b"transfer-encoding"))
_NOT_ASKED = frozenset((b"CONNECT", b"TRACE"))
"""A tunnel would be a way to another host; a trace would send back the headers that were set."""
_NOT_PASSED_BACK = _HOP_BY_HOP | {b"alt-svc"}
"""``Alt-Svc`` speaks of HTTP/3, which is UDP and does not get out."""

Headers = list[tuple[bytes, bytes]]


class RequestRefusedError(Exception):
    """A request is not passed on. `status` and the message are the answer; `blamed`: the sandbox did it."""

    def __init__(self, status: int, message: str, *, blamed: bool = True) -> None:
        super().__init__(message)
        self.status = status
        self.blamed = blamed


class OpenedConnection:
    """Serves one connection of a sandbox. `edge`: what is in force now, None when nothing is any more."""

    def __init__(
        self,
        destination: Destination,
        edge: Callable[[], Edge | None],
        trusted: ssl.SSLContext,
        refused: Callable[[str], None],
    ) -> None:
        self._destination = destination
        self._name = str(destination.host)
        self._edge = edge
        self._trusted = trusted
        self._refused = refused

    async def serve(self, inside: socket.socket, outside: socket.socket, *, secure: bool) -> None:
        """Until one of the two closes; both are closed afterwards."""
        edge = self._edge()
        if edge is None:
            inside.close()
            outside.close()
            return
        try:
            client = await accept(inside, edge.context if secure else None)
        except BaseException as error:
            outside.close()
            if not isinstance(error, OSError):
                raise
            self._refused(f"{self._destination} was refused: its TLS could not be opened ({_why(error)})")
            return
        try:
            await self._with_client(client, outside, secure=secure)
        finally:
            await client.close()

    async def _with_client(self, client: Peer, outside: socket.socket, *, secure: bool) -> None:
        """Serve, and stop when the client has gone."""
        work = asyncio.ensure_future(self._answer(client, outside, secure=secure))
        try:
            await asyncio.wait((work, client.closed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _answer(self, client: Peer, outside: socket.socket, *, secure: bool) -> None:
        server: Peer | None = None
        try:
            server = await self._connect(outside, secure=secure)
            while await self._exchange(client, server):
                client.machine.start_next_cycle()
                server.machine.start_next_cycle()
        except RequestRefusedError as error:
            if error.blamed:
                self._refused(f"{self._destination} was refused: {error}")
            await _decline(client, error)
        except h11.RemoteProtocolError as error:
            self._refused(f"{self._destination}: an HTTP message cannot be understood ({error})")
            await _decline(client, RequestRefusedError(error.error_status_hint, "it cannot be understood"))
        except (OSError, h11.LocalProtocolError):
            return  # one of the two has gone in the middle, and the other is told by the end
        finally:
            client.writer.close()  # first: it may wait for the end, and the other for it
            if server is not None:
                await server.close()

    async def _connect(self, outside: socket.socket, *, secure: bool) -> Peer:
        try:
            return await connect(outside, self._trusted if secure else None, self._name)
        except OSError as error:
            sentence = (
                f"the connection to {self._destination} could not be secured: {_why(error)}; authorities "
                "beside the machine's are the operator's to name, with RINGFENCE_NETWORK_ROOTS"
            )
            self._refused(sentence)
            raise RequestRefusedError(502, sentence, blamed=False) from None

    async def _exchange(self, client: Peer, server: Peer) -> bool:
        """One request and its answer; whether another may follow."""
        request = await client.receive()
        if not isinstance(request, h11.Request):
            return False
        await server.send(self._changed(request))
        uploading = asyncio.ensure_future(_upload(client, server))
        try:
            switched = await self._download(client, server, uploading)
        finally:
            if not uploading.done():
                uploading.cancel()
            await asyncio.gather(uploading, return_exceptions=True)
        if switched:
            await _tunnel(client, server)
            return False
        return client.reusable and server.reusable

    def _changed(self, request: h11.Request) -> h11.Request:
        """The request as the host gets it. Raises RequestRefusedError."""
        target = self._judged_target(request)
        edge = self._edge()
        if edge is None:
            raise RequestRefusedError(403, "the rule for this host was removed; connect again", blamed=False)
        if edge.transform.problem:
            raise RequestRefusedError(502, edge.transform.problem)
        headers = _forwarded(request.headers, _HOP_BY_HOP)
        chunked = any(name == b"transfer-encoding" for name, _ in headers)
        if chunked:
            headers = [pair for pair in headers if pair[0] not in _FRAMING]
            headers.append((b"transfer-encoding", b"chunked"))
        if _upgrade(request.headers) == b"websocket":
            headers += [(b"connection", b"upgrade"), (b"upgrade", b"websocket")]
        return h11.Request(method=request.method, target=target, headers=edge.transform.apply(headers))

    def _judged_target(self, request: h11.Request) -> bytes:
        if request.method in _NOT_ASKED:
            raise RequestRefusedError(405, f"it asks for {request.method.decode()}")
        hosts = [value for name, value in request.headers if name == b"host"]
        target: bytes = request.target
        if not target.startswith((b"/", b"*")):
            try:
                parts = urlsplit(target)
            except ValueError:
                raise RequestRefusedError(400, "its HTTP request is for no address") from None
            hosts.append(parts.netloc)
            target = (parts.path or b"/") + (b"?" + parts.query if parts.query else b"")
        if not hosts:
            raise RequestRefusedError(400, "its HTTP request names no host")
        for authority in hosts:
            if host_in(authority).strip("[]") != self._name:
                raise RequestRefusedError(
                    421,
                    f"its HTTP request is for {authority[:253]!r} (Host); a rule is for its host alone, "
                    "so open another connection for that",
                )
        return target

    async def _download(self, client: Peer, server: Peer, uploading: "asyncio.Future[None]") -> bool:
        """Pass the answer on; whether both now speak another protocol. Raises RequestRefusedError."""
        answered = False
        while True:
            event: Event = await _either(server.receive(), uploading)
            if isinstance(event, h11.InformationalResponse):
                switched = event.status_code == 101
                headers = _forwarded(event.headers, frozenset() if switched else _NOT_PASSED_BACK)
                await client.send(h11.InformationalResponse(status_code=event.status_code, headers=headers))
                if switched:
                    return True
            elif isinstance(event, h11.Response):
                answered = True
                await client.send(_response(event))
            elif isinstance(event, h11.Data):
                await client.send(h11.Data(data=event.data))
            elif isinstance(event, h11.EndOfMessage):
                await client.send(h11.EndOfMessage())
                return False
            elif not answered:
                raise RequestRefusedError(502, f"{self._destination} gave no answer", blamed=False)
            else:
                raise ConnectionAbortedError


async def _either(work: Coroutine[Any, Any, Event], uploading: "asyncio.Future[None]") -> Event:
    """What `work` gives, unless the upload fails before."""
    receiving = asyncio.ensure_future(work)
    try:
        while not receiving.done():
            waiting = {receiving} if uploading.done() else {receiving, uploading}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if uploading.done() and isinstance(error := uploading.exception(), h11.RemoteProtocolError):
                raise error
        return receiving.result()
    finally:
        receiving.cancel()


async def _upload(client: Peer, server: Peer) -> None:
    while True:
        event = await client.receive()
        if isinstance(event, h11.Data):
            await server.send(h11.Data(data=event.data))
        elif isinstance(event, h11.EndOfMessage):
            await server.send(h11.EndOfMessage())
            return
        else:
            raise ConnectionAbortedError


async def _tunnel(client: Peer, server: Peer) -> None:
    """After a change of protocol: bytes, as they come."""
    for source, sink in ((client, server), (server, client)):
        sink.writer.write(source.machine.trailing_data[0])
    ways = [
        asyncio.ensure_future(copy(client.reader, server.writer)),
        asyncio.ensure_future(copy(server.reader, client.writer)),
    ]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


def _response(event: h11.Response) -> h11.Response:
    headers = _forwarded(event.headers, _NOT_PASSED_BACK)
    if b"close" in _tokens(event.headers) or event.http_version < b"1.1":
        headers.append((b"connection", b"close"))
    return h11.Response(status_code=event.status_code, headers=headers, reason=event.reason)


def _forwarded(headers: Any, dropped: frozenset[bytes]) -> Headers:
    """`headers` without those that are for one connection only (RFC 9110, 7.6.1)."""
    named = _tokens(headers) - {b"content-length", b"transfer-encoding", b"host"} if dropped else set()
    return [
        (bytes(name), bytes(value)) for name, value in headers if name not in dropped and name not in named
    ]


def _tokens(headers: Any) -> set[bytes]:
    values = [value for name, value in headers if name == b"connection"]
    return {token.strip().lower() for value in values for token in value.split(b",")}


def _upgrade(headers: Any) -> bytes:
    return next((bytes(value).strip().lower() for name, value in headers if name == b"upgrade"), b"")


async def _decline(client: Peer, error: RequestRefusedError) -> None:
    """Answer with the reason, if there is still somebody to answer."""
    body = f"Ringfence: {error}\n".encode()
    headers = [
        ("content-type", "text/plain; charset=utf-8"), ("content-length", str(len(body))),
        ("connection", "close"),
    ]  # fmt: skip
    with contextlib.suppress(OSError, h11.LocalProtocolError):
        await client.send(h11.Response(status_code=error.status, headers=headers))
        await client.send(h11.Data(data=body))
        await client.send(h11.EndOfMessage())


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate was not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return (error.reason or "it failed").replace("_", " ").lower()
    return error.strerror or type(error).__name__
