"""Descriptors of somebody who is not trusted: how a shared process does not get them, or gets rid of them."""

import contextlib
import os
import socket
import threading
from collections.abc import Iterable

_SO_PASSRIGHTS = 83
"""Of asm-generic/socket.h, since Linux 6.16."""


def refuse_descriptors(end: socket.socket) -> bool:
    """Have the kernel refuse descriptors (SCM_RIGHTS, unix(7)) that are sent to `end`; whether it does.

    What is received without being asked for is closed by the kernel on behalf of the receiver, and some kinds
    of file take long to close. Before Linux 6.16 nothing can be done about it.
    """
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
        return True
    return False


def close_aside(fds: Iterable[int]) -> None:
    """Close descriptors in a thread: some take long, as does a socket with others in its queue.

    Not for a process that forks.
    """
    fds = list(fds)
    if fds:
        threading.Thread(target=_close_all, args=(fds,), daemon=True).start()


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
