"""What the operator decides about the network of sandboxes."""

import ipaddress
import ssl
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from ringfence.core.errors import ConfigurationError
from ringfence.engine.egress.hosts import BadHostError, parse_host
from ringfence.engine.egress.policy import BlockRule, PolicyError, parse_policy, preset


@dataclass(frozen=True)
class NetworkSettings:
    """The operator's side of the policy.

    default: what a sandbox may reach when its creator says nothing; a preset (``none``, ``packages``,
    ``internet``) or entries of ``allowOut`` separated by commas.
    ceiling: what no sandbox may go past, in the same form.
    allow_private: addresses or blocks, with or without a port, that may be reached although they are private,
    reserved or this host's own, as far as a policy allows them.
    hosts: fixed addresses of names, as ``name=address``.
    own_ports: the server's own TCP ports, which are refused at every address of this host.
    extra_roots: a PEM file with authorities to trust, beside this machine's, where connections are opened.
    package_cache_mb: size of the shared cache of package files; 0: sandboxes use the indexes directly.
    connections: most connections of a sandbox at a time. connections_per_second: most new ones, on average.
    """

    default: str = "internet"
    ceiling: str = "internet"
    allow_private: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    own_ports: tuple[int, ...] = ()
    extra_roots: str = ""
    package_cache_mb: int = 4096
    connections: int = 256
    connections_per_second: int = 100

    def check(self) -> None:
        """Raises ConfigurationError for a setting that makes no sense."""
        try:
            preset(self.default, ())
            preset(self.ceiling, ())
            exceptions(self.allow_private)
            fixed_hosts(self.hosts)
            if self.extra_roots:
                ssl.create_default_context(cafile=self.extra_roots)
        except (PolicyError, ValueError, OSError) as error:
            raise ConfigurationError(f"wrong network setting: {error}") from None

    def as_dict(self) -> dict[str, Any]:
        """For the egress process, as JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "NetworkSettings":
        """What `as_dict` made."""
        plain: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
        }
        return cls(**plain)


def exceptions(entries: Iterable[str]) -> tuple[BlockRule, ...]:
    """The rules of `allow_private`. Raises PolicyError."""
    policy = parse_policy(entries, (), None, ())
    if policy.names:
        raise PolicyError(f"{policy.names[0].text!r} is no address or block")
    return policy.blocks


def fixed_hosts(entries: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Names and their addresses of `hosts`. Raises PolicyError."""
    table: dict[str, tuple[str, ...]] = {}
    for entry in entries:
        name, _, address = entry.partition("=")
        try:
            host = parse_host(name.strip())
            number = str(ipaddress.ip_address(address.strip()))
        except (BadHostError, ValueError):
            raise PolicyError(f"{entry!r} should be name=address") from None
        table[str(host)] = (*table.get(str(host), ()), number)
    return table
