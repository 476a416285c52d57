"""Opens connections to guests, and keeps idle ones for the next request."""

import asyncio
import socket
from collections import deque
from pathlib import Path
from weakref import WeakSet

from ringfence.core.descriptors import refuse_descriptors
from ringfence.engine.model import Sandbox
from ringfence.server.guest_http import GuestConnection
from ringfence.server.headers import GUEST_PORTS

CONNECT_TIMEOUT = 10.0
_MAX_IDLE = 8
_IDLE_SECONDS = 60.0
"""Much less than the hour after which the guest closes an idle connection by itself."""
_MAX_REPLY = 16
_RETRY_DELAY = 0.01

_Route = tuple[str, int]


class PortClosedError(Exception):
    """Nothing listens on the port inside the sandbox."""


class GuestGoneError(Exception):
    """The guest itself does not take connections: it is dead or dying."""


class GuestPool:
    """Idle connections by sandbox and port. The guest's own ports share their connections."""

    def __init__(self) -> None:
        self._idle: dict[_Route, deque[tuple[float, GuestConnection]]] = {}
        self._all: dict[str, WeakSet[GuestConnection]] = {}

    def take(self, sandbox: Sandbox, port: int) -> GuestConnection | None:
        """An idle connection that still stands, if there is one."""
        idle = self._idle.get(_route(sandbox, port))
        horizon = asyncio.get_running_loop().time() - _IDLE_SECONDS
        while idle:
            since, connection = idle.pop()
            if connection.reusable and since >= horizon:
                return connection
            connection.close()
        return None

    def give_back(self, sandbox: Sandbox, port: int, connection: GuestConnection) -> None:
        """Keep `connection` for later, or close it when it cannot be used again."""
        idle = self._idle.setdefault(_route(sandbox, port), deque())
        while idle and not idle[0][1].reusable:
            idle.popleft()
        if not connection.reusable or len(idle) >= _MAX_IDLE:
            connection.close()
            return
        idle.append((asyncio.get_running_loop().time(), connection))

    def forget(self, sandbox_id: str) -> None:
        """Close the idle connections to a sandbox that is gone."""
        for route in [route for route in self._idle if route[0] == sandbox_id]:
            for _, connection in self._idle.pop(route):
                connection.close()
        self._all.pop(sandbox_id, None)

    def break_off(self, sandbox_id: str) -> None:
        """Break every connection to a sandbox, those in use too."""
        connections = list(self._all.get(sandbox_id, ()))
        self.forget(sandbox_id)
        for connection in connections:
            connection.close()

    async def open(self, sandbox: Sandbox, port: int) -> GuestConnection:
        """A new connection to `port` inside. Raises PortClosedError, GuestGoneError."""
        tunnelled = port not in GUEST_PORTS
        path = sandbox.tunnel_socket if tunnelled else sandbox.http_socket
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        refuse_descriptors(sock)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await _connect(sock, path)
                if tunnelled:
                    await _ask_for_port(sock, port)
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_unix_connection(GuestConnection, sock=sock)
                self._all.setdefault(sandbox.sandbox_id, WeakSet()).add(connection)
                return connection
        except (OSError, TimeoutError) as error:
            sock.close()
            raise GuestGoneError(str(error)) from error
        except BaseException:
            sock.close()
            raise


async def _connect(sock: socket.socket, path: Path) -> None:
    """Connect. A Unix socket whose queue is full puts a connect off without saying when to go on: try again.

    (ENOENT, ECONNREFUSED and the like are raised; the caller sets the time limit.)
    """
    while True:
        try:
            sock.connect(str(path))
            return
        except BlockingIOError:
            await asyncio.sleep(_RETRY_DELAY)


async def _ask_for_port(sock: socket.socket, port: int) -> None:
    """The tunnel's handshake: one line with the port, one line in answer."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, b"%d\n" % port)
    reply = b""
    while not reply.endswith(b"\n") and len(reply) < _MAX_REPLY:
        data = await loop.sock_recv(sock, 1)
        if not data:
            raise GuestGoneError("the tunnel closed")
        reply += data
    if reply == b"ok\n":
        return
    if reply == b"refused\n":
        raise PortClosedError
    raise GuestGoneError("the tunnel broke its protocol")


def _route(sandbox: Sandbox, port: int) -> _Route:
    return (sandbox.sandbox_id, 0 if port in GUEST_PORTS else port)
