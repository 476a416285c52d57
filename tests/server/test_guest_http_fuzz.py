"""Whatever bytes a guest answers with: no exception, bounded memory, nothing crosses that is no header."""

import asyncio
import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence.server.guest_http import MAX_HEAD_BYTES, MAX_HEADERS, GuestConnection, GuestLostError
from ringfence.server.headers import to_client

HIGH_WATER = 256 * 1024
PIECES = [
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.0 204 No Content\r\n",
    b"HTTP/1.1 999 x\r\n",
    b"HTTP/9.9 200 OK\r\n",
    b"HTTP/1.1 000 \r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 5\r\nContent-Length: 7\r\n",
    b"Content-Length: -1\r\n",
    b"Content-Length: 99999999999999999999\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: Upgrade\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
    b"Upgrade: websocket\r\n",
    b"Connection: close\r\n",
    b"Set-Cookie: ringfence_session=x\r\n",
    b"X: a\r\n folded\r\n",
    b"A" * 70_000 + b": b\r\n",
    b"a: b\r\n" * 300,
    b"X: \x00\r\n",
    b"X: a\nY: b\r\n",
    b"\r\n",
    b"5\r\nhello\r\n",
    b"0\r\n\r\n",
    b"fffffffffffffffff\r\n",
    b"-1\r\n",
    b"hello",
    b"\n",
    b"x" * 300_000,
]
ANSWERS = st.lists(st.sampled_from(PIECES) | st.binary(max_size=40), max_size=12)


class Wire(asyncio.Transport):
    """The other end of a connection that only notes what is done to it."""

    def __init__(self) -> None:
        super().__init__()
        self.paused = self.gone = False

    def write(self, data: Any) -> None:
        pass

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def abort(self) -> None:
        self.gone = True

    def is_closing(self) -> bool:
        return self.gone


async def feed(pieces: list[bytes], *, head_only: bool) -> None:
    wire, connection = Wire(), GuestConnection()
    connection.connection_made(wire)
    connection.start(b"GET / HTTP/1.1\r\n\r\n", head_only=head_only)
    for piece in pieces:
        if wire.gone:
            break
        if wire.paused:
            if connection._head is None or connection._head.status == 101:
                break
            # A reader takes what is there; asyncio gives nothing more before.
            assert connection._buffered <= HIGH_WATER + max(map(len, PIECES))
            await anext(connection.body(), None)
        connection.data_received(piece)
    if not wire.gone:
        connection.connection_lost(None)
    try:
        async with asyncio.timeout(5):
            head = await connection.head()
            assert 101 <= head.status <= 599
            assert len(head.headers) <= MAX_HEADERS
            assert sum(len(n) + len(v) for n, v in head.headers) <= MAX_HEAD_BYTES
            for name, value in to_client(head.status, head.headers):
                assert re.fullmatch(rb"[!-9;-~]+", name), name
                assert not re.search(rb"[\r\n\0]", value), value
                assert name not in (b"transfer-encoding", b"connection")
            if head.status != 101:
                async for _ in connection.body():
                    pass
    except GuestLostError:
        pass


@settings(max_examples=150, deadline=None)
@given(ANSWERS, st.booleans())
def test_any_answer_is_an_answer_or_a_lost_guest(pieces: list[bytes], head_only: bool) -> None:
    asyncio.run(feed(pieces, head_only=head_only))


@settings(max_examples=40, deadline=None)
@given(ANSWERS, st.integers(1, 7))
def test_it_makes_no_difference_how_it_is_cut(pieces: list[bytes], size: int) -> None:
    data = b"".join(pieces)[:4000]
    asyncio.run(feed([data[at : at + size] for at in range(0, len(data), size)], head_only=False))
