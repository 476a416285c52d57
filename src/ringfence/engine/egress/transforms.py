"""Header transforms: what is changed in requests to some hosts on their way out (E2B's ``network.rules``).

The engine fills in secrets before it sends these here, so the values exist in this process, for the sandboxes
that use them, and in no sandbox.
"""

import ipaddress
import json
import os
import re
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ringfence.engine.egress.hosts import BadHostError, IPAddress, parse_host
from ringfence.engine.egress.policy import PolicyError

_MAX_HOSTS = 32
_MAX_HEADERS = 64
_MAX_BYTES = 32 * 1024
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_NOT_YOURS = frozenset(
    ("connection", "content-length", "expect", "host", "keep-alive", "proxy-authorization",
     "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade")
)  # fmt: skip
"""Headers that say where a request goes and where it ends: to set one would be a way to another host."""


@dataclass(frozen=True)
class Transform:
    """Headers to set in requests to one host. Not shown when printed: the values may be secrets.

    host: a name, ``*.name`` for the names one label below it, or an address.
    problem: why requests to it cannot be sent; a secret that is gone, for example.
    """

    host: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    problem: str = ""

    def covers(self, host: str | IPAddress) -> bool:
        """Whether a destination is meant."""
        text = str(host)
        if self.host.startswith("*."):
            return isinstance(host, str) and text.partition(".")[2] == self.host[2:]
        return text == self.host

    def apply(self, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """`headers` with these set: what the sandbox sent under the same names is dropped."""
        mine = [(name.encode(), value.encode("latin-1")) for name, value in self.headers]
        taken = {name.lower() for name, _ in mine}
        return [*((name, value) for name, value in headers if name.lower() not in taken), *mine]

    def as_fields(self) -> dict[str, Any]:
        """For the egress process, as JSON."""
        return {"host": self.host, "headers": [list(pair) for pair in self.headers], "problem": self.problem}


def parse_transforms(headers_by_host: Mapping[str, Mapping[str, str]]) -> tuple[Transform, ...]:
    """Transforms from hosts and the headers to set there. Raises PolicyError."""
    if len(headers_by_host) > _MAX_HOSTS:
        raise PolicyError(f"rules: more than {_MAX_HOSTS} hosts")
    found = [_transform(host, headers) for host, headers in headers_by_host.items()]
    check_size(found)
    return tuple(found)


def check_size(transforms: Iterable[Transform]) -> None:
    """Raises PolicyError when the headers are more than fit into what the engine sends."""
    size = sum(len(json.dumps(pair)) for one in transforms for pair in one.headers)
    if size > _MAX_BYTES:
        raise PolicyError(f"rules: the headers are larger than {_MAX_BYTES} bytes together")


def _transform(host: str, headers: Mapping[str, str]) -> Transform:
    below = host.startswith("*.")
    try:
        parsed = parse_host(host.removeprefix("*."))
    except BadHostError:
        raise PolicyError(f"rules: {host[:100]!r} is no host name or address") from None
    if below and not isinstance(parsed, str):
        raise PolicyError(f"rules: {host[:100]!r} is no host name or address")
    if len(headers) > _MAX_HEADERS:
        raise PolicyError(f"rules: more than {_MAX_HEADERS} headers for {host[:100]!r}")
    for name, value in headers.items():
        check_header(name, value)
    return Transform(f"*.{parsed}" if below else str(parsed), tuple(headers.items()))


def check_header(name: str, value: str) -> None:
    """Raises PolicyError for a header that cannot be set. The value is never repeated."""
    if not _NAME.fullmatch(name):
        raise PolicyError(f"rules: {name[:100]!r} is no name of a header")
    if name.lower() in _NOT_YOURS:
        raise PolicyError(
            f"rules: the header {name!r} cannot be set: it decides where a request goes or ends"
        )
    if not _VALUE.fullmatch(value) or value != value.strip(" \t"):
        raise PolicyError(f"rules: the value for {name!r} has characters that a header cannot have")


@dataclass(frozen=True)
class Edge:
    """One transform in force, and how to answer for its host: `context` has the certificate to show."""

    transform: Transform
    context: ssl.SSLContext

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "Edge":
        """What the engine sent: ``{"host", "headers", "problem", "certificate", "key"}``."""
        headers = tuple((str(name), str(value)) for name, value in fields["headers"])
        transform = Transform(fields["host"], headers, fields["problem"])
        return cls(transform, _server_context(transform, fields["certificate"] + fields["key"]))

    def same_host(self, other: "Edge | None") -> bool:
        """Whether connections that were opened for one may go on under the other."""
        return other is not None and other.transform.host == self.transform.host


def edge_for(edges: Iterable[Edge], host: str | IPAddress) -> Edge | None:
    """The edge that a destination has: an exact name before a wildcard."""
    meant = [edge for edge in edges if edge.transform.covers(host)]
    return min(meant, key=lambda edge: edge.transform.host.startswith("*."), default=None)


def _server_context(transform: Transform, pem: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # The ssl module reads certificates from files only; this one is in memory and has no name.
    descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, pem.encode())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)

    def named(_: ssl.SSLObject, name: str | None, __: ssl.SSLContext) -> int | None:
        return None if _may_name(transform, name) else int(ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME)

    context.sni_callback = named
    return context


def _may_name(transform: Transform, name: str | None) -> bool:
    """Whether a TLS handshake for `name` is for the host. Addresses are not named in handshakes."""
    if name is not None:
        return transform.covers(name.lower().removesuffix("."))
    try:
        ipaddress.ip_address(transform.host)
    except ValueError:
        return False
    return True
