"""Messages between the engine, the launcher and the zygotes: one JSON object per packet, descriptors beside
it.

The sockets are AF_UNIX SOCK_SEQPACKET pairs, so a packet arrives whole or not at all (unix(7)). This module
also runs in a template's own Python: it needs nothing but the standard library.
"""

import contextlib
import json
import os
import socket
import struct
from collections.abc import Iterable
from typing import Any

MAX_PACKET = 128 * 1024
MAX_FDS = 32
_MOST_FDS = 253
"""SCM_MAX_FD: what does not fit into the receiver's room is closed by the kernel, however long that takes."""
_NO_LINGER = struct.pack("ii", 0, 0)

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


def receive(channel: socket.socket) -> tuple[Message, list[int]]:
    """The next message and its descriptors (close-on-exec).

    Raises ChannelClosedError at the end of the channel, ValueError for what is no message; then nothing stays
    open.
    """
    try:
        data, fds, flags, _ = socket.recv_fds(channel, MAX_PACKET + 1, _MOST_FDS)
    except ConnectionResetError as error:
        raise ChannelClosedError(str(error)) from error
    for fd in fds:
        os.set_inheritable(fd, False)
    if not data:
        close_strange(fds)
        raise ChannelClosedError("the other end closed the channel")
    try:
        truncated = flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
        if truncated or len(data) > MAX_PACKET or len(fds) > MAX_FDS:
            raise ValueError("message over the limit")
        message = json.loads(data, parse_constant=_refuse_constant)
        if not isinstance(message, dict):
            raise ValueError("message is not an object")
    except RecursionError:
        close_strange(fds)
        raise ValueError("message is nested too deeply") from None
    except ValueError:
        close_strange(fds)
        raise
    return message, fds


def _refuse_constant(name: str) -> float:
    raise ValueError(f"message has the number {name}")


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors, ignoring those that are closed already."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def close_strange(fds: Iterable[int]) -> None:
    """Close descriptors that somebody hostile may have sent, without waiting for anything.

    Closing a TCP socket that is set to linger waits until its data has gone out, which may be never.
    """
    for fd in fds:
        with contextlib.suppress(OSError):
            copy = os.dup(fd)
            try:
                end = socket.socket(fileno=copy)
            except OSError:
                os.close(copy)
            else:
                with end, contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            os.close(fd)


def discard(channel: socket.socket) -> None:
    """Close a channel to somebody hostile, and first what was sent and nobody has read: see
    `close_strange`.
    """
    if channel.fileno() < 0:
        return
    channel.setblocking(False)
    with contextlib.suppress(OSError):
        channel.shutdown(socket.SHUT_RDWR)  # nothing more can come
    with contextlib.suppress(ChannelClosedError, OSError):
        while True:
            with contextlib.suppress(ValueError):
                close_strange(receive(channel)[1])
    channel.close()
