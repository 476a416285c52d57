"""What a sandbox may reach: E2B's rules, for a tenant and for the operator alike.

E2B's semantics: everything is allowed unless denied; an allow rule beats a deny rule; ``denyOut`` takes
addresses and blocks only; names in ``allowOut`` need everything else denied. A name rule is for ports 80 and
443, a block for every port. Ours beyond that: ``host:port`` and ``host:*`` in ``allowOut``, and ``@packages``
for the hosts of the package indexes this machine uses.

Whatever a policy says, addresses of `addresses` are refused unless the operator named them.
"""

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ringfence.engine.egress.hosts import BadHostError, IPAddress, IPNetwork, parse_host

EVERYTHING = "0.0.0.0/0"
PACKAGES = "@packages"
_WEB = frozenset((80, 443))
_MAX_RULES = 512
_OPERATORS_PLACE = "RINGFENCE_NETWORK_CEILING, which is the operator's to change"
_ALL = frozenset((EVERYTHING, "::/0"))

Packages = Iterable[tuple[str, int]]


class PolicyError(ValueError):
    """Rules that make no sense; the message says which and why."""


@dataclass(frozen=True)
class NameRule:
    """Names to allow: exactly `name`, or with `below` all names below it; ``*`` is any name."""

    text: str
    name: str
    below: bool
    ports: frozenset[int] | None

    def covers(self, host: str) -> bool:
        """Whether a name is meant, whatever the port."""
        if self.name == "*":
            return True
        return host.endswith("." + self.name) if self.below else host == self.name


@dataclass(frozen=True)
class BlockRule:
    """Addresses, at some ports or (None) at all."""

    text: str
    network: IPNetwork
    ports: frozenset[int] | None = None

    def covers(self, address: IPAddress, port: int) -> bool:
        """Whether an address and port is meant. ``0.0.0.0/0`` is every address of both versions."""
        if self.ports is not None and port not in self.ports:
            return False
        if self.network.prefixlen == 0:
            return True
        return address.version == self.network.version and address in self.network


@dataclass(frozen=True)
class Verdict:
    """`allowed`, and by what: a name rule makes the connection be held to that name. `reason`: why not."""

    allowed: bool
    by_name: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Policy:
    """One set of rules. `label` is what refusals call it, `place` where what it lacks would have to be."""

    names: tuple[NameRule, ...] = ()
    blocks: tuple[BlockRule, ...] = ()
    denied: tuple[BlockRule, ...] = ()
    label: str = "the sandbox's network policy"
    place: str = "allowOut"

    @property
    def denies_all(self) -> bool:
        """Whether what is not allowed is denied."""
        return any(rule.network.prefixlen == 0 for rule in self.denied)

    @property
    def ipv4_only(self) -> bool:
        """Whether a destination's other address could be a way around a denied block."""
        return bool(self.denied) and not self.denies_all

    @property
    def has_packages(self) -> bool:
        """Whether ``@packages`` is allowed: from the mirror, the indexes' files too, wherever they are."""
        return any(rule.text == PACKAGES for rule in self.names)

    def may_name(self, host: str) -> bool:
        """Whether a connection to this name could be allowed, so that looking it up may leave the machine.

        A block does not count: if it did, anything could be told to the world in the names asked for.
        """
        return not self.denies_all or any(rule.covers(host) for rule in self.names)

    def judge_name(self, host: str, port: int) -> Verdict:
        """Whether a name is allowed as such. If not, its addresses may still be (`judge_address`)."""
        meant = [rule for rule in self.names if rule.covers(host)]
        for rule in meant:
            if rule.ports is None or port in rule.ports:
                return Verdict(True, by_name=rule.name != "*")
        if meant:
            return Verdict(
                False,
                reason="a rule for a name is for ports 80 and 443; "
                f"allow {host}:{port} in {self.place} for this one",
            )
        return Verdict(
            False, reason=f"allow it with {host if port in _WEB else f'{host}:{port}'} in {self.place}"
        )

    def judge_address(self, address: IPAddress, port: int) -> Verdict:
        """Whether an address is allowed."""
        if any(rule.covers(address, port) for rule in self.blocks):
            return Verdict(True)
        for rule in self.denied:
            if rule.covers(address, port):
                reason = f"denyOut has {rule.text}; allow it with {address} in {self.place}"
                return Verdict(False, reason=reason)
        return Verdict(True)


