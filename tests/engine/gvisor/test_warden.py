"""What PID 1 of a gVisor sandbox believes of what a guest says."""

import json
import os
import select
import socket
from collections.abc import Iterator

import pytest

from ringfence.engine.gvisor import warden
from ringfence.engine.zygote import channel


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    pair = channel.pair()
    yield pair
    for end in pair:
        end.close()


@pytest.mark.parametrize("data", [b"not json", b"[1]", b'"warm"', b"1", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_object_is_nothing(ends: tuple[socket.socket, socket.socket], data: bytes) -> None:
    ends[1].send(data)
    assert warden.receive(ends[0]) == {}


def test_an_object_is_a_message(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[1].send(json.dumps({"warm": True}).encode())
    assert warden.receive(ends[0]) == {"warm": True}


def test_the_end_is_none(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[1].close()
    assert warden.receive(ends[0]) is None


def test_what_a_program_says_is_bounded() -> None:
    command = ["/bin/sh", "-c", "echo the reason; head -c 100000 /dev/zero | tr '\\0' x"]
    container = warden.Container.start(command)
    with container.control:
        os.close(container.output_end)
        while container.read_output():
            select.select([container.output], [], [], 10)
        os.close(container.output)
        os.waitpid(container.pid, 0)
    assert container.said.startswith(b"the reason")
    assert len(container.said) < 10_000
