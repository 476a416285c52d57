"""The way to the host's egress: connections are handed over as descriptors, names are asked about.

The channel is an AF_UNIX SOCK_SEQPACKET socket that only PID 1 has; a message is one JSON object. To the
host: ``open`` (host, port, with the accepted connection beside it, which the host relays from there),
``packages`` (a connection for its package mirror) and
``name`` (id, name). From the host: the answer to a ``name`` (id, verdict), a ``note``, a sentence about
something that was refused, and ``trust``, the certificate of an authority that programs are to trust.
"""

import asyncio
import contextlib
import itertools
import json
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

_MAX_PACKET = 64 * 1024
_MAX_WAITING = 4096
_NAME_SECONDS = 15.0


class GateClosedError(Exception):
    """The host does not take any more: there is no network."""


class Gate:
    """The guest's end of the channel. `on_note` gets the host's sentences, `on_trust` certificates (PEM)."""

    def __init__(self, channel: socket.socket) -> None:
        channel.setblocking(False)
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[str]] = {}
        self._unsent: deque[tuple[bytes, socket.socket | None]] = deque()
        self._closed = False
        self.on_note: Callable[[str], None] = lambda _: None
        self.on_trust: Callable[[str], None] = lambda _: None
        self._loop.add_reader(channel, self._readable)

    def hand_over(
        self, connection: socket.socket, host: str, port: int, *, ok: str = "", no: str = "", head: str = ""
    ) -> None:
        """Give a connection to the host, which closes it when `host` may not be reached.

        ok, no: what the host is to write to it first, when it could and when it could not connect.
        head: what was read from it already. All three as Latin-1 text.
        """
        message = {"op": "open", "host": host, "port": port, "ok": ok, "no": no, "head": head}
        self._send(json.dumps(message).encode(), connection)

    def hand_over_to_mirror(self, connection: socket.socket) -> None:
        """Give a connection to the host's package mirror."""
        self._send(json.dumps({"op": "packages"}).encode(), connection)

    async def ask(self, name: str) -> str:
        """The host's verdict on a name: ``ok``, ``none`` (there is no such name) or ``refused``."""
        number = next(self._numbers)
        future: asyncio.Future[str] = self._loop.create_future()
        self._asked[number] = future
        try:
            self._send(json.dumps({"op": "name", "id": number, "name": name}).encode(), None)
            async with asyncio.timeout(_NAME_SECONDS):
                return await future
        finally:
            del self._asked[number]

    def _send(self, data: bytes, connection: socket.socket | None) -> None:
        if self._closed or len(self._unsent) >= _MAX_WAITING or len(data) > _MAX_PACKET:
            if connection is not None:
                connection.close()
            raise GateClosedError
        self._unsent.append((data, connection))
        if len(self._unsent) == 1:
            self._flush()

    def _flush(self) -> None:
        while self._unsent:
            data, connection = self._unsent[0]
            try:
                socket.send_fds(self._channel, [data], [connection.fileno()] if connection else [])
            except BlockingIOError:
                self._loop.add_writer(self._channel, self._flush)
                return
            except OSError:
                self._close()
                return
            self._unsent.popleft()
            if connection is not None:
                connection.close()  # the host has its own descriptor of it now
        self._loop.remove_writer(self._channel)

    def _readable(self) -> None:
        while True:
            try:
                data, fds = self._receive()
            except BlockingIOError:
                return
            except OSError:
                data, fds = b"", []
            if not data:
                self._close()
                return
            self._take(json.loads(data), fds)

    def _receive(self) -> tuple[bytes, list[int]]:
        return self._channel.recv(_MAX_PACKET), []

    def _take(self, message: dict[str, Any], fds: list[int]) -> None:
        if "note" in message:
            self.on_note(message["note"])
            return
        if "trust" in message:
            self.on_trust(message["trust"])
            return
        future = self._asked.get(message["id"])
        if future is not None and not future.done():
            future.set_result(message["verdict"])

    def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._channel)
        self._loop.remove_writer(self._channel)
        for _, connection in self._unsent:
            if connection is not None:
                with contextlib.suppress(OSError):
                    connection.close()
        self._unsent.clear()
        for future in self._asked.values():
            if not future.done():
                future.set_exception(GateClosedError())
        self._channel.close()
