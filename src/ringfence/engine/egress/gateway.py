"""One sandbox's way out: its channel, its connections, its limits and its account.

Everything that comes over the channel is said by code that may be hostile. A message that no guest of ours
would send ends the sandbox's network.
"""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from ringfence.engine.egress.dialer import Destination, Dialer, RefusedError, UnreachableError
from ringfence.engine.egress.hosts import BadHostError, IPAddress, parse_host
from ringfence.engine.egress.inspection import ForgedNameError, Inspection
from ringfence.engine.egress.policy import Policy
from ringfence.engine.egress.relay import Relay, close
from ringfence.engine.egress.settings import NetworkSettings
from ringfence.engine.zygote import channel

_MAX_PENDING = 128
_QUIET_SECONDS = 5.0
_MOST_REPORTS = 60
_REPORT_SECONDS = 60.0
_MOST_CONTACTS = 200
_MAX_TEXT = 64 * 1024

Report = Callable[[str, str], None]
"""Takes a level (``warning`` or ``info``) and a sentence."""


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


class Gateway:
    """Serves one sandbox until its channel closes or `close` is called."""

    def __init__(
        self,
        end: socket.socket,
        policy: Policy,
        ceiling: Policy,
        dialer: Dialer,
        settings: NetworkSettings,
        report: Report,
    ) -> None:
        end.setblocking(False)
        self._channel = end
        self._policy = policy
        self._ceiling = ceiling
        self._dialer = dialer
        self._most = settings.connections
        self._budget = _Budget(settings.connections_per_second)
        self._reports = _Reports(report)
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: set[_Connection] = set()
        self._closed = False
        self.usage = Usage()
        self._loop.add_reader(end, self._readable)

    def set_policy(self, policy: Policy) -> None:
        """Put another policy in force, for connections that stand as well."""
        self._policy = policy
        for connection in list(self._connections):
            try:
                _, by_address = self._dialer.judge(connection.destination, self._policies)
                self._dialer.judge_address(connection.destination, connection.address, by_address)
            except RefusedError as error:
                self._refused(str(error))
                if connection.relay is not None:
                    connection.relay.abort()

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
        self._loop.remove_reader(self._channel)
        self._channel.close()
        for task in self._tasks:
            task.cancel()
        for connection in list(self._connections):
            if connection.relay is not None:
                connection.relay.abort()

    @property
    def _policies(self) -> tuple[Policy, ...]:
        return (self._policy, self._ceiling)

    def _readable(self) -> None:
        try:
            message, fds = channel.receive(self._channel)
        except BlockingIOError:
            return
        except (channel.ChannelClosedError, ValueError, OSError):
            self.close()
            return
        connection = self._connection_of(fds)
        try:
            work = self._work(message, connection)
        except (KeyError, TypeError, ValueError, ArithmeticError):
            work = None
        if work is None:
            if connection is not None:
                close(connection, reset=True)
            self.close()
            return
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @staticmethod
    def _connection_of(fds: list[int]) -> socket.socket | None:
        """The one TCP socket among the descriptors, if it is one."""
        if len(fds) == 1:
            with contextlib.suppress(OSError):
                connection = socket.socket(fileno=fds[0])
                fds.clear()
                if (connection.family, connection.type) == (socket.AF_INET, socket.SOCK_STREAM):
                    return connection
                connection.close()
        channel.close_all(fds)
        return None

    def _work(
        self, message: dict[str, Any], connection: socket.socket | None
    ) -> Coroutine[Any, Any, None] | None:
        if message["op"] == "name" and connection is None:
            return self._name(int(message["id"]), _text(message, "name", 300))
        if message["op"] == "open" and connection is not None:
            host, port = _text(message, "host", 300), int(message["port"])
            texts = [_text(message, key, _MAX_TEXT).encode("latin-1") for key in ("ok", "no", "head")]
            return self._open(connection, host, port, *texts)
        return None

    # Names

    async def _name(self, number: int, text: str) -> None:
        verdict = "refused"
        try:
            if len(self._tasks) > _MAX_PENDING or not self._budget.take():
                verdict = "failed"
            else:
                host = parse_host(text)
                known = isinstance(host, str) and await self._dialer.look_up(host, self._policies)
                verdict = "ok" if known else "none"
        except BadHostError:
            verdict = "none"
        except RefusedError as error:
            self._refused(str(error))
        self._send({"id": number, "verdict": verdict})

    # Connections

    async def _open(
        self, inside: socket.socket, host: str, port: int, ok: bytes, no: bytes, head: bytes
    ) -> None:
        try:
            destination = self._destination(host, port)
            outside, address, held = await self._dialer.dial(destination, self._policies)
        except (RefusedError, UnreachableError) as error:
            if isinstance(error, RefusedError):
                self._refused(str(error))
            else:
                self._note("info", str(error))
            _decline(inside, no)
            return
        except asyncio.CancelledError:
            close(inside, reset=True)
            raise
        self._relay(_Connection(destination, address), inside, outside, held, ok, head)

    def _destination(self, host: str, port: int) -> Destination:
        if not 0 < port < 65536:
            raise RefusedError(f"port {port} was refused: there is none of that number")
        try:
            destination = Destination(parse_host(host), port)
        except BadHostError as error:
            raise RefusedError(f"a connection was refused: {error}") from None
        if len(self._connections) + len(self._tasks) > self._most:
            raise RefusedError(f"{destination} was refused: a sandbox may have {self._most} connections")
        if not self._budget.take():
            raise RefusedError(f"{destination} was refused: too many connections in a short time")
        return destination

    def _relay(
        self,
        connection: _Connection,
        inside: socket.socket,
        outside: socket.socket,
        held: bool,
        ok: bytes,
        head: bytes,
    ) -> None:
        name = connection.destination.host
        inspector = Inspection(name, connection.destination.port) if held and isinstance(name, str) else None
        try:
            if ok:
                inside.send(ok, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            connection.relay = Relay(inside, outside, inspector, lambda error: self._ended(connection, error))
        except OSError:
            close(inside, reset=True)
            close(outside, reset=True)
            return
        self._connections.add(connection)
        self._reports.contact(connection.destination)
        self.usage.connections += 1
        connection.relay.start(head)

    def _ended(self, connection: _Connection, error: Exception | None) -> None:
        self._connections.discard(connection)
        if connection.relay is not None:
            self.usage.bytes_sent += connection.relay.sent
            self.usage.bytes_received += connection.relay.received
        if isinstance(error, ForgedNameError):
            self._refused(f"{connection.destination} was refused in the middle: {error}")

    # Telling

    def _refused(self, sentence: str) -> None:
        self.usage.refused += 1
        self._note("warning", sentence)

    def _note(self, level: str, sentence: str) -> None:
        if self._reports.give(level, sentence):
            self._send({"note": sentence})

    def _send(self, message: dict[str, Any]) -> None:
        if self._closed:
            return
        with contextlib.suppress(OSError):  # a guest that does not read gets no answers
            self._channel.send(json.dumps(message).encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def _text(message: dict[str, Any], key: str, most: int) -> str:
    value = message[key]
    if not isinstance(value, str) or len(value) > most:
        raise TypeError(key)
    return value


def _decline(inside: socket.socket, answer: bytes) -> None:
    if answer:
        with contextlib.suppress(OSError):
            inside.send(answer, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    close(inside, reset=not answer)


class _Budget:
    """So many per second on average, and a burst of five seconds' worth."""

    def __init__(self, per_second: int) -> None:
        self._rate = per_second
        self._left = float(per_second * 5)
        self._at = time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self._left = min(self._rate * 5.0, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class _Reports:
    """Passes sentences on, but not the same one twice at once, and not more than anybody would read."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._last: dict[str, float] = {}
        self._since = time.monotonic()
        self._count = 0
        self._contacts: set[Destination] = set()

    def contact(self, destination: Destination) -> None:
        """Note the first connection to each destination."""
        if destination not in self._contacts and len(self._contacts) < _MOST_CONTACTS:
            self._contacts.add(destination)
            self._report("info", f"reached {destination}")

    def give(self, level: str, sentence: str) -> bool:
        """Whether the sentence went out."""
        now = time.monotonic()
        if now - self._since > _REPORT_SECONDS:
            self._since, self._count = now, 0
            self._last.clear()
        if now - self._last.get(sentence, -_QUIET_SECONDS) < _QUIET_SECONDS or self._count > _MOST_REPORTS:
            return False
        self._last[sentence] = now
        self._count += 1
        if self._count > _MOST_REPORTS:
            sentence = "more was refused; the next minute's refusals are listed again"
        self._report(level, sentence)
        return True
