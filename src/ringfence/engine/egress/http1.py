"""One end of an HTTP/1.1 conversation: a stream, and h11's parser, which takes nothing ambiguous."""

import asyncio
import contextlib
import socket
import ssl
from typing import Any

import h11

_BLOCK = 256 * 1024
_MAX_HEAD = 64 * 1024
_HANDSHAKE_SECONDS = 15.0
_CLOSE_SECONDS = 2.0

Event = Any
"""Any of h11's events; the package has no common base for them."""


class Peer:
    """`role` is ours: ``h11.SERVER`` towards a sandbox, ``h11.CLIENT`` towards the outside."""

    def __init__(self, role: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.machine = h11.Connection(role, max_incomplete_event_size=_MAX_HEAD)
        self.reader = reader
        self.writer = writer
        # To cancel a wait for the end would make the stream forget that it has one: there is one such wait.
        self.closed = asyncio.ensure_future(_until_closed(writer))

    async def receive(self) -> Event:
        """The next event. Raises h11.RemoteProtocolError, OSError."""
        while True:
            event = self.machine.next_event()
            if event is not h11.NEED_DATA:
                return event
            self.machine.receive_data(await self.reader.read(_BLOCK))

    async def send(self, event: Event) -> None:
        """Send an event, as fast as the other side takes it. Raises h11.LocalProtocolError, OSError."""
        data = self.machine.send(event)
        if data:
            self.writer.write(data)
            await self.writer.drain()

    @property
    def reusable(self) -> bool:
        """Whether this exchange is over and another one may follow."""
        return bool(self.machine.our_state is h11.DONE and self.machine.their_state is h11.DONE)

    async def close(self) -> None:
        """Send what is waiting, and close. Its socket must not be closed by anybody else."""
        self.writer.close()
        try:
            await asyncio.wait({self.closed}, timeout=_CLOSE_SECONDS)
        finally:
            if not self.closed.done():
                self.writer.transport.abort()


async def _until_closed(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def accept(connection: socket.socket, context: ssl.SSLContext | None) -> Peer:
    """The server's end of a connection, which owns it from now on. Raises OSError (ssl.SSLError is one)."""
    loop = asyncio.get_running_loop()
    connection.setblocking(False)
    reader = asyncio.StreamReader(limit=_BLOCK)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.connect_accepted_socket(
        lambda: protocol, connection, ssl=context,
        ssl_handshake_timeout=_HANDSHAKE_SECONDS if context else None,
    )  # fmt: skip
    return Peer(h11.SERVER, reader, asyncio.StreamWriter(transport, protocol, reader, loop))


async def connect(connection: socket.socket, context: ssl.SSLContext | None, host: str) -> Peer:
    """The client's end of a connection that stands, which owns it from now on; with a context, over TLS to
    `host`. Raises OSError.
    """
    connection.setblocking(False)
    reader, writer = await asyncio.open_connection(
        sock=connection, limit=_BLOCK, ssl=context, server_hostname=host if context else None,
        ssl_handshake_timeout=_HANDSHAKE_SECONDS if context else None,
    )  # fmt: skip
    return Peer(h11.CLIENT, reader, writer)


def client_context(roots: str) -> ssl.SSLContext:
    """A context that trusts `roots` (PEM) and checks names, for HTTP/1.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if roots:
        context.load_verify_locations(cadata=roots)
    context.set_alpn_protocols(["http/1.1"])
    return context


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Bytes from one stream to another until the end."""
    while data := await reader.read(_BLOCK):
        writer.write(data)
        await writer.drain()
