"""The channel to one sandbox's guest: what it asks for, and what it is told.

Everything that comes over it is said by code that may be hostile. A message that no guest of ours would send
ends the channel, and so does a guest that does not read.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ringfence.core.descriptors import close_aside, refuse_descriptors
from ringfence.engine.egress.relay import close
from ringfence.engine.outbox import Outbox, OutboxFullError
from ringfence.engine.zygote import channel

_MAX_TEXT = 64 * 1024
_MAX_HOST = 300
_MOST_UNREAD = 1024


@dataclass(frozen=True)
class NameAsked:
    """Whether a name exists, and may be reached. `number`: what the answer is to be called."""

    number: int
    name: str


@dataclass(frozen=True)
class ConnectionAsked:
    """`inside` is to be connected to a host. ok, no: what is written to it first, if it could be and if not;
    head: what was read from it already.
    """

    inside: socket.socket
    host: str
    port: int
    ok: bytes
    no: bytes
    head: bytes


@dataclass(frozen=True)
class MirrorAsked:
    """`inside` is to be connected to the package mirror."""

    inside: socket.socket


Request = NameAsked | ConnectionAsked | MirrorAsked


class GuestChannel:
    """Reads until `close`, or until it ends by itself: then `on_end` gets the reason (empty: it closed)."""

    def __init__(
        self, end: socket.socket, on_request: Callable[[Request], None], on_end: Callable[[str], None]
    ) -> None:
        end.setblocking(False)
        self._channel = end
        self._on_request = on_request
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._outbox = Outbox(end, _MOST_UNREAD)
        self._closed = False
        self._loop.add_reader(end, self._readable)

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Tell the guest something, as soon as it reads."""
        if self._closed:
            return
        try:
            self._outbox.send(message, fds)
        except OutboxFullError:
            self._end("its guest does not read what it is told")
        except OSError:
            self._end("")

    def close(self) -> None:
        """Stop, with what is waiting."""
        if self._closed:
            return
        self._closed = True
        self._outbox.close()
        self._loop.remove_reader(self._channel)
        close_aside([self._channel.detach()])  # with what lies unread in it

    def _end(self, why: str) -> None:
        self.close()
        self._on_end(why)

    def _readable(self) -> None:
        try:
            message, fds = channel.receive(self._channel, close_aside)
        except BlockingIOError:
            return
        except ValueError:
            self._end("its guest sent a message that is none")
            return
        except (channel.ChannelClosedError, OSError):
            self._end("")
            return
        connection = _connection_of(fds)
        try:
            if fds and connection is None:
                raise ValueError("descriptors of something else")
            request = self._request(message, connection)
        except (KeyError, TypeError, ValueError, ArithmeticError):
            if connection is not None:
                close(connection, reset=True)
            self._end("its guest sent a message that is none")
            return
        self._on_request(request)

    def _request(self, message: dict[str, Any], connection: socket.socket | None) -> Request:
        if message["op"] == "name" and connection is None:
            return NameAsked(int(message["id"]), _text(message, "name", _MAX_HOST))
        if message["op"] == "open":
            host, port = _text(message, "host", _MAX_HOST), int(message["port"])
            texts = [_text(message, key, _MAX_TEXT).encode("latin-1") for key in ("ok", "no", "head")]
            return ConnectionAsked(connection or self._lend(message), host, port, *texts)
        if message["op"] == "packages":
            return MirrorAsked(connection or self._lend(message))
        raise ValueError(message["op"])

    def _lend(self, message: dict[str, Any]) -> socket.socket:
        """Give a guest that cannot pass us its connection, because its kernel is gVisor, an end of one of
        ours; the other end.
        """
        number = int(message["lend"])
        ours, theirs = socket.socketpair()
        refuse_descriptors(ours)
        with theirs:
            self.send({"lent": number}, [theirs.fileno()])
        if self._closed:
            ours.close()
            raise ValueError("nobody can take it")
        return ours


def _connection_of(fds: list[int]) -> socket.socket | None:
    """The one TCP socket among the descriptors, if it is one."""
    if len(fds) == 1:
        with contextlib.suppress(OSError):
            connection = socket.socket(fileno=fds[0])
            if (connection.family, connection.type) == (socket.AF_INET, socket.SOCK_STREAM):
                return connection
            connection.detach()
    close_aside(fds)
    return None


def _text(message: dict[str, Any], key: str, most: int) -> str:
    value = message[key]
    if not isinstance(value, str) or len(value) > most:
        raise TypeError(key)
    return value
