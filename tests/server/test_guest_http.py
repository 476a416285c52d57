"""Connections to guests that misbehave: real sockets, with the bytes written by hand."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ringfence.core.descriptors import refuse_descriptors
from ringfence.engine.model import Layer, Limits, Sandbox, Template
from ringfence.server.guest_http import GuestConnection, GuestLostError, ResponseHead
from ringfence.server.guest_pool import GuestGoneError, GuestPool, PortClosedError

REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def sandbox_at(directory: Path) -> Sandbox:
    template = Template("t", "t", (Layer("/", ()),), "/usr/bin/python3")
    return Sandbox("i" + "0" * 24, template, Limits(), directory / "http", directory / "tunnel", 0.0, 1)


@asynccontextmanager
async def guest(path: Path, *writes: bytes, hold: bool = False) -> AsyncIterator[None]:
    """A guest that answers a request with `writes` and then closes, or holds the connection."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            for data in writes:
                writer.write(data)
                await writer.drain()
            if hold:
                await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_unix_server(handle, path):
        yield


async def exchange(connection: GuestConnection, *, head_only: bool = False) -> tuple[ResponseHead, bytes]:
    connection.start(REQUEST, head_only=head_only)
    head = await connection.head()
    return head, b"".join([data async for data in connection.body()])


async def ask(
    directory: Path, *writes: bytes, hold: bool = False, head_only: bool = False
) -> tuple[ResponseHead, bytes]:
    async with guest(directory / "http", *writes, hold=hold):
        connection = await GuestPool().open(sandbox_at(directory), 49983)
        try:
            return await exchange(connection, head_only=head_only)
        finally:
            connection.close()


async def test_a_body_with_a_length(tmp_path: Path) -> None:
    head, body = await ask(tmp_path, b"HTTP/1.1 200 OK\r\nX-A: 1\r\ncontent-length: 2\r\n\r\nok", hold=True)
    assert head == ResponseHead(200, [(b"x-a", b"1"), (b"content-length", b"2")])
    assert body == b"ok"


async def test_chunks_with_trailers(tmp_path: Path) -> None:
    _, body = await ask(
        tmp_path,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n",
        b"1\r\nc\r\n0\r\nx-t: 1\r\n\r\n",
        hold=True,
    )
    assert body == b"abc"


async def test_a_body_until_the_end(tmp_path: Path) -> None:
    assert (await ask(tmp_path, b"HTTP/1.1 200 OK\r\n\r\nall of it"))[1] == b"all of it"


async def test_interim_answers_are_skipped(tmp_path: Path) -> None:
    head, _ = await ask(
        tmp_path, b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", hold=True
    )
    assert head == ResponseHead(204, [])


async def test_the_answer_to_head_has_no_body(tmp_path: Path) -> None:
    head, body = await ask(
        tmp_path, b"HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n", hold=True, head_only=True
    )
    assert head.status == 200
    assert body == b""


@pytest.mark.parametrize(
    "written",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 099 Odd\r\n\r\n",
        b"HTTP/1.1 999 Odd\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 300 + b"\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 20,
    ],
    ids=lambda written: repr(written[:30]),
)
async def test_what_is_broken_or_beyond_bounds_is_a_lost_guest(tmp_path: Path, written: bytes) -> None:
    with pytest.raises(GuestLostError):
        await ask(tmp_path, written)


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "begun",
    [
        b"HTTP/1.1 200 OK\r\nx: ",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 ",
        CHUNKED + b"1;",
        CHUNKED + b"1\r\na\r\n0\r\nx: ",
    ],
    ids=["value", "name", "reason", "chunk extension", "trailer"],
)
async def test_a_line_without_end_is_not_gathered(tmp_path: Path, begun: bytes) -> None:
    async with asyncio.timeout(10):
        with pytest.raises(GuestLostError):
            await ask(tmp_path, begun, b"y" * 400_000, hold=True)


async def test_a_reader_that_does_not_read_holds_the_guest_back(tmp_path: Path) -> None:
    sent = 0
    block = b"x" * 65536

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while True:
                writer.write(block)
                await writer.drain()
                sent += len(block)
        except ConnectionError:
            writer.close()

    async with await asyncio.start_unix_server(pour, tmp_path / "http"):
        connection = await GuestPool().open(sandbox_at(tmp_path), 49983)
        connection.start(REQUEST, head_only=False)
        await connection.head()
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.05)
        assert sent < 4 << 20
        connection.close()


async def test_a_connection_is_used_again_until_the_guest_speaks_out_of_turn(tmp_path: Path) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in range(2):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n%d" % number)
        await writer.drain()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison")
        await reader.read()
        writer.close()

    pool, sandbox = GuestPool(), sandbox_at(tmp_path)
    async with await asyncio.start_unix_server(handle, tmp_path / "http"):
        connection = await pool.open(sandbox, 49983)
        assert (await exchange(connection))[1] == b"0"
        pool.give_back(sandbox, 49983, connection)
        assert pool.take(sandbox, 49999) is connection
        assert (await exchange(connection))[1] == b"1"
        pool.give_back(sandbox, 49983, connection)
        await asyncio.sleep(0.05)
        assert pool.take(sandbox, 49983) is None


async def test_the_pool_forgets_a_sandbox(tmp_path: Path) -> None:
    pool, sandbox = GuestPool(), sandbox_at(tmp_path)
    async with guest(tmp_path / "http", b"HTTP/1.1 204 No Content\r\n\r\n", hold=True):
        connection = await pool.open(sandbox, 49983)
        await exchange(connection)
        pool.give_back(sandbox, 49983, connection)
        pool.forget(sandbox.sandbox_id)
        assert pool.take(sandbox, 49983) is None
        assert not connection.reusable


async def test_a_dead_guest(tmp_path: Path) -> None:
    with pytest.raises(GuestGoneError):
        await GuestPool().open(sandbox_at(tmp_path), 49983)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (b"refused\n", PortClosedError),
        (b"", GuestGoneError),
        (b"x" * 100, GuestGoneError),
        (b"ok", GuestGoneError),
    ],
)
async def test_the_tunnel_says_no(tmp_path: Path, reply: bytes, error: type[Exception]) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readuntil(b"\n") == b"8000\n"
        writer.write(reply)
        writer.close()

    async with await asyncio.start_unix_server(handle, tmp_path / "tunnel"):
        with pytest.raises(error):
            await GuestPool().open(sandbox_at(tmp_path), 8000)


async def test_the_tunnel_says_yes(tmp_path: Path) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\n")
        writer.write(b"ok\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhello")
        writer.close()

    async with await asyncio.start_unix_server(handle, tmp_path / "tunnel"):
        connection = await GuestPool().open(sandbox_at(tmp_path), 8000)
        assert (await exchange(connection))[1] == b"hello"


async def test_a_guest_can_send_no_descriptors(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        if not refuse_descriptors(probe):
            pytest.skip("this kernel cannot (Linux 6.16)")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "http"))
        listener.listen()
        connection = await GuestPool().open(sandbox_at(tmp_path), 49983)
        accepted, _ = listener.accept()
        with accepted, pytest.raises(PermissionError):
            socket.send_fds(accepted, [b"HTTP/1.1 200 OK\r\n"], [0])
        connection.close()
