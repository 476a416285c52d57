"""What somebody sends beside bytes neither reaches nor holds up a shared process."""

import contextlib
import os
import socket
import struct

import pytest

from ringfence.core.descriptors import close_aside, refuse_descriptors


def test_descriptors_are_refused_and_bytes_are_not() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        if not refuse_descriptors(ours):
            pytest.skip("this kernel cannot (Linux 6.16)")
        with pytest.raises(PermissionError):
            socket.send_fds(theirs, [b"x"], [0])
        theirs.send(b"y")
        assert ours.recv(2) == b"y"
        socket.send_fds(ours, [b"z"], [0])  # the other way as ever


def test_a_socket_that_lingers_is_closed_without_a_wait() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        peer, _ = server.accept()
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                client.send(bytes(1 << 20))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
        outer, inner = socket.socketpair()
        socket.send_fds(outer, [b"x"], [client.fileno()])
        client.close()
        outer.close()
        number = inner.detach()
        close_aside([number])  # in its queue the one that lingers, until the peer is closed
        peer.close()
        while True:  # it is closed in the end
            try:
                os.fstat(number)
            except OSError:
                break
