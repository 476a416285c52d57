"""Addresses that no sandbox may reach unless the operator names them."""

import ipaddress
import socket

from ringfence.engine.egress.hosts import IPAddress, IPNetwork

_REFUSED: tuple[tuple[str, str], ...] = (
    ("0.0.0.0/8", "this host"),
    ("127.0.0.0/8", "the host's loopback"),
    ("10.0.0.0/8", "a private network"),
    ("172.16.0.0/12", "a private network"),
    ("192.168.0.0/16", "a private network"),
    ("100.64.0.0/10", "a shared network of providers and clouds"),
    ("169.254.0.0/16", "link-local (cloud metadata)"),
    ("192.0.0.0/24", "a reserved range"),
    ("192.0.2.0/24", "a range for documentation"),
    ("198.51.100.0/24", "a range for documentation"),
    ("203.0.113.0/24", "a range for documentation"),
    ("198.18.0.0/15", "a range for benchmarks"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "a reserved range"),
    ("::/128", "this host"),
    ("::1/128", "the host's loopback"),
    ("fc00::/7", "a private network"),
    ("fe80::/10", "link-local"),
    ("fec0::/10", "a private network"),
    ("ff00::/8", "multicast"),
    ("64:ff9b:1::/48", "a reserved range"),
    ("100::/64", "a reserved range"),
    ("2001::/23", "a reserved range"),
    ("2001:db8::/32", "a range for documentation"),
)
_TABLE: tuple[tuple[IPNetwork, str], ...] = tuple(
    (ipaddress.ip_network(network), what) for network, what in _REFUSED
)
_NEVER_PUBLIC = ("link-local", "multicast", "this host")


def why_refused(address: IPAddress) -> str | None:
    """What an address is that makes it refused, in words; None for a public one that is not this host's."""
    for network, what in _TABLE:
        if address.version == network.version and address in network:
            return what
    return "an address of this host" if is_own(address) else None


def is_internal(reason: str) -> bool:
    """Whether a reason is one that even a package index known to the operator is no excuse for."""
    return reason.startswith(_NEVER_PUBLIC)


def is_own(address: IPAddress) -> bool:
    """Whether an address is one of this host's: what is sent to it would be sent from it."""
    if address.is_loopback:
        return True
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(address), 9))  # nothing is sent: this only chooses a route
        except OSError:
            return False
        return ipaddress.ip_address(probe.getsockname()[0]) == address
