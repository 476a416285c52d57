"""A connection to a host that has rules: opened when it speaks HTTP, passed through when it does not."""

import asyncio
import socket
from collections.abc import Callable

from ringfence.engine.egress.dialer import Destination
from ringfence.engine.egress.inspection import ForgedNameError, Inspection
from ringfence.engine.egress.opened import OpenedConnection
from ringfence.engine.egress.protocols import first_protocol
from ringfence.engine.egress.relay import Relay, close

Refused = Callable[[str], None]


async def serve_ruled(
    opened: OpenedConnection,
    destination: Destination,
    near: socket.socket,
    outside: socket.socket,
    inspector: Inspection | None,
    refused: Refused,
) -> None:
    """Serve one connection until it closes: `near` leads to the sandbox, `outside` to the host."""
    try:
        protocol = await first_protocol(near, outside, destination.port)
    except BaseException:
        for end in (near, outside):
            close(end, reset=True)
        raise
    if protocol is None:
        await _pass_through(destination, near, outside, inspector, refused)
    else:
        await opened.serve(near, outside, secure=protocol == "tls")


async def _pass_through(
    destination: Destination,
    near: socket.socket,
    outside: socket.socket,
    inspector: Inspection | None,
    refused: Refused,
) -> None:
    over = asyncio.Event()

    def ended(error: Exception | None) -> None:
        if isinstance(error, ForgedNameError):
            refused(forged(destination, error))
        over.set()

    relay = Relay(near, outside, inspector, ended)
    relay.start(b"")
    try:
        await over.wait()
    finally:
        relay.abort()


def forged(destination: Destination, error: ForgedNameError) -> str:
    """The sentence about a connection that is for another name than it was allowed for."""
    return (
        f"{destination} was refused in the middle: {error}; a rule for a name is for that name alone, "
        "so allow what is meant in allowOut"
    )
