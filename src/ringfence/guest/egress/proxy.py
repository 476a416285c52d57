"""An HTTP and SOCKS5 proxy on the sandbox's loopback, for programs that would rather have one.

Where the kernel cannot lead plain connections to us, it is the only way out, and the usual variables name it.
One port serves both: a SOCKS5 client's first byte is 5. A connection is for one destination; a plain HTTP
request is passed on as ``Connection: close``, so that its answer ends it. No request is read in parts that
the host has not judged: the head goes with the connection, and the host checks its ``Host``.
"""

import asyncio
import contextlib
import re
import socket
import struct

from ringfence.guest.egress.gate import Gate, GateClosedError
from ringfence.guest.egress.service import reset

PORT = 3128
ENVIRONMENT = {
    **dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"), f"http://127.0.0.1:{PORT}"),
    **dict.fromkeys(("ALL_PROXY", "all_proxy"), f"socks5h://127.0.0.1:{PORT}"),
    **dict.fromkeys(("NO_PROXY", "no_proxy"), "localhost,127.0.0.0/8,::1"),
}
_HEAD_SECONDS = 15.0
_MAX_HEAD = 32 * 1024
_LINE = re.compile(rb"([A-Z]{1,20}) (\S+) HTTP/1\.([01])\r\n")
_ABSOLUTE = re.compile(rb"http://(?:[^/@\s]*@)?([^/\s]+)(/\S*)?", re.IGNORECASE)
_HOP = re.compile(rb"(?im)^(?:proxy-[a-z-]+|connection|keep-alive):[^\n]*\n")
_REFUSED = "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_CONNECTED = "HTTP/1.1 200 Connection established\r\n\r\n"
_BAD = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_SOCKS, _CONNECT, _IPV4, _NAME, _IPV6 = 5, 1, 1, 3, 4
_SOCKS_REST = "\0\x01\0\0\0\0\0\0"


class _BadRequestError(Exception):
    """The client does not speak as a client of a proxy does."""


async def serve(gate: Gate) -> None:
    """Start serving on `PORT`, for good."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setblocking(False)
    listener.bind(("127.0.0.1", PORT))
    listener.listen(512)
    clients: set[asyncio.Task[None]] = set()

    def accept() -> None:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            connection.setblocking(False)
            task = asyncio.ensure_future(_take(connection, gate))
            clients.add(task)
            task.add_done_callback(clients.discard)

    asyncio.get_running_loop().add_reader(listener, accept)


async def _take(connection: socket.socket, gate: Gate) -> None:
    reader = _Reader(connection)
    try:
        async with asyncio.timeout(_HEAD_SECONDS):
            if (await reader.exactly(1))[0] == _SOCKS:
                await _socks(connection, reader, gate)
            else:
                await _http(connection, reader, gate)
    except (OSError, EOFError, TimeoutError, GateClosedError):
        reset(connection)
    except _BadRequestError:
        with contextlib.suppress(OSError):
            connection.send(_BAD)
        connection.close()


class _Reader:
    """Reads a connection without taking more from it than what was asked for or is returned by `rest`."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._data = b""

    async def exactly(self, count: int) -> bytes:
        """The first `count` bytes; `peeked` ones are not given twice."""
        while len(self._data) < count:
            await self._more()
        return self._data[:count]

    def skip(self, count: int) -> None:
        """Drop bytes from the front."""
        self._data = self._data[count:]

    async def until(self, mark: bytes) -> bytes:
        """Everything up to the end of `mark`, which is dropped from what is left."""
        while mark not in self._data:
            if len(self._data) > _MAX_HEAD:
                raise _BadRequestError
            await self._more()
        head, _, self._data = self._data.partition(mark)
        return head + mark

    def rest(self) -> str:
        """What was read beyond, as Latin-1."""
        return self._data.decode("latin-1")

    async def _more(self) -> None:
        data = await asyncio.get_running_loop().sock_recv(self._connection, 8192)
        if not data:
            raise EOFError
        self._data += data


async def _http(connection: socket.socket, reader: _Reader, gate: Gate) -> None:
    head = await reader.until(b"\r\n\r\n")
    line = _LINE.match(head)
    if line is None:
        raise _BadRequestError
    method, target, version = line.groups()
    if method == b"CONNECT":
        host, port = _authority(target, None)
        gate.hand_over(connection, host, port, ok=_CONNECTED, no=_REFUSED, head=reader.rest())
        return
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise _BadRequestError
    host, port = _authority(absolute[1], 80)
    fields = _HOP.sub(b"", head[line.end() : -2])
    first = b"%s %s HTTP/1.%s\r\n" % (method, absolute[2] or b"/", version)
    passed = first + fields + b"Connection: close\r\n\r\n"
    gate.hand_over(connection, host, port, no=_REFUSED, head=passed.decode("latin-1") + reader.rest())


def _authority(text: bytes, default_port: int | None) -> tuple[str, int]:
    host, colon, port = text.decode("latin-1").rpartition(":")
    if not colon or not port.isdigit() or host.count("[") != host.count("]"):
        if default_port is None:
            raise _BadRequestError
        return text.decode("latin-1").strip("[]"), default_port
    if len(port) > 5:
        raise _BadRequestError
    return host.strip("[]"), int(port)


async def _socks(connection: socket.socket, reader: _Reader, gate: Gate) -> None:
    loop = asyncio.get_running_loop()
    methods = (await reader.exactly(2))[1]
    await reader.exactly(2 + methods)
    reader.skip(2 + methods)
    await loop.sock_sendall(connection, b"\x05\x00")
    version, command, _, kind = await reader.exactly(4)
    if version != _SOCKS or command != _CONNECT:
        await loop.sock_sendall(connection, b"\x05\x07" + _SOCKS_REST.encode("latin-1"))
        raise EOFError
    if kind == _NAME:
        length = 5 + (await reader.exactly(5))[4]
        address = (await reader.exactly(length))[5:].decode("latin-1")
    elif kind in (_IPV4, _IPV6):
        length = 4 + (4 if kind == _IPV4 else 16)
        family = socket.AF_INET if kind == _IPV4 else socket.AF_INET6
        address = socket.inet_ntop(family, (await reader.exactly(length))[4:])
    else:
        raise EOFError
    (port,) = struct.unpack(">H", (await reader.exactly(length + 2))[length:])
    reader.skip(length + 2)
    gate.hand_over(
        connection,
        address,
        port,
        ok="\x05\x00" + _SOCKS_REST,
        no="\x05\x02" + _SOCKS_REST,
        head=reader.rest(),
    )
