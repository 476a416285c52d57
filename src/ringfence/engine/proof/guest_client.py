"""Just enough of a client for the guest's services to run a program and a cell. All that comes is bounded."""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Any

from ringfence.engine.model import Sandbox

_ENVD, _INTERPRETER = 49983, 49999
_MAX_BYTES = 8 << 20
_MAX_LINE = 1 << 20


class GuestAnswerError(Exception):
    """The guest did not answer as it should."""


async def run_program(
    sandbox: Sandbox, token: str, user: str, arguments: list[str]
) -> AsyncGenerator[bytes, None]:
    """Start ``python3`` of the template with `arguments` as `user`; its output on both streams, as it comes.

    Ends with the program, or when it has written `_MAX_BYTES`. Raises GuestAnswerError.
    """
    message = json.dumps(
        {
            "process": {
                "cmd": sandbox.template.python,
                "args": arguments,
                "cwd": "/",
                "envs": {"TERM": "dumb"},
            },
            "stdin": False,
        }
    ).encode()
    body = b"\0" + len(message).to_bytes(4, "big") + message
    login = base64.b64encode(f"{user}:".encode()).decode()
    headers = {
        "Authorization": f"Basic {login}",
        "Content-Type": "application/connect+json",
        "Connect-Protocol-Version": "1",
    }
    buffer = b""
    async with contextlib.aclosing(
        _post(sandbox, _ENVD, "/process.Process/Start", token, headers, body)
    ) as answer:
        async for data in answer:
            buffer += data
            while len(buffer) >= 5 and len(buffer) >= 5 + int.from_bytes(buffer[1:5], "big"):
                size = int.from_bytes(buffer[1:5], "big")
                event = json.loads(buffer[5 : 5 + size])
                flags, buffer = buffer[0], buffer[5 + size :]
                if flags & 2 and event.get("error"):
                    raise GuestAnswerError(str(event["error"]))
                for stream in event.get("event", {}).get("data", {}).values():
                    yield base64.b64decode(stream)


async def run_cell(sandbox: Sandbox, token: str, code: str) -> list[dict[str, Any]]:
    """Run a cell in the default context; its events. Raises GuestAnswerError."""
    body = json.dumps({"code": code}).encode()
    headers = {"Content-Type": "application/json"}
    answer = _post(sandbox, _INTERPRETER, "/execute", token, headers, body)
    text = b"".join([data async for data in answer])
    try:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise GuestAnswerError(f"the interpreter's answer is no JSON: {error}") from None


async def _post(
    sandbox: Sandbox, port: int, path: str, token: str, headers: dict[str, str], body: bytes
) -> AsyncGenerator[bytes, None]:
    reader, writer = await asyncio.open_unix_connection(str(sandbox.http_socket), limit=_MAX_LINE)
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: sandbox",
        f"E2b-Sandbox-Port: {port}",
        f"X-Access-Token: {token}",
    ]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
    try:
        writer.write("\r\n".join(lines).encode() + body)
        head = await reader.readuntil(b"\r\n\r\n")
        status = head.split(b" ", 2)[1]
        if status != b"200":
            raise GuestAnswerError(
                f"{path}: HTTP {status.decode()}: {(await reader.read(500)).decode(errors='replace')}"
            )
        async for data in _body(reader, chunked=b"chunked" in head.lower()):
            yield data
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError, OSError) as error:
        raise GuestAnswerError(f"{path}: {error}") from error
    finally:
        writer.close()


async def _body(reader: asyncio.StreamReader, chunked: bool) -> AsyncGenerator[bytes, None]:
    total = 0
    while total < _MAX_BYTES:
        if chunked:
            size = int(await reader.readline(), 16)
            if size > _MAX_LINE:
                raise ValueError(f"a chunk of {size} bytes")
            data = await reader.readexactly(size + 2)
            data = data[:-2]
        else:
            data = await reader.read(65536)
        if not data:
            return
        total += len(data)
        yield data
