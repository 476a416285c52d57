"""Raw bytes between a client and a guest, after both have left HTTP for something else (WebSocket)."""

import asyncio

from ringfence.server.guest_http import GuestConnection, ResponseHead
from ringfence.server.headers import to_client
from ringfence.server.protocol import ClientConnection, RawSink


class _GuestSide(asyncio.Protocol):
    """The guest's end: what it sends goes to the client, at the client's pace."""

    def __init__(self, client: asyncio.Transport, ended: asyncio.Event) -> None:
        self._client = client
        self._ended = ended

    def data_received(self, data: bytes) -> None:
        self._client.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._client.close()
        self._ended.set()

    def pause_writing(self) -> None:
        _pause(self._client)

    def resume_writing(self) -> None:
        _resume(self._client)


async def splice(client: ClientConnection, guest: GuestConnection, head: ResponseHead) -> None:
    """Pass the guest's 101 to the client, then bytes both ways until either side ends."""
    guest_transport, early = guest.detach()
    client_transport = client.transport
    ended = asyncio.Event()
    lines = [b"HTTP/1.1 101 Switching Protocols", b"connection: Upgrade", b"upgrade: websocket"]
    lines += [b"%b: %b" % header for header in to_client(head.status, head.headers)]
    client_transport.write(b"\r\n".join(lines) + b"\r\n\r\n" + early)
    guest_transport.set_protocol(_GuestSide(client_transport, ended))
    client.take_over(
        RawSink(
            data=guest_transport.write,
            lost=guest_transport.abort,
            pause=lambda: _pause(guest_transport),
            resume=lambda: _resume(guest_transport),
        )
    )
    _resume(guest_transport)
    try:
        await ended.wait()
    finally:
        guest_transport.abort()
        client_transport.close()


def _pause(transport: asyncio.Transport) -> None:
    if not transport.is_closing():
        transport.pause_reading()


def _resume(transport: asyncio.Transport) -> None:
    if not transport.is_closing():
        transport.resume_reading()
