"""From a destination to a connection: judge the name, look it up, judge each address, connect to that one."""

import asyncio
import contextlib
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from ringfence.engine.egress import addresses
from ringfence.engine.egress.hosts import IPAddress
from ringfence.engine.egress.policy import BlockRule, Policy
from ringfence.engine.egress.resolver import NameNotFoundError, Resolver
from ringfence.engine.egress.settings import NetworkSettings, exceptions

_CONNECT_SECONDS = 10.0
_ASK_OPERATOR = "only the operator can allow it, with RINGFENCE_NETWORK_ALLOW_PRIVATE"


class RefusedError(Exception):
    """A destination is not allowed; the message is for the user."""


class UnreachableError(Exception):
    """A destination is allowed and does not answer."""


@dataclass(frozen=True)
class Destination:
    """What was asked for: a name or an address, and a port."""

    host: str | IPAddress
    port: int

    def __str__(self) -> str:
        text = str(self.host)
        return f"[{text}]:{self.port}" if ":" in text else f"{text}:{self.port}"


class Dialer:
    """Judges and connects, for all sandboxes. `packages`: destinations of the machine's package indexes."""

    def __init__(
        self, settings: NetworkSettings, resolver: Resolver, packages: Iterable[tuple[str, int]]
    ) -> None:
        self._resolver = resolver
        self._exceptions = exceptions(settings.allow_private)
        self._own_ports = frozenset(settings.own_ports)
        self._packages = frozenset(packages)
        self._package_hosts = frozenset(host for host, _ in self._packages)

    async def look_up(self, name: str, policies: tuple[Policy, ...]) -> bool:
        """Whether a name exists; it is only looked up when it may be reached. Raises RefusedError."""
        for policy in policies:
            if not policy.may_name(name):
                raise RefusedError(
                    f"{name} was refused by {policy.label}: {policy.judge_name(name, 443).reason}"
                )
        try:
            found = await self._resolver.addresses(name)
        except NameNotFoundError:
            return False
        reasons = [self._why_internal(address, name, None) for address in found]
        if all(reasons):
            raise RefusedError(f"{name} was refused: it is {reasons[0]}; {_ASK_OPERATOR}")
        return True

    async def dial(
        self, destination: Destination, policies: tuple[Policy, ...]
    ) -> tuple[socket.socket, IPAddress, bool]:
        """A connection, its address, and whether it is to be held to its name.

        Raises RefusedError, UnreachableError.
        """
        held, by_address = self.judge(destination, policies)
        problem: OSError | TimeoutError | None = None
        refused: RefusedError | None = None
        for address in await self._addresses(destination, policies):
            try:
                self.judge_address(destination, address, by_address)
                return await _connect(address, destination.port), address, held
            except RefusedError as error:
                refused = refused or error
            except (OSError, TimeoutError) as error:
                problem = error
        if problem is None and refused is not None:
            raise refused
        text = getattr(problem, "strerror", None) or "it does not answer"
        raise UnreachableError(f"{destination} could not be reached: {text}")

    async def check(self, destination: Destination, policies: tuple[Policy, ...]) -> None:
        """Judge a destination without connecting to it; its name is looked up if a policy is about addresses.

        Raises RefusedError, UnreachableError.
        """
        _, by_address = self.judge(destination, policies)
        judges = tuple(policy for policy in by_address if policy.denied)
        refused: RefusedError | None = None
        for address in await self._addresses(destination, policies) if judges else ():
            try:
                _judge_address(destination, address, judges)
            except RefusedError as error:
                refused = refused or error
            else:
                return
        if refused is not None:
            raise refused

    def judge(
        self, destination: Destination, policies: tuple[Policy, ...]
    ) -> tuple[bool, tuple[Policy, ...]]:
        """Judge the name: whether it is to be held to, and which policies must judge the address still.

        Raises RefusedError.
        """
        if not isinstance(destination.host, str):
            return False, policies
        held, left = False, []
        for policy in policies:
            verdict = policy.judge_name(destination.host, destination.port)
            held = held or verdict.by_name
            if verdict.allowed:
                continue
            if policy.denies_all:
                raise RefusedError(f"{destination} was refused by {policy.label}: {verdict.reason}")
            left.append(policy)
        return held, tuple(left)

    def judge_address(
        self, destination: Destination, address: IPAddress, policies: tuple[Policy, ...]
    ) -> None:
        """Judge one address of a destination. Raises RefusedError."""
        _judge_address(destination, address, policies)
        what = self._why_internal(address, destination.host, destination.port)
        if what is not None:
            raise RefusedError(f"{destination} was refused: it is {what}; {_ASK_OPERATOR}")

    def _why_internal(self, address: IPAddress, host: str | IPAddress, port: int | None) -> str | None:
        named = [rule for rule in self._exceptions if _covers(rule, address, port)]
        if port in self._own_ports and addresses.is_own(address) and not any(rule.ports for rule in named):
            return "a port of this server"
        what = addresses.why_refused(address)
        if what is None or named:
            return None
        known = (host, port) in self._packages if port is not None else host in self._package_hosts
        return None if known and not addresses.is_internal(what) else what

    async def _addresses(self, destination: Destination, policies: tuple[Policy, ...]) -> list[IPAddress]:
        if not isinstance(destination.host, str):
            return [destination.host]
        try:
            found = await self._resolver.addresses(destination.host)
        except NameNotFoundError:
            raise UnreachableError(f"{destination} could not be reached: there is no such name") from None
        ipv4_only = any(policy.ipv4_only for policy in policies)
        return [address for address in found if address.version == 4 or not ipv4_only]


def _judge_address(destination: Destination, address: IPAddress, policies: tuple[Policy, ...]) -> None:
    """What policies say of one address of a destination. Raises RefusedError."""
    for policy in policies:
        verdict = policy.judge_address(address, destination.port)
        if not verdict.allowed:
            raise RefusedError(f"{destination} was refused by {policy.label}: {verdict.reason}")


def _covers(rule: BlockRule, address: IPAddress, port: int | None) -> bool:
    return rule.covers(address, port) if port is not None else BlockRule("", rule.network).covers(address, 0)


async def _connect(address: IPAddress, port: int) -> socket.socket:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        for level, option in (
            (socket.IPPROTO_TCP, socket.TCP_NODELAY),
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        ):
            with contextlib.suppress(OSError):
                connection.setsockopt(level, option, 1)
        async with asyncio.timeout(_CONNECT_SECONDS):
            await asyncio.get_running_loop().sock_connect(connection, (str(address), port))
    except BaseException:
        connection.close()
        raise
    return connection
