"""What a connection speaks, told by its first bytes, which are left where they are."""

import asyncio
import socket
from typing import Literal

from ringfence.engine.egress.inspection import ForgedNameError, is_http

_PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT
_MAX_START = 64 * 1024
_TLS_HANDSHAKE = 22
_AGAIN_SECONDS, _LONGEST_AGAIN_SECONDS = 0.02, 1.0
_KNOWN: dict[int, Literal["tls", "http"]] = {443: "tls", 80: "http"}


async def first_protocol(
    inside: socket.socket, outside: socket.socket, port: int
) -> Literal["tls", "http"] | None:
    """``tls`` or ``http``; None for anything else, and when the server speaks first.

    On ports 80 and 443 it is what belongs there: nothing else may pass for it.
    """
    if port in _KNOWN:
        return _KNOWN[port]
    pause = _AGAIN_SECONDS
    while True:
        if await _first_readable(inside, outside) is outside:
            return None
        start = inside.recv(_MAX_START, _PEEK)
        if not start:
            return None
        if start[0] == _TLS_HANDSHAKE:
            return "tls"
        try:
            kind = is_http(start)
        except ForgedNameError:
            return "http"  # whose parser refuses it
        if kind is not None:
            return "http" if kind else None
        await asyncio.sleep(pause)  # the rest of the line; what is there stays readable meanwhile
        pause = min(2 * pause, _LONGEST_AGAIN_SECONDS)


async def _first_readable(*sockets: socket.socket) -> socket.socket:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[socket.socket] = loop.create_future()

    def readable(sock: socket.socket) -> None:
        if not future.done():
            future.set_result(sock)

    for sock in sockets:
        loop.add_reader(sock, readable, sock)
    try:
        return await future
    finally:
        for sock in sockets:
            loop.remove_reader(sock)