def parse_policy(
    allow: Iterable[str], deny: Iterable[str], internet: bool | None, packages: Packages, label: str = ""
) -> Policy:
    """A policy from E2B's fields. `internet` is ``allow_internet_access``; `packages` is for ``@packages``.

    Raises PolicyError.
    """
    allow, deny = list(allow), list(deny)
    if len(allow) + len(deny) > _MAX_RULES:
        raise PolicyError(f"more than {_MAX_RULES} network rules")
    denied = tuple(_block(text, "denyOut") for text in deny)
    if internet is False:
        denied = (*denied, _block(EVERYTHING, "denyOut"))
    names: list[NameRule] = []
    blocks: list[BlockRule] = []
    for text in allow:
        if text == PACKAGES:
            names += (NameRule(PACKAGES, host, False, frozenset((port,))) for host, port in packages)
            continue
        rule = _allowed(text)
        (names if isinstance(rule, NameRule) else blocks).append(rule)  # type: ignore[arg-type]
    if any(text in _ALL for text in allow):
        denied = ()
    place = _OPERATORS_PLACE if label else Policy.place
    policy = Policy(tuple(names), tuple(blocks), denied, label or Policy.label, place)
    if names and not policy.denies_all and not any(text in _ALL for text in allow):
        raise PolicyError(
            f"when allowOut has names, denyOut must have '{EVERYTHING}': everything else is allowed otherwise"
        )
    return policy


def preset(name: str, packages: Packages, label: str = "") -> Policy:
    """The policy of `preset_fields`. Raises PolicyError."""
    fields = preset_fields(name)
    return parse_policy(fields["allow"], fields["deny"], fields["internet"], packages, label)


def preset_fields(name: str) -> dict[str, Any]:
    """``none``, ``packages`` or ``internet``, or entries of ``allowOut`` separated by commas, as fields."""
    if name == "internet":
        return {"allow": [], "deny": [], "internet": True}
    entries = [part.strip() for part in name.split(",") if part.strip()]
    allow = [] if name == "none" else [PACKAGES if entry == "packages" else entry for entry in entries]
    return {"allow": allow, "deny": [EVERYTHING], "internet": None}


def from_fields(fields: Mapping[str, Any], packages: Packages) -> Policy:
    """A tenant's policy as the engine sends it: ``{"allow": […], "deny": […], "internet": …}``."""
    return parse_policy(fields["allow"], fields["deny"], fields["internet"], packages)


def _allowed(text: str) -> NameRule | BlockRule:
    network = _network(text)
    if network is not None:
        return BlockRule(text, network)
    host, ports = _split_port(text)
    network = _network(host)
    if network is not None:
        return BlockRule(text, network, None if ports == _ANY_PORT else ports)
    below = host.startswith("*.")
    name = host.removeprefix("*.")
    if name != "*":
        try:
            parsed = parse_host(name)
        except BadHostError:
            parsed = None
        if not isinstance(parsed, str):
            raise PolicyError(f"allowOut: {text[:100]!r} is no address, block or host name")
        name = parsed
    return NameRule(text, name, below, None if ports == _ANY_PORT else ports or _WEB)


_ANY_PORT = frozenset((0,))


def _split_port(text: str) -> tuple[str, frozenset[int] | None]:
    host, colon, port = text.rpartition(":")
    if not colon:
        return text, None
    if port == "*":
        return host.strip("[]"), _ANY_PORT
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise PolicyError(f"allowOut: {text[:100]!r} has no valid port")
    return host.strip("[]"), frozenset((int(port),))


def _network(text: str) -> IPNetwork | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _block(text: str, field: str) -> BlockRule:
    network = _network(text)
    if network is None:
        raise PolicyError(f"{field}: {text[:100]!r} is no IP address or CIDR block, which is all it takes")
    return BlockRule(text, network)
