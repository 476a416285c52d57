"""The package mirror's address in the sandbox: what connects there is passed on to the host."""

import asyncio
import contextlib
import socket

from ringfence.guest.egress.gate import Gate, GateClosedError

PORT = 3129


def serve(gate: Gate) -> None:
    """Start serving on `PORT`, for good."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setblocking(False)
    listener.bind(("127.0.0.1", PORT))
    listener.listen(128)

    def accept() -> None:
        with contextlib.suppress(OSError, GateClosedError):
            connection, _ = listener.accept()
            gate.hand_over_to_mirror(connection)

    asyncio.get_running_loop().add_reader(listener, accept)
