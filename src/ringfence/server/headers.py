"""Which headers cross the proxy, in each direction."""

import re
from collections.abc import Callable, Iterable

Headers = list[tuple[bytes, bytes]]

ENVD_PORT = 49983
INTERPRETER_PORT = 49999
GUEST_PORTS = frozenset({ENVD_PORT, INTERPRETER_PORT})
"""Ports that the guest itself serves; on all others user code listens."""

# RFC 9110, 7.6.1, and the older ones that proxies still remove. Expect is answered by this server.
_HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"expect",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
_ALWAYS_STRIPPED = frozenset((b"x-api-key", b"e2b-sandbox-port", b"content-length"))
_STRIPPED_FOR_USERS = frozenset((b"x-access-token", b"e2b-traffic-access-token", b"e2b-sandbox-id"))
_VALID_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_OUR_KEY = re.compile(rb"\be2b_[0-9a-f]{16,}|\bsk_e2b_[0-9a-f]{16,}")
_OUR_COOKIE = re.compile(rb"^\s*(?:__Host-|__Secure-)?ringfence[_-]", re.IGNORECASE)


def named_by_connection(headers: Iterable[tuple[bytes, bytes]]) -> set[bytes]:
    """The headers that ``Connection`` declares to be for this hop only."""
    return {
        token.strip().lower()
        for name, value in headers
        if name == b"connection"
        for token in value.split(b",")
    }


def _no_key(_: bytes) -> bool:
    return False


def to_guest(
    headers: Headers, port: int, mask_host: str | None, has_key: Callable[[bytes], bool] = _no_key
) -> Headers:
    """The request headers to send on. Credentials of the control plane never reach a sandbox, and user code
    does not see those of envd either.

    has_key: whether a value has a key of this server in it: such a header is dropped on user ports.
    mask_host: the value ``Host`` gets on user ports, with ``${PORT}`` replaced.
    """
    dropped = named_by_connection(headers) | _HOP_BY_HOP | _ALWAYS_STRIPPED
    if port in GUEST_PORTS:
        kept = [(n, v) for n, v in headers if n not in dropped]
        return [*kept, (b"e2b-sandbox-port", str(port).encode())]
    dropped |= _STRIPPED_FOR_USERS
    kept = []
    for name, value in headers:
        if name in dropped or (name == b"authorization" and _OUR_KEY.search(value)) or has_key(value):
            continue
        if name == b"host" and mask_host is not None:
            value = mask_host.replace("${PORT}", str(port)).encode()
        if name == b"cookie":
            value = b";".join(part for part in value.split(b";") if not _OUR_COOKIE.match(part)).strip()
            if not value:
                continue
        kept.append((name, value))
    return kept


def to_client(status: int, headers: Headers) -> Headers:
    """The response headers to send on, without what is not a valid header.

    A sandbox can set no cookie of the control plane's.
    """
    dropped = named_by_connection(headers) | _HOP_BY_HOP
    if status in (101, 204, 304):
        dropped |= {b"content-length"}
    return [
        (name, value)
        for name, value in headers
        if name not in dropped
        and _VALID_NAME.fullmatch(name)
        and not _BAD_VALUE.search(value)
        and not (name == b"set-cookie" and _OUR_COOKIE.match(value))
    ]
