"""One sandbox's way out: its policy, its connections, its limits and its account."""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from ringfence.engine.egress.dialer import Destination, Dialer, RefusedError, UnreachableError
from ringfence.engine.egress.guest_channel import (
    ConnectionAsked,
    GuestChannel,
    MirrorAsked,
    NameAsked,
    Request,
)
from ringfence.engine.egress.hosts import BadHostError, IPAddress, parse_host
from ringfence.engine.egress.inspection import ForgedNameError, Inspection
from ringfence.engine.egress.mirror.exchange import MirrorClient
from ringfence.engine.egress.mirror.service import Mirror
from ringfence.engine.egress.opened import OpenedConnection
from ringfence.engine.egress.policy import PACKAGES, Policy
from ringfence.engine.egress.relay import Relay, close
from ringfence.engine.egress.reports import Budget, Report, Reports
from ringfence.engine.egress.ruled import forged, serve_ruled
from ringfence.engine.egress.settings import NetworkSettings
from ringfence.engine.egress.transforms import Edge, edge_for

_MAX_PENDING = 128
_LOOPBACK = ipaddress.IPv4Address("127.0.0.1")


@dataclass
class Usage:
    """What a sandbox has used: connections made, bytes, and how often it was refused something."""

    connections: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    refused: int = 0


@dataclass(eq=False)
class _Connection:
    destination: Destination
    address: IPAddress
    relay: Relay | None = field(default=None)
    edge: Edge | None = None
    """What it was opened for, if it was."""
    mirror: bool = False
    """It goes to the package mirror."""


