"""As much of ZeroMQ's wire protocol (ZMTP 3.0, no security) as a Jupyter client needs, over TCP.

So that a template needs no package of ours for its kernels. Specification: https://rfc.zeromq.org/spec/23/
"""

import socket
from collections import deque

_GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_MORE, _LONG, _COMMAND = 1, 2, 4
_LARGEST = 256 * 1024 * 1024
_SHORT = 255


class ProtocolError(Exception):
    """The other end does not speak ZMTP, or has gone."""


class Connection:
    """A socket of one kind (``DEALER``, ``SUB``) connected to one peer. Messages are lists of frames."""

    def __init__(self, kind: str, address: tuple[str, int], timeout: float) -> None:
        """Connect and shake hands. Raises OSError (also when that takes longer than `timeout` seconds) or
        ProtocolError.
        """
        self._socket = socket.create_connection(address, timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._partial = bytearray()
        self._frames: list[bytes] = []
        self._messages: deque[list[bytes]] = deque()
        self._ready = False
        self._socket.sendall(_GREETING)
        greeting = self._exactly(len(_GREETING))
        if greeting[0] != _GREETING[0] or greeting[10] < _GREETING[10]:
            raise ProtocolError("not a ZMTP 3 peer")
        self._send(_COMMAND, b"\x05READY" + _property("Socket-Type", kind) + _property("Identity", ""))
        while not self._ready:
            self.receive()
        if kind == "SUB":
            self._send(0, b"\x01")  # everything
        self._socket.settimeout(None)

    def fileno(self) -> int:
        """The descriptor, to wait on."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the connection; what was sent is still delivered."""
        self._socket.close()

    def send(self, frames: list[bytes]) -> None:
        """Send one message. Raises OSError."""
        for frame in frames[:-1]:
            self._send(_MORE, frame)
        self._send(0, frames[-1])

    def take(self) -> list[bytes] | None:
        """The oldest message that has arrived whole, or None."""
        return self._messages.popleft() if self._messages else None

    def receive(self) -> None:
        """Read once, waiting if there is nothing. Raises ProtocolError when the peer has gone."""
        data = self._socket.recv(1 << 18)
        if not data:
            raise ProtocolError("the connection was closed")
        self._partial += data
        while (end := self._frame()) is not None:
            del self._partial[:end]

    def _frame(self) -> int | None:
        """Deal with the first frame of what was read; where it ends, or None when it is not whole."""
        buffer = self._partial
        if len(buffer) < 2:
            return None
        flags = buffer[0]
        start = 9 if flags & _LONG else 2
        if len(buffer) < start:
            return None
        size = int.from_bytes(buffer[1:start], "big")
        if size > _LARGEST:
            raise ProtocolError(f"a frame of {size} bytes")
        if len(buffer) < start + size:
            return None
        body = bytes(buffer[start : start + size])
        if flags & _COMMAND:
            self._command(body)
        else:
            self._frames.append(body)
            if not flags & _MORE:
                self._messages.append(self._frames)
                self._frames = []
        return start + size

    def _command(self, body: bytes) -> None:
        name = body[1 : 1 + body[0]]
        if name == b"READY":
            self._ready = True
        elif name == b"ERROR":
            raise ProtocolError(body[7:].decode("latin-1"))
        elif name == b"PING":
            self._send(_COMMAND, b"\x04PONG" + body[7:])

    def _send(self, flags: int, body: bytes) -> None:
        if len(body) > _SHORT:
            head = bytes([flags | _LONG]) + len(body).to_bytes(8, "big")
        else:
            head = bytes([flags, len(body)])
        self._socket.sendall(head + body)

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self._socket.recv(size - len(data))
            if not piece:
                raise ProtocolError("the connection was closed")
            data += piece
        return bytes(data)


def _property(name: str, value: str) -> bytes:
    return bytes([len(name)]) + name.encode() + len(value).to_bytes(4, "big") + value.encode()
