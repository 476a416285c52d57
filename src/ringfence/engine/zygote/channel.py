"""Messages between the engine, the launcher and the zygotes: one JSON object per packet, descriptors beside
it.

The sockets are AF_UNIX SOCK_SEQPACKET pairs, so a packet arrives whole or not at all (unix(7)). This module
also runs in a template's own Python: it needs nothing but the standard library.
"""

import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterable
from typing import Any

MAX_PACKET = 128 * 1024
MAX_FDS = 32
_MOST_FDS = 253
"""SCM_MAX_FD: what does not fit into the receiver's room is closed by the kernel, however long that takes."""

Message = dict[str, Any]


class ChannelClosedError(Exception):
    """The other end has closed the channel or died."""


def pair() -> tuple[socket.socket, socket.socket]:
    """A connected pair of channel ends."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MAX_PACKET)
    return ends


def send(channel: socket.socket, message: Message, fds: Iterable[int] = ()) -> None:
    """Send one message; the descriptors are duplicated into the receiver.

    Raises ValueError when the message is larger than `MAX_PACKET`, ChannelClosedError when nobody can receive
    it.
    """
    data = json.dumps(message).encode()
    if len(data) > MAX_PACKET:
        raise ValueError(f"message of {len(data)} bytes is over the limit of {MAX_PACKET}")
    try:
        socket.send_fds(channel, [data], list(fds))
    except (BrokenPipeError, ConnectionResetError) as error:
        raise ChannelClosedError(str(error)) from error


def receive(
    channel: socket.socket, close: Callable[[Iterable[int]], None] | None = None
) -> tuple[Message, list[int]]:
    """The next message and its descriptors (close-on-exec).

    Raises ChannelClosedError at the end of the channel, ValueError for what is no message; then nothing stays
    open. close: what closes the descriptors of such a thing, `close_all` if it is not said.
    """
    close = close or close_all
    try:
        data, fds, flags, _ = socket.recv_fds(channel, MAX_PACKET + 1, _MOST_FDS)
    except ConnectionResetError as error:
        raise ChannelClosedError(str(error)) from error
    for fd in fds:
        os.set_inheritable(fd, False)
    if not data:
        close(fds)
        raise ChannelClosedError("the other end closed the channel")
    try:
        truncated = flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
        if truncated or len(data) > MAX_PACKET or len(fds) > MAX_FDS:
            raise ValueError("message over the limit")
        message = json.loads(data, parse_constant=_refuse_constant)
        if not isinstance(message, dict):
            raise ValueError("message is not an object")
    except RecursionError:
        close(fds)
        raise ValueError("message is nested too deeply") from None
    except ValueError:
        close(fds)
        raise
    return message, fds


def _refuse_constant(name: str) -> float:
    raise ValueError(f"message has the number {name}")


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors, ignoring those that are closed already."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
