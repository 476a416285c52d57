"""The syntax of destinations: names and addresses, in one canonical spelling each."""

import ipaddress
import re
import socket

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_MAX_NAME = 253
_NUMERIC = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)(?:\.(?:0x[0-9a-f]*|[0-9]+)){0,3}")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class BadHostError(ValueError):
    """Neither a name nor an address."""


def parse_host(text: str) -> str | IPAddress:
    """A name in lower case without its last dot, or an address.

    All that the C library would read as an address is one: ``127.1``, ``0x7f000001``, ``2130706433``.
    Addresses of version 6 that stand for one of version 4 become that one. Raises BadHostError.
    """
    name = text.lower().removesuffix(".")
    if ":" in name:
        return plain_address(name)
    if _NUMERIC.fullmatch(name):
        try:
            return ipaddress.IPv4Address(socket.inet_aton(name))
        except OSError:
            raise BadHostError(f"not an address: {text[:100]!r}") from None
    if len(name) > _MAX_NAME or not _NAME.fullmatch(name):
        raise BadHostError(f"not a host name: {text[:100]!r}")
    return name


def plain_address(text: str) -> IPAddress:
    """An address without disguise: mapped, 6to4 and NAT64 forms become the IPv4 address in them."""
    try:
        address = ipaddress.ip_address(text)
        if "%" in text:
            raise ValueError("a zone")
    except ValueError:
        raise BadHostError(f"not an address: {text[:100]!r}") from None
    if isinstance(address, ipaddress.IPv4Address):
        return address
    inner = address.ipv4_mapped or address.sixtofour
    if inner is not None:
        return inner
    number = int(address)
    if address in _NAT64 or 1 < number < 1 << 32:  # ::a.b.c.d is an old form; ::1 is loopback
        return ipaddress.IPv4Address(number & 0xFFFFFFFF)
    return address
