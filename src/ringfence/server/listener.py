"""The server's listening socket, and what it may be bound to."""

import errno
import ipaddress
import socket

from ringfence.core.errors import ConfigurationError

_BACKLOG = 1024


def bind(host: str, port: int) -> socket.socket:
    """A TCP socket bound to `host` and `port` (0: any free port); it does not listen yet.

    Raises ConfigurationError when the address cannot be had; the message says why.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {host}: {error.strerror or error}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ConfigurationError(_why(error, host, port)) from None
    return listener


def listen(listener: socket.socket) -> None:
    """Start to take connections."""
    listener.listen(_BACKLOG)
    listener.setblocking(False)


def url_of(listener: socket.socket, scheme: str = "http") -> str:
    """The URL of a bound socket; one that is bound to every address is named by its loopback."""
    host, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(host.partition("%")[0])
    if address.is_unspecified:
        host = "127.0.0.1" if address.version == 4 else "::1"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine can reach the socket."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def _why(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use; choose another with --port (0 takes any free one)"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} is not permitted; ports below 1024 need privileges"
    return f"cannot listen on {host} port {port}: {error.strerror or error}"
