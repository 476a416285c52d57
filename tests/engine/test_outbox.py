"""Messages that wait for room: none is lost, and whoever does not read is told so by the end."""

import asyncio
import contextlib
import json
import os
import socket

import pytest

from ringfence.engine.egress.dialer import Dialer
from ringfence.engine.egress.gateway import Gateway
from ringfence.engine.egress.http1 import client_context
from ringfence.engine.egress.main import Egress
from ringfence.engine.egress.policy import preset
from ringfence.engine.egress.resolver import Resolver
from ringfence.engine.egress.settings import NetworkSettings
from ringfence.engine.outbox import Outbox, OutboxFullError
from ringfence.engine.zygote import channel

LONG = "x" * 10_000
MORE_THAN_FITS = 400
MANY = 3000


async def read(end: socket.socket, count: int) -> list[channel.Message]:
    end.setblocking(False)
    messages = []
    async with asyncio.timeout(20):
        while len(messages) < count:
            data = await asyncio.get_running_loop().sock_recv(end, channel.MAX_PACKET)
            messages.append(json.loads(data))
    return messages


async def test_all_arrive_in_their_order() -> None:
    ours, theirs = channel.pair()
    with ours, theirs:
        outbox = Outbox(ours)
        for number in range(MORE_THAN_FITS):
            outbox.send({"number": number, "text": LONG})
        found = await read(theirs, MORE_THAN_FITS)
        assert [message["number"] for message in found] == list(range(MORE_THAN_FITS))
        outbox.close()


async def test_a_descriptor_waits_with_its_message() -> None:
    ours, theirs = channel.pair()
    with ours, theirs:
        outbox = Outbox(ours)
        for _ in range(MORE_THAN_FITS):
            outbox.send({"text": LONG})
        reader, writer = os.pipe()
        outbox.send({"last": True}, [writer])
        os.close(writer)
        await read(theirs, MORE_THAN_FITS)
        await asyncio.sleep(0)
        message, fds = channel.receive(theirs)
        assert message == {"last": True}
        os.write(fds[0], b"it")
        channel.close_all(fds)
        assert os.read(reader, 10) == b"it"
        assert os.read(reader, 10) == b"", "the copy that waited was not closed"
        os.close(reader)
        outbox.close()


async def test_no_more_wait_than_may() -> None:
    ours, theirs = channel.pair()
    with ours, theirs:
        outbox = Outbox(ours, most=3)
        sent = 0
        with pytest.raises(OutboxFullError):
            for _ in range(MORE_THAN_FITS):
                outbox.send({"text": LONG})
                sent += 1
        assert len(await read(theirs, sent)) == sent
        outbox.close()


async def test_the_egress_answers_an_engine_that_reads_late() -> None:
    ours, theirs = channel.pair()
    with ours, theirs:
        running = asyncio.create_task(Egress(theirs).run())
        ours.setblocking(False)
        for number in range(MANY):
            while not sent(ours, {"request": number, "verb": "account", "id": "none"}):
                await asyncio.sleep(0)
        found = await read(ours, MANY)
        assert [message["reply"] for message in found] == list(range(MANY))
        ours.shutdown(socket.SHUT_RDWR)
        await running


def sent(end: socket.socket, message: channel.Message) -> bool:
    try:
        channel.send(end, message)
    except BlockingIOError:
        return False
    return True


async def test_a_guest_that_does_not_read_loses_its_network_and_is_named() -> None:
    inside, outside = channel.pair()
    said: list[str] = []
    settings = NetworkSettings(connections_per_second=100_000)
    policy = preset("none", ())
    Gateway(
        outside, policy, policy, Dialer(settings, Resolver({}), ()), settings, client_context(""), None,
        lambda _, text: said.append(text),
    )  # fmt: skip
    with inside, contextlib.suppress(channel.ChannelClosedError):
        inside.setblocking(False)
        async with asyncio.timeout(20):
            while True:
                sent(inside, {"op": "name", "id": 1, "name": "a.example"})
                await asyncio.sleep(0)
    assert any("does not read" in text for text in said), said[-1:]
