"""That a connection is for the name it was allowed for: real TLS handshakes, and requests with tricks."""

import ssl
import struct

import pytest

from ringfence.engine.egress.inspection import ForgedNameError, Inspection, client_hello

HOST = "public.test"


def hello(server_name: str | None) -> bytes:
    """The first bytes of a real TLS client."""
    context = ssl.create_default_context()
    context.check_hostname = False
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=server_name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def with_extension(data: bytes, kind: int) -> bytes:
    """A ClientHello with one more extension."""
    body = bytearray(data[9:])
    offset = 34 + 1 + body[34]
    offset += 2 + int.from_bytes(body[offset : offset + 2])
    offset += 1 + body[offset]
    length = int.from_bytes(body[offset : offset + 2])
    body[offset : offset + 2] = struct.pack(">H", length + 4)
    body += struct.pack(">HH", kind, 0)
    return data[:3] + struct.pack(">HB", len(body) + 4, 1) + len(body).to_bytes(3) + bytes(body)


def test_a_handshake_for_the_name() -> None:
    data = hello(HOST)
    assert client_hello(data) == (HOST, False)
    assert Inspection(HOST, 8080).from_client(data) == data


def test_a_handshake_in_pieces() -> None:
    data = hello("PUBLIC.test")
    inspection = Inspection(HOST, 8080)
    out = b"".join(inspection.from_client(data[i : i + 1]) for i in range(len(data)))
    assert out == data
    assert inspection.from_client(b"more") == b"more"


def test_a_handshake_in_many_records() -> None:
    message = hello(HOST)[5:]
    records = [message[i : i + 100] for i in range(0, len(message), 100)]
    data = b"".join(b"\x16\x03\x01" + struct.pack(">H", len(record)) + record for record in records)
    assert Inspection(HOST, 8080).from_client(data) == data


@pytest.mark.parametrize("server_name", [None, "evil.test", "public.test.evil.test"])
def test_a_handshake_for_another_name(server_name: str | None) -> None:
    with pytest.raises(ForgedNameError, match="SNI"):
        Inspection(HOST, 8080).from_client(hello(server_name))


def test_a_handshake_that_hides_a_name() -> None:
    for kind in (0xFE0D, 0xFFCE):
        with pytest.raises(ForgedNameError, match="ECH"):
            Inspection(HOST, 8080).from_client(with_extension(hello(HOST), kind))


def test_a_broken_handshake() -> None:
    data = hello(HOST)
    for length in range(60, 200):
        body = data[9:length]
        broken = data[:3] + struct.pack(">HB", len(body) + 4, 1) + len(body).to_bytes(3) + body
        with pytest.raises(ForgedNameError):
            Inspection(HOST, 8080).from_client(broken)
    with pytest.raises(ForgedNameError, match="too long"):
        Inspection(HOST, 8080).from_client(b"\x16\x03\x01\x40\x00\x01\x0f\xff\xff".ljust(0x4005, b"x") * 5)


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nHost: public.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: PUBLIC.test:80\r\n\r\n",
        b"GET http://public.test/x HTTP/1.1\r\nHost: public.test.\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: public.test\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: public.test\r\nContent-Length: 3\r\n\r\nabc"
        b"GET / HTTP/1.1\r\nHost: public.test\r\n\r\n",
    ],
)
def test_a_request_for_the_name(request_: bytes) -> None:
    inspection = Inspection(HOST, 8080)
    assert b"".join(inspection.from_client(request_[i : i + 1]) for i in range(len(request_))) == request_
    assert Inspection(HOST, 8080).from_client(request_) == request_


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: public.test\r\nHost: evil.test\r\n\r\n",
        b"GET http://evil.test/ HTTP/1.1\r\nHost: public.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: public.test@evil.test\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : evil.test\r\n\r\n",
        b"CONNECT evil.test:443 HTTP/1.1\r\nHost: public.test\r\n\r\n",
        b"CONNECT public.test:443 HTTP/1.1\r\nHost: public.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: public.test\r\n\r\nGET / HTTP/1.1\r\nHost: evil.test\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: public.test\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\r\n\r\nGET / HTTP/1.1\r\nHost: evil.test\r\n\r\n",
        b" GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n",
        b"get / http/1.1\r\nHost: evil.test\r\n\r\n",
        b"X / HTTP/1.1\r\nHost: evil.test\r\n\r\n",
        b"GET\t/ HTTP/1.1\nHost: evil.test\n\n",
        b"GET /\xff\x00 HTTP/1.1\r\nHost: evil.test\r\n\r\n",
        b"GET /\xc3\xa9 HTTP/1.1\r\nHost: evil.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: public.test\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
    ],
)
def test_a_request_for_another_name(request_: bytes) -> None:
    for port in (80, 8080):
        with pytest.raises(ForgedNameError):
            Inspection(HOST, port).from_client(request_)
        inspection = Inspection(HOST, port)
        with pytest.raises(ForgedNameError):
            for i in range(len(request_)):
                inspection.from_client(request_[i : i + 1])


_UPGRADE = b"GET / HTTP/1.1\r\nHost: public.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


def test_a_word_is_passed_on_before_its_line_ends() -> None:
    inspection = Inspection(HOST, 8080)
    assert inspection.from_client(b"PI") == b"PI"
    assert inspection.from_client(b"NG now") == b"NG now"
    assert inspection.from_client(b"\r\nmore") == b"\r\nmore"
    assert inspection.from_client(b"GET / HTTP/1.1\r\n") == b"GET / HTTP/1.1\r\n"


def test_a_websocket() -> None:
    inspection = Inspection(HOST, 8080)
    assert inspection.from_client(_UPGRADE + b"frame") == _UPGRADE
    assert inspection.from_client(b"more") == b""
    assert inspection.from_server(b"HTTP/1.1 101 Switching Protocols\r\n\r\n") == b"framemore"
    assert inspection.from_client(b"last") == b"last"


def test_a_change_of_protocol_that_the_server_refuses() -> None:
    inspection = Inspection(HOST, 8080)
    inspection.from_client(_UPGRADE + b"GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n")
    with pytest.raises(ForgedNameError):
        inspection.from_server(b"HTTP/1.1 200 OK\r\n\r\n")


@pytest.mark.parametrize(
    "data", [b"SSH-2.0-x\r\n", b"\x00\x00\x00\x08\x04\xd2\x16\x2f", b"*1\r\n$4\r\nPING\r\n"]
)
def test_what_names_nobody_passes(data: bytes) -> None:
    for port in (80, 443):
        with pytest.raises(ForgedNameError):
            Inspection(HOST, port).from_client(data)
    assert Inspection(HOST, 8080).from_client(data) == data
