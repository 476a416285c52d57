"""What code in a sandbox sends to the egress: no exception, no other order of bytes, no other name."""

import asyncio
import contextlib
import ipaddress
import json
import os
import socket
import ssl
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence.engine.egress.dialer import Dialer
from ringfence.engine.egress.gateway import Gateway
from ringfence.engine.egress.hosts import BadHostError, parse_host
from ringfence.engine.egress.inspection import ForgedNameError, Inspection, client_hello
from ringfence.engine.egress.policy import preset
from ringfence.engine.egress.resolver import Resolver
from ringfence.engine.egress.settings import NetworkSettings
from ringfence.engine.zygote import channel

NAME = "allowed.example"
TRUSTED = ssl.create_default_context()
STARTS = [
    b"\x16\x03\x01",
    b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03",
    b"GET / HTTP/1.1\r\n",
    b"PRI * HTTP/2.0\r\n\r\n",
    f"Host: {NAME}\r\n".encode(),
    b"Host: other.example\r\n",
    b"\r\n",
    b"Upgrade: websocket\r\nConnection: Upgrade\r\n",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"CONNECT x:1 HTTP/1.1\r\n",
    b"SSH-2.0-x\r\n",
    b"GET http://other.example/ HTTP/1.1\r\n",
    b"0\r\n\r\n",
    b"\n\n",
    b" ",
    b"G" * 300,
    b"\x00",
]
BYTES = st.lists(st.sampled_from(STARTS) | st.binary(min_size=1, max_size=60), max_size=10)


@settings(max_examples=200, deadline=None)
@given(BYTES, st.sampled_from([22, 80, 443, 8080]), st.booleans())
def test_what_is_passed_on_is_what_came_in_its_order(pieces: list[bytes], port: int, agreed: bool) -> None:
    inspection = Inspection(NAME, port)
    came, passed = b"", b""
    with contextlib.suppress(ForgedNameError):
        for piece in pieces:
            came += piece
            passed += inspection.from_client(piece)
            passed += inspection.from_server(b"HTTP/1.1 101 x" if agreed else b"HTTP/1.1 200 OK")
            assert came.startswith(passed)
            assert len(came) - len(passed) <= 64 * 1024 + 100


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300) | BYTES.map(lambda parts: b"\x16\x03\x01\x00\x80\x01" + b"".join(parts)))
def test_a_handshake_is_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(ForgedNameError):
        name = client_hello(data)
        assert name is None or isinstance(name[1], bool)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80) | st.from_regex(r"[0-9a-fx.:%\[\]]{1,40}", fullmatch=True))
def test_a_host_has_one_spelling(text: str) -> None:
    try:
        host = parse_host(text)
    except BadHostError:
        return
    if isinstance(host, str):
        assert parse_host(host) == host
        with contextlib.suppress(OSError):  # the C library takes no name for an address
            socket.inet_aton(host)
            raise AssertionError(host)
    else:
        assert isinstance(host, ipaddress.IPv4Address) or host.ipv4_mapped is None


VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=30)
    | st.lists(st.none(), max_size=2)
)
MESSAGES = st.dictionaries(
    st.sampled_from(["op", "id", "name", "host", "port", "ok", "no", "head", "x"]),
    VALUES | st.sampled_from(["name", "open", "localhost", "127.0.0.1", "10.0.0.1", 80, 443]),
)


async def converse(messages: list[bytes], descriptors: int) -> None:
    troubles: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: troubles.append(context))
    settings_ = NetworkSettings()
    policy = preset("none", ())
    dialer = Dialer(settings_, Resolver({}), ())
    inside, outside = channel.pair()
    gateway = Gateway(outside, policy, policy, dialer, settings_, TRUSTED, None, lambda *_: None)
    before = len(os.listdir("/proc/self/fd"))
    with inside, open(os.devnull) as null, socket.socket() as tcp:
        inside.setblocking(False)
        for message in messages:
            with contextlib.suppress(OSError):
                socket.send_fds(inside, [message], [null.fileno(), tcp.fileno()][:descriptors])
        await asyncio.sleep(0.01)
        gateway.close()
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    assert not troubles
    assert len(os.listdir("/proc/self/fd")) <= before


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        MESSAGES.map(lambda value: json.dumps(value).encode()) | st.binary(min_size=1, max_size=60),
        max_size=5,
    ),
    st.integers(0, 2),
)
def test_no_message_breaks_the_gateway_or_leaves_a_descriptor(
    messages: list[bytes], descriptors: int
) -> None:
    asyncio.run(converse(messages, descriptors))
