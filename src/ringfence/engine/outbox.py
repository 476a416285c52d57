"""Messages for the other end of a channel, in their order, when there is room for them.

A channel that is full loses nothing: what does not fit waits here, its descriptors too.
"""

import array
import asyncio
import json
import os
import socket
from collections import deque
from collections.abc import Sequence
from typing import Any

from ringfence.engine.zygote import channel

_SEND = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class OutboxFullError(Exception):
    """More messages wait than may: the other end does not read."""


class Outbox:
    """Sends on a SEQPACKET socket without blocking. `most`: how many messages may wait; None: any number.

    Made inside of the event loop. The socket stays its owner's, who calls `close` before closing it.
    """

    def __init__(self, end: socket.socket, most: int | None = None) -> None:
        self._end = end
        self._most = most
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[bytes, list[int]]] = deque()

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send a message, now or as soon as there is room; the descriptors are duplicated.

        Raises OutboxFullError; OSError when nobody can receive it; ValueError when it is larger than
        `channel.MAX_PACKET` bytes.
        """
        data = json.dumps(message).encode()
        if len(data) > channel.MAX_PACKET:
            raise ValueError(f"message of {len(data)} bytes is over the limit of {channel.MAX_PACKET}")
        if not self._waiting and self._sent(data, fds):
            return
        if self._most is not None and len(self._waiting) >= self._most:
            raise OutboxFullError
        self._waiting.append((data, [os.dup(fd) for fd in fds]))
        if len(self._waiting) == 1:
            self._loop.add_writer(self._end, self._flush)

    def close(self) -> None:
        """Drop what is waiting."""
        if self._waiting:
            self._loop.remove_writer(self._end)
        for _, fds in self._waiting:
            channel.close_all(fds)
        self._waiting.clear()

    def _flush(self) -> None:
        while self._waiting:
            data, fds = self._waiting[0]
            try:
                if not self._sent(data, fds):
                    return
            except OSError:
                self.close()  # the other end is gone, which its owner learns from reading
                return
            channel.close_all(fds)
            self._waiting.popleft()
        self._loop.remove_writer(self._end)

    def _sent(self, data: bytes, fds: Sequence[int]) -> bool:
        try:
            # Not send_fds: that of Python 3.11 forgets the flags.
            self._end.sendmsg([data], [_rights(fds)] if fds else [], _SEND)
        except BlockingIOError:
            return False
        return True


def _rights(fds: Sequence[int]) -> tuple[int, int, bytes]:
    return socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes()
