"""How the host's connections reach the guest: sockets it may accept on, or connections passed in one by one.

A process of the same kernel as the host is given listening sockets. Inside gVisor a listening socket of the
host is of no use, but a connected one is: there the host accepts, and passes each connection as a descriptor
over the one socket that the guest was started with.
"""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Callable
from typing import Any, Protocol

import uvicorn

from ringfence.guest import tunnel
from ringfence.guest.copies import Copies
from ringfence.guest.interpreter.pool import KernelPool
from ringfence.guest.lifeline import Lifeline

_MAX_MESSAGE = 64 * 1024
_MAX_FDS = 4
_MAX_REASON = 2000


class Doors(Protocol):
    """Where connections come from."""

    listeners: tuple[socket.socket, ...]
    """Sockets that the HTTP server accepts on itself."""

    def watch(self, kernels: KernelPool) -> None:
        """Begin to look out for what the host asks of kernels, and for its end: that of the sandbox."""

    async def open(self, server: uvicorn.Server) -> None:
        """Let connections in; `server` has started."""

    async def renew_nursery(self) -> socket.socket:
        """Have another nursery made; the socket that it listens on the other end of. Raises OSError."""


class ListeningDoors:
    """The host's listening sockets."""

    def __init__(self, http: socket.socket, tunnels: socket.socket, lifeline: Lifeline) -> None:
        self.listeners: tuple[socket.socket, ...] = (http,)
        self._tunnels = tunnels
        self._lifeline = lifeline
        self._server: asyncio.Server | None = None

    def watch(self, kernels: KernelPool) -> None:
        """Answer the launcher until its end."""
        self._lifeline.start(kernels)

    async def open(self, server: uvicorn.Server) -> None:
        """Serve tunnels; the HTTP server accepts on its own."""
        self._server = await tunnel.serve(self._tunnels)

    async def renew_nursery(self) -> socket.socket:
        """The launcher has it forked."""
        return await self._lifeline.ask_for_nursery()


class PassedDoors:
    """Connections that come as descriptors over `control`, a SEQPACKET socket, each with the word that says
    what it is: ``{"door": "http"}`` or ``{"door": "tunnel"}``. Between them comes what is
    asked of kernels; see `Copies`. Its end is the host's. opened: is called when the server has started.
    renew: starts another nursery.
    """

    def __init__(
        self,
        control: socket.socket,
        opened: Callable[[], None],
        renew: Callable[[socket.socket], None],
    ) -> None:
        self.listeners: tuple[socket.socket, ...] = ()
        self._control = control
        self._opened = opened
        self._renew = renew
        self._server: uvicorn.Server | None = None
        self._copies: Copies | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def watch(self, kernels: KernelPool) -> None:
        """Nothing yet: what comes before `open` waits in the socket."""
        self._control.setblocking(False)
        self._copies = Copies(kernels, self._say_unsaved)

    async def open(self, server: uvicorn.Server) -> None:
        """Take connections, and tell the host so."""
        self._server = server
        asyncio.get_running_loop().add_reader(self._control, self._readable)
        self._opened()
        self._control.send(b'{"ready": true}')

    async def renew_nursery(self) -> socket.socket:
        """The guest starts it itself."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._renew(theirs)
            except OSError:
                ours.close()
                raise
        return ours

    def _readable(self) -> None:
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._control, _MAX_MESSAGE, _MAX_FDS)
            except BlockingIOError:
                return
            except OSError:
                os._exit(0)
            if not data:
                os._exit(0)
            self._take(json.loads(data), fds)

    def _take(self, message: dict[str, Any], fds: list[int]) -> None:
        if self._copies is not None and self._copies.take(message, fds):
            return
        for fd in fds:
            self._enter(message.get("door"), socket.socket(fileno=fd))

    def _say_unsaved(self, reason: str) -> None:
        with contextlib.suppress(OSError):
            self._control.send(json.dumps({"unsaved": reason[:_MAX_REASON]}).encode())

    def _enter(self, door: object, connection: socket.socket) -> None:
        connection.setblocking(False)
        task = asyncio.get_running_loop().create_task(self._serve(door, connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, door: object, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        make = self._http if door == "http" else tunnel.protocol
        with contextlib.suppress(OSError):
            await loop.connect_accepted_socket(make, connection)

    def _http(self) -> asyncio.Protocol:
        server = self._server
        assert server is not None
        kind = server.config.http_protocol_class
        return kind(  # type: ignore[call-arg]
            config=server.config, server_state=server.server_state, app_state=server.lifespan.state
        )
