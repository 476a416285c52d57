"""The kernel's end of the control channel: one JSON object per line, both ways, over a stream socket."""

import json
import socket
import threading
from collections import deque
from typing import Any

from .interrupts import Interrupts

MAX_LINE = 16 * 1024 * 1024
"""Bytes one message may have. Longer ones are refused here, and by the guest."""

_ANCILLARY = socket.CMSG_SPACE(4 * 4)
_CLOEXEC = socket.MSG_CMSG_CLOEXEC

Message = dict[str, Any]


class Channel:
    """Messages over `connection`. Sending may happen from any thread; receiving only from the main one.

    The socket stays blocking, because the guest always reads; receiving asks with ``MSG_DONTWAIT``.
    """

    def __init__(self, connection: socket.socket, interrupts: Interrupts) -> None:
        self._connection = connection
        self._interrupts = interrupts
        self._lock = threading.RLock()
        self._partial = bytearray()
        self._received: deque[Message] = deque()
        self._descriptors: deque[int] = deque()
        self._acknowledged = False
        self.closed = False

    def fileno(self) -> int:
        """The socket's descriptor, to wait on."""
        return self._connection.fileno()

    def send(self, message: Message) -> None:
        """Write one message whole: an interrupt that arrives meanwhile waits until it is out.

        Raises ValueError when the message is longer than `MAX_LINE` or not JSON.
        """
        line = json.dumps(message, allow_nan=False).encode("ascii") + b"\n"
        if len(line) > MAX_LINE:
            raise ValueError(f"a message of {len(line)} bytes is longer than the limit of {MAX_LINE}")
        with self._interrupts.held(), self._lock:
            self._connection.sendall(line)

    def exchange(self, message: Message) -> None:
        """Send a message and wait until the guest has dealt with it, so that what is printed next comes after
        it.

        Only for the main thread, and only during a cell: the guest acknowledges each message of a cell.
        """
        with self._interrupts.held():
            self.send(message)
            while not self._acknowledged and not self.closed:
                self._receive(0)
            self._acknowledged = False

    def take(self) -> Message | None:
        """The oldest message that has arrived and was not taken yet, or None."""
        return self._received.popleft() if self._received else None

    def take_only(self, *operations: str) -> Message | None:
        """The oldest message with one of these operations, whatever came before it; None if there is none."""
        for message in self._received:
            if message["op"] in operations:
                self._received.remove(message)
                return message
        return None

    def take_descriptor(self) -> int | None:
        """The oldest descriptor that came with a message and was not taken yet."""
        return self._descriptors.popleft() if self._descriptors else None

    def receive(self) -> bool:
        """Read what there is without waiting; False when nothing more can come now."""
        try:
            with self._interrupts.held():
                return self._receive(socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False

    def _receive(self, flags: int) -> bool:
        try:
            data, ancillary, _, _ = self._connection.recvmsg(1 << 18, _ANCILLARY, flags | _CLOEXEC)
        except ConnectionResetError:
            data, ancillary = b"", []
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self._descriptors += memoryview(payload).cast("i")
        if not data:
            self.closed = True
            return False
        self._partial += data
        if b"\n" not in data:
            return True
        *lines, rest = self._partial.split(b"\n")
        self._partial = bytearray(rest)
        for message in map(json.loads, lines):
            if message["op"] == "ack":
                self._acknowledged = True
            else:
                self._received.append(message)
        return True

    def wait(self) -> Message | None:
        """The next message, however long it takes; None when the guest is gone."""
        while not self._received and not self.closed:
            self._receive(0)
        return self.take()

    def wait_for(self, operation: str) -> None:
        """Wait for a message with this operation; others stay for later. Also ends when the guest is gone."""
        with self._interrupts.held():
            while self.take_only(operation) is None and not self.closed:
                self._receive(0)
