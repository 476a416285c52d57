"""The way to the egress from inside gVisor.

A connection of the sandbox is gVisor's own: it cannot be passed to the host as a descriptor. So the host is
asked to lend one end of a socket pair, and the guest passes the bytes on between the two.
"""

import asyncio
import contextlib
import json
import os
import socket
from typing import Any

from ringfence.guest.egress.gate import Gate, GateClosedError

_MAX_PACKET = 64 * 1024
_BLOCK = 64 * 1024


class BorrowingGate(Gate):
    """A gate that asks for a connection instead of giving one away."""

    def __init__(self, channel: socket.socket) -> None:
        super().__init__(channel)
        self._inside: dict[int, socket.socket] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def hand_over(
        self, connection: socket.socket, host: str, port: int, *, ok: str = "", no: str = "", head: str = ""
    ) -> None:
        """As the base class: the connection is closed when `host` may not be reached."""
        self._borrow(connection, {"op": "open", "host": host, "port": port, "ok": ok, "no": no, "head": head})

    def hand_over_to_mirror(self, connection: socket.socket) -> None:
        """As the base class."""
        self._borrow(connection, {"op": "packages"})

    def _borrow(self, connection: socket.socket, message: dict[str, Any]) -> None:
        number = next(self._numbers)
        self._inside[number] = connection
        try:
            self._send(json.dumps({**message, "lend": number}).encode(), None)
        except GateClosedError:
            self._inside.pop(number).close()
            raise

    def _receive(self) -> tuple[bytes, list[int]]:
        data, fds, _, _ = socket.recv_fds(self._channel, _MAX_PACKET, 1)
        return data, fds

    def _take(self, message: dict[str, Any], fds: list[int]) -> None:
        if "lent" not in message:
            super()._take(message, fds)
            return
        inside = self._inside.pop(message["lent"], None)
        if inside is None or not fds:
            for fd in fds:
                os.close(fd)
            return
        task = self._loop.create_task(_pass_on(inside, socket.socket(fileno=fds.pop())))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _close(self) -> None:
        super()._close()
        for connection in self._inside.values():
            connection.close()
        self._inside.clear()


async def _pass_on(inside: socket.socket, lent: socket.socket) -> None:
    inside.setblocking(False)
    lent.setblocking(False)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_copy(inside, lent))
            group.create_task(_copy(lent, inside))
    except* OSError:
        pass
    finally:
        inside.close()
        lent.close()


async def _copy(source: socket.socket, sink: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while block := await loop.sock_recv(source, _BLOCK):
        await loop.sock_sendall(sink, block)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
