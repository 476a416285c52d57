"""Requests of our own to package indexes, over connections that the dialer judged."""

import asyncio
import contextlib
import ipaddress
import ssl
import zlib
from collections.abc import AsyncIterator, Mapping
from urllib.parse import urljoin, urlsplit

import h11

from ringfence.engine.egress.dialer import Destination, Dialer
from ringfence.engine.egress.hosts import BadHostError, parse_host
from ringfence.engine.egress.http1 import Peer, client_context, connect
from ringfence.engine.egress.policy import Policy

_PORTS = {"http": 80, "https": 443}
_MOST_REDIRECTS = 5
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_QUIET_SECONDS = 60.0
_PAGE_SECONDS = 120.0
_MAX_PAGE = 64 << 20


class FetchError(Exception):
    """An index does not answer as one; the message says how."""


class Answer:
    """An answer whose body is still to come. `url` is where it came from in the end."""

    def __init__(self, peer: Peer, response: h11.Response, url: str) -> None:
        self._peer = peer
        self.url = url
        self.status: int = response.status_code
        self.headers = {bytes(name): bytes(value) for name, value in response.headers}

    async def blocks(self) -> AsyncIterator[bytes]:
        """The body, as it comes. Raises FetchError."""
        while True:
            try:
                async with asyncio.timeout(_QUIET_SECONDS):
                    event = await self._peer.receive()
            except (OSError, TimeoutError, h11.RemoteProtocolError) as error:
                raise FetchError(f"{self.url} broke off: {error}") from None
            if isinstance(event, h11.EndOfMessage):
                return
            if not isinstance(event, h11.Data):
                raise FetchError(f"{self.url} broke off")
            yield bytes(event.data)

    async def page(self) -> bytes:
        """The whole body, unpacked. Raises FetchError when it is too large, or takes too long."""
        try:
            async with asyncio.timeout(_PAGE_SECONDS):
                return await self._page()
        except TimeoutError:
            raise FetchError(f"{self.url} took longer than {_PAGE_SECONDS:.0f} seconds") from None

    async def _page(self) -> bytes:
        packed = self.headers.get(b"content-encoding", b"").lower() in (b"gzip", b"x-gzip")
        unpacker = zlib.decompressobj(31) if packed else None
        parts: list[bytes] = []
        size = 0
        async for block in self.blocks():
            try:
                part = unpacker.decompress(block, _MAX_PAGE) if unpacker else block
            except zlib.error:
                raise FetchError(f"{self.url} is packed wrongly") from None
            size += len(part)
            if size > _MAX_PAGE or (unpacker and unpacker.unconsumed_tail):
                raise FetchError(f"{self.url} is larger than {_MAX_PAGE >> 20} MiB")
            parts.append(part)
        return b"".join(parts)


class Fetcher:
    """Makes requests. `unverified`: hosts whose certificates this machine's pip is told not to verify."""

    def __init__(self, dialer: Dialer, trusted: ssl.SSLContext, unverified: frozenset[str]) -> None:
        self._dialer = dialer
        self._trusted = trusted
        self._unverified = unverified

    @contextlib.asynccontextmanager
    async def get(
        self,
        url: str,
        headers: Mapping[str, str],
        authorization: tuple[str, str] | None,
        policies: tuple[Policy, ...],
    ) -> AsyncIterator[Answer]:
        """The answer to a GET request, redirects followed as far as `policies` allow.

        authorization: an origin (``scheme://host:port``) and the value of the header that it gets, and no
        other. Raises FetchError, RefusedError, UnreachableError.
        """
        for _ in range(_MOST_REDIRECTS + 1):
            sent = dict(headers)
            if authorization is not None and origin_of(url) == authorization[0]:
                sent["Authorization"] = authorization[1]
            peer = await self._connect(url, policies)
            try:
                answer = await _ask(peer, url, sent)
                location = answer.headers.get(b"location")
                if answer.status not in _REDIRECTS or location is None:
                    yield answer
                    return
                url = urljoin(url, location.decode("latin-1"))
            finally:
                await peer.close()
        raise FetchError(f"{url} redirects too often")

    async def _connect(self, url: str, policies: tuple[Policy, ...]) -> Peer:
        destination = _destination(url)
        connection, _, _ = await self._dialer.dial(destination, policies)
        host = str(destination.host)
        context = self._context(host) if urlsplit(url).scheme == "https" else None
        try:
            return await connect(connection, context, host)
        except OSError as error:
            raise FetchError(f"{destination} does not answer: {error}") from None

    def _context(self, host: str) -> ssl.SSLContext:
        if host not in self._unverified:
            return self._trusted
        context = client_context("")
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context

    def judge(self, url: str, policies: tuple[Policy, ...]) -> None:
        """Whether policies allow the host of `url`, by its name at least. Raises RefusedError."""
        destination = _destination(url)
        _, by_address = self._dialer.judge(destination, policies)
        if not isinstance(destination.host, str):
            self._dialer.judge_address(destination, destination.host, by_address)

    async def check(self, url: str, policies: tuple[Policy, ...]) -> None:
        """Whether policies allow a connection to the host of `url`, for what is had without one.

        Raises FetchError, RefusedError, UnreachableError.
        """
        await self._dialer.check(_destination(url), policies)


def _destination(url: str) -> Destination:
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise FetchError(f"{url[:200]!r} is no address of a file")
    try:
        return Destination(parse_host(parts.hostname), parts.port or _PORTS[parts.scheme])
    except (BadHostError, ValueError):
        raise FetchError(f"{url[:200]!r} is no address of a file") from None


async def _ask(peer: Peer, url: str, headers: Mapping[str, str]) -> Answer:
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    host = parts.netloc.rpartition("@")[2]
    fields = [("Host", host), ("Connection", "close"), *headers.items()]
    try:
        async with asyncio.timeout(_QUIET_SECONDS):
            await peer.send(h11.Request(method="GET", target=target, headers=fields))
            await peer.send(h11.EndOfMessage())
            event = await peer.receive()
            while isinstance(event, h11.InformationalResponse):
                event = await peer.receive()
    except (OSError, TimeoutError, h11.ProtocolError) as error:
        raise FetchError(f"{host} does not answer: {error}") from None
    if not isinstance(event, h11.Response):
        raise FetchError(f"{host} gave no answer")
    return Answer(peer, event, url)


def origin_of(url: str) -> str:
    """``scheme://host:port`` of an address."""
    parts = urlsplit(url)
    try:
        port = parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError:
        port = 0
    host = (parts.hostname or "").lower()
    with contextlib.suppress(ValueError):
        host = str(ipaddress.ip_address(host))
    return f"{parts.scheme}://{host}:{port}"
