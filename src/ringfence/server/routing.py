"""Where a request goes: to a sandbox (by headers or by host name) or to the control plane."""

import ipaddress
import re
from dataclasses import dataclass

from ringfence.core.ids import is_sandbox_id
from ringfence.server.errors import ApiError
from ringfence.server.headers import Headers

_LABEL = re.compile(r"^([0-9]{1,5})-([a-z0-9]{20,40})$")
_HOST_PORT = re.compile(r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]*)(?::([0-9]{1,5}))?$")


@dataclass(frozen=True)
class Target:
    """A port of a sandbox."""

    sandbox_id: str
    port: int


def single(headers: Headers, name: bytes) -> str | None:
    """The value of a header that must not come twice. Raises ApiError (400) when it does."""
    values = {value for key, value in headers if key == name}
    if len(values) > 1:
        raise ApiError(400, f"the header {name.decode()} was sent more than once")
    return values.pop().decode("latin-1").strip() if values else None


def host_name(host: str) -> str:
    """The name in a ``Host`` header, in lower case, without port and brackets. Raises ApiError (400)."""
    match = _HOST_PORT.match(host)
    if match is None:
        raise ApiError(400, "the Host header is not valid")
    return match[1].strip("[]").lower().rstrip(".")


def target_of(headers: Headers, domain: str) -> Target | None:
    """The sandbox port that a request is for; None when it is for the control plane.

    domain: under which ``<port>-<sandbox id>.<domain>`` is served, without its port. ``localhost`` always is.
    """
    host = single(headers, b"host")
    name = host_name(host) if host else ""
    label, _, parent = name.partition(".")
    if parent in (domain, "localhost") and (match := _LABEL.match(label)):
        return Target(match[2], _port(match[1]))
    sandbox_id = single(headers, b"e2b-sandbox-id")
    port = single(headers, b"e2b-sandbox-port")
    if sandbox_id is None and port is None:
        return None
    if sandbox_id is None or port is None:
        raise ApiError(400, "E2b-Sandbox-Id and E2b-Sandbox-Port belong together")
    return Target(sandbox_id if is_sandbox_id(sandbox_id) else "", _port(port))


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise ApiError(400, "the sandbox port must be a number from 1 to 65535")
    return int(text)


class HostPolicy:
    """Which names the control plane answers to.

    A page of another site can make a browser send requests here under a name of its own (DNS rebinding). Such
    a name has a dot and is not ours; addresses, ``localhost`` and single-label names cannot be rebound.
    """

    def __init__(self, domain: str, allowed: tuple[str, ...]) -> None:
        self._allowed = {domain, f"api.{domain}", f"sandbox.{domain}", *(name.lower() for name in allowed)}

    def check(self, headers: Headers) -> None:
        """Refuse a foreign Host or Origin with ApiError (403)."""
        host = single(headers, b"host")
        if host is not None and not self._known(host_name(host)):
            raise ApiError(
                403, "this host name is not served; the operator may add it to RINGFENCE_ALLOWED_HOSTS"
            )
        origin = single(headers, b"origin")
        if origin is not None and not self._known_origin(origin):
            raise ApiError(403, "requests from this origin are refused")

    def _known_origin(self, origin: str) -> bool:
        scheme, separator, rest = origin.partition("://")
        if not separator or scheme not in ("http", "https"):
            return False
        match = _HOST_PORT.match(rest)
        if match is None:
            return False
        name = match[1].strip("[]").lower()
        # Pages that sandboxes serve under *.localhost are origins of their own and have no business here.
        return name in self._allowed or name == "localhost" or _is_loopback(name)

    def _known(self, name: str) -> bool:
        return "." not in name or name in self._allowed or name.endswith(".localhost") or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(name: str) -> bool:
    return _is_address(name) and ipaddress.ip_address(name).is_loopback
