"""How far a zygote is behind with reading what it was sent."""

import fcntl
import socket
import struct
import time

_SIOCOUTQ = 0x5411
"""unix(7): the bytes that the other end has not read yet."""


class Backlog:
    """Of the zygote at the other end of `end`. Call `look` before and after something is sent."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._unread = 0
        self._since = time.monotonic()

    def look(self) -> float:
        """For how many seconds there has been something to read and it has read nothing."""
        unread: int = struct.unpack("i", fcntl.ioctl(self._end, _SIOCOUTQ, bytes(4)))[0]
        if unread < self._unread or not self._unread:
            self._since = time.monotonic()
        self._unread = unread
        return time.monotonic() - self._since if unread else 0.0

    @property
    def empty(self) -> bool:
        """Whether it had read everything at the last look."""
        return not self._unread