class Gateway:
    """Serves one sandbox until its channel closes or `close` is called."""

    def __init__(
        self,
        end: socket.socket,
        policy: Policy,
        ceiling: Policy,
        dialer: Dialer,
        settings: NetworkSettings,
        trusted: ssl.SSLContext,
        mirror: Mirror | None,
        report: Report,
    ) -> None:
        self._policy = policy
        self._ceiling = ceiling
        self._dialer = dialer
        self._trusted = trusted
        self._mirror_client: MirrorClient | None = None
        if mirror is not None:
            self._mirror_client = MirrorClient(mirror, lambda: self._policies, self._refused)
        self._edges: tuple[Edge, ...] = ()
        self._most = settings.connections
        self._rate = settings.connections_per_second
        self._budget = Budget(self._rate)
        self._reports = Reports(report)
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._opened: set[asyncio.Task[None]] = set()
        self._connections: set[_Connection] = set()
        self._closed = False
        self.usage = Usage()
        self._channel = GuestChannel(end, self._on_request, self._on_end)

    def set_policy(self, policy: Policy, edges: Sequence[Edge] = (), authority: str = "") -> None:
        """Put another policy in force, for connections that stand as well.

        authority: the certificate (PEM) that the sandbox has to trust for its requests to be changed.
        """
        self._policy = policy
        self._edges = tuple(edges)
        if authority:
            self._channel.send({"trust": authority})
        if self._mirror_client is not None:
            self._keep(self._mirror_client.recheck())
        for connection in list(self._connections):
            if connection.mirror:
                continue
            if not self._still_opened_alike(connection):
                if connection.relay is not None:
                    connection.relay.abort()
                continue
            try:
                _, by_address = self._dialer.judge(connection.destination, self._policies)
                self._dialer.judge_address(connection.destination, connection.address, by_address)
            except RefusedError as error:
                self._refused(str(error))
                if connection.relay is not None:
                    connection.relay.abort()

    def _still_opened_alike(self, connection: _Connection) -> bool:
        edge = edge_for(self._edges, connection.destination.host)
        return connection.edge is edge or (connection.edge is not None and connection.edge.same_host(edge))

    def account(self) -> dict[str, int]:
        """What was used, with the connections that stand."""
        relays = [connection.relay for connection in self._connections if connection.relay is not None]
        return {
            "connections": self.usage.connections,
            "open_connections": len(relays),
            "bytes_sent": self.usage.bytes_sent + sum(relay.sent for relay in relays),
            "bytes_received": self.usage.bytes_received + sum(relay.received for relay in relays),
            "refused": self.usage.refused,
        }

    def close(self) -> None:
        """End every connection and the channel."""
        if self._closed:
            return
        self._closed = True
        self._channel.close()
        for task in (*self._tasks, *self._opened):
            task.cancel()
        for connection in list(self._connections):
            if connection.relay is not None:
                connection.relay.abort()

    @property
    def _policies(self) -> tuple[Policy, ...]:
        return (self._policy, self._ceiling)

    def _on_request(self, request: Request) -> None:
        work: Coroutine[Any, Any, None]
        match request:
            case NameAsked():
                work = self._name(request)
            case ConnectionAsked():
                work = self._open(request)
            case MirrorAsked():
                work = self._packages(request.inside)
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _on_end(self, why: str) -> None:
        if why:
            self._reports.give("warning", f"the sandbox's network was closed: {why}")
        self.close()

    # Names

    async def _name(self, asked: NameAsked) -> None:
        verdict = "refused"
        try:
            if len(self._tasks) > _MAX_PENDING or not self._budget.take():
                verdict = "failed"
            else:
                host = parse_host(asked.name)
                known = isinstance(host, str) and await self._dialer.look_up(host, self._policies)
                verdict = "ok" if known else "none"
        except BadHostError:
            verdict = "none"
        except RefusedError as error:
            self._refused(str(error))
        self._channel.send({"id": asked.number, "verdict": verdict})

    # Connections

    async def _packages(self, inside: socket.socket) -> None:
        """A connection to the package mirror."""
        destination = Destination(PACKAGES, 80)
        mirror = self._mirror_client
        try:
            self._check_room(destination)
            if mirror is None:
                raise RefusedError(f"{PACKAGES} was refused: this server has no package mirror")
            mirror.judge()
        except RefusedError as error:
            self._refused(str(error))
            close(inside, reset=True)
            return
        connection = _Connection(destination, _LOOPBACK, mirror=True)
        far, near = socket.socketpair()
        connection.relay = Relay(inside, far, None, lambda error: self._ended(connection, error))
        self._keep(mirror.serve(near))
        self._begin(connection, b"")

    async def _open(self, asked: ConnectionAsked) -> None:
        try:
            destination = self._destination(asked.host, asked.port)
            outside, address, held = await self._dialer.dial(destination, self._policies)
        except (RefusedError, UnreachableError) as error:
            if isinstance(error, RefusedError):
                self._refused(str(error))
            else:
                self._note("info", str(error))
            _decline(asked.inside, asked.no)
            return
        except asyncio.CancelledError:
            close(asked.inside, reset=True)
            raise
        self._relay(_Connection(destination, address), asked, outside, held)

    def _destination(self, host: str, port: int) -> Destination:
        if not 0 < port < 65536:
            raise RefusedError(f"port {port} was refused: there is none of that number")
        try:
            destination = Destination(parse_host(host), port)
        except BadHostError as error:
            raise RefusedError(f"a connection was refused: {error}") from None
        self._check_room(destination)
        return destination

    def _check_room(self, destination: Destination) -> None:
        if len(self._connections) + len(self._tasks) > self._most:
            raise RefusedError(
                f"{destination} was refused: a sandbox may have {self._most} connections at a time; "
                "close some, or have the operator raise RINGFENCE_NETWORK_CONNECTIONS"
            )
        if not self._budget.take():
            raise RefusedError(
                f"{destination} was refused: a sandbox may open {self._rate} connections per second; "
                "slow down, or have the operator raise RINGFENCE_NETWORK_CONNECTIONS_PER_SECOND"
            )

    def _relay(
        self,
        connection: _Connection,
        asked: ConnectionAsked,
        outside: socket.socket,
        held: bool,
    ) -> None:
        inside = asked.inside
        connection.edge = edge_for(self._edges, connection.destination.host)
        inspector = _inspector(connection.destination, held)
        far = outside
        try:
            if asked.ok:
                inside.send(asked.ok, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            if connection.edge is not None:
                far = self._open_up(connection, outside, inspector)
                inspector = None
            connection.relay = Relay(inside, far, inspector, lambda error: self._ended(connection, error))
        except OSError:
            for end in (inside, far, outside):
                close(end, reset=True)
            return
        self._begin(connection, asked.head)

    def _begin(self, connection: _Connection, head: bytes) -> None:
        self._connections.add(connection)
        self._reports.contact(connection.destination)
        self.usage.connections += 1
        if connection.relay is not None:
            connection.relay.start(head)

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._opened.add(task)
        task.add_done_callback(self._opened.discard)

    def _open_up(
        self, connection: _Connection, outside: socket.socket, inspector: Inspection | None
    ) -> socket.socket:
        """Let the connection end here, and another one begin; what the sandbox's end is to be relayed to.

        The sandbox may hold its socket still and do with it what it likes, so TLS gets a socket of our own.
        """
        far, near = socket.socketpair()
        destination = connection.destination
        opened = OpenedConnection(
            destination, lambda: edge_for(self._edges, destination.host), self._trusted, self._refused
        )
        self._keep(serve_ruled(opened, destination, near, outside, inspector, self._refused))
        return far

    def _ended(self, connection: _Connection, error: Exception | None) -> None:
        self._connections.discard(connection)
        if connection.relay is not None:
            self.usage.bytes_sent += connection.relay.sent
            self.usage.bytes_received += connection.relay.received
        if isinstance(error, ForgedNameError):
            self._refused(forged(connection.destination, error))

    # Telling

    def _refused(self, sentence: str) -> None:
        self.usage.refused += 1
        self._note("warning", sentence)

    def _note(self, level: str, sentence: str) -> None:
        if self._reports.give(level, sentence):
            self._channel.send({"note": sentence})


def _inspector(destination: Destination, held: bool) -> Inspection | None:
    name = destination.host
    return Inspection(name, destination.port) if held and isinstance(name, str) else None


def _decline(inside: socket.socket, answer: bytes) -> None:
    if answer:
        with contextlib.suppress(OSError):
            inside.send(answer, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    close(inside, reset=not answer)
