r"""The way from the host to any TCP port on the sandbox's loopback.

The host connects to the tunnel socket and sends the port and a newline, as ``8080\n``. The answer is
``ok\n`` followed by the connection's bytes both ways, or ``refused\n`` when nothing listens there.
"""

import asyncio
import contextlib
import socket

_BLOCK = 64 * 1024
_LOOPBACKS = ("127.0.0.1", "::1")


async def serve(listener: socket.socket) -> asyncio.Server:
    """Start serving tunnels on a listening Unix socket."""
    return await asyncio.start_unix_server(_handle, sock=listener, limit=_BLOCK)


def protocol() -> asyncio.Protocol:
    """What serves one tunnel on a connection that somebody else has accepted."""
    return asyncio.StreamReaderProtocol(asyncio.StreamReader(limit=_BLOCK), _handle)


async def _handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        line = (await reader.readuntil(b"\n")).strip()
        port = int(line) if line.isdigit() and len(line) <= 5 else 0
        streams = await _connect(port) if 0 < port < 65536 else None
        writer.write(b"refused\n" if streams is None else b"ok\n")
        await writer.drain()
        if streams is not None:
            await _splice((reader, writer), streams)
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return
    finally:
        writer.close()


async def _connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    for address in _LOOPBACKS:
        with contextlib.suppress(OSError):
            return await asyncio.open_connection(address, port, limit=_BLOCK)
    return None


async def _splice(
    host: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    inside: tuple[asyncio.StreamReader, asyncio.StreamWriter],
) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_copy(host[0], inside[1]))
            group.create_task(_copy(inside[0], host[1]))
    except* OSError:
        pass
    finally:
        inside[1].close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while block := await reader.read(_BLOCK):
        writer.write(block)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
