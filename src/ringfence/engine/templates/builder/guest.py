"""Run commands in a sandbox and put files into it, through its own envd on its Unix socket.

The answers come from inside the sandbox: they are bounded in size and only ever taken as text.
"""

import asyncio
import base64
import codecs
import json
import struct
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp

from ringfence.core.errors import TemplateError

_HEADERS = {"E2b-Sandbox-Port": "49983", "Connect-Protocol-Version": "1"}
_MAX_FRAME = 1 << 20
_MAX_LINE = 16 * 1024
_END_OF_STREAM = 2

OnLine = Callable[[str, str], None]
"""Called with ``stdout`` or ``stderr`` and a line of output, without its end."""


class GuestError(TemplateError):
    """The sandbox's envd refused or ended; the message has its reason."""


@dataclass(frozen=True)
class Command:
    """A command line for ``bash -l -c``, and as whom, where and with which variables to run it."""

    line: str
    user: str = "root"
    cwd: str | None = None
    env: Mapping[str, str] | None = None
    shell: str = "/bin/bash"

    def request(self) -> bytes:
        """The body of a ``process.Process/Start``, as one frame."""
        process: dict[str, Any] = {
            "cmd": self.shell,
            "args": ["-l", "-c", self.line],
            "envs": dict(self.env or {}),
        }
        if self.cwd is not None:
            process["cwd"] = self.cwd
        body = json.dumps({"process": process, "stdin": False}).encode()
        return struct.pack(">BI", 0, len(body)) + body


class Guest:
    """A sandbox's envd. An async context manager. token: what the sandbox's envd asks for, if anything."""

    def __init__(self, http_socket: Path, token: str | None = None) -> None:
        self._socket = str(http_socket)
        self._token = {"X-Access-Token": token} if token else {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(self._socket),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def run(self, command: Command, on_line: OnLine = lambda *_: None) -> str:
        """Run to the end. How it failed (``exit status 1``), or an empty string. Raises GuestError."""
        output = {name: _Lines(name, on_line) for name in ("stdout", "stderr")}
        async with self._started(command) as events:
            async for event in events:
                for name, chunk in event.get("data", {}).items():
                    if name in output:
                        output[name].add(base64.b64decode(chunk))
                if "end" in event:
                    for lines in output.values():
                        lines.end()
                    end = event["end"]
                    return "" if _succeeded(end) else str(end.get("status") or "it failed")[:200]
        raise GuestError("the sandbox ended before the command did")

    async def start(self, command: Command) -> None:
        """Start a command and leave it running. Raises GuestError when it cannot be started."""
        async with self._started(command) as events:
            async for event in events:
                if "start" in event:
                    return
        raise GuestError("the command did not start")

    async def upload(self, source: Path, target: str) -> None:
        """Write the file `source` of the host to `target` inside, as root."""
        url = "http://sandbox/files"
        headers = {**_HEADERS, **self._token, "Content-Type": "application/octet-stream"}
        with await asyncio.to_thread(source.open, "rb") as file:
            async with self._open().post(
                url, params={"path": target, "username": "root"}, headers=headers, data=file
            ) as answer:
                if answer.status != 200:
                    text = (await answer.content.read(2000)).decode(errors="replace")
                    raise GuestError(f"cannot put the files into the sandbox: {text}")

    async def exists(self, path: str) -> bool:
        """Whether there is something at `path`; links are followed."""
        body = {"path": path}
        headers = {**_HEADERS, **self._token, "Authorization": _basic("root")}
        async with self._open().post(
            "http://sandbox/filesystem.Filesystem/Stat", json=body, headers=headers
        ) as answer:
            return answer.status == 200

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("the guest is used outside of its context")
        return self._session

    @asynccontextmanager
    async def _started(self, command: Command) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        headers = {
            **_HEADERS,
            **self._token,
            "Content-Type": "application/connect+json",
            "Authorization": _basic(command.user),
        }
        try:
            async with self._open().post(
                "http://sandbox/process.Process/Start", data=command.request(), headers=headers
            ) as answer:
                if answer.status != 200:
                    raise GuestError(f"the sandbox answered {answer.status}")
                yield _events(answer.content)
        except aiohttp.ClientError as error:
            raise GuestError(f"the sandbox ended: {error}") from error


def _basic(user: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:".encode()).decode()


def _succeeded(end: dict[str, Any]) -> bool:
    # Zero is proto3's default, so JSON may leave it out.
    return int(end.get("exitCode", 0)) == 0 and not end.get("error")


async def _events(stream: aiohttp.StreamReader) -> AsyncIterator[dict[str, Any]]:
    while True:
        try:
            flags, length = struct.unpack(">BI", await stream.readexactly(5))
            if length > _MAX_FRAME:
                raise GuestError("the sandbox sent a message that is too large")
            message = json.loads(await stream.readexactly(length))
        except (asyncio.IncompleteReadError, ValueError) as error:
            raise GuestError("the sandbox ended before the command did") from error
        if flags & _END_OF_STREAM:
            problem = message.get("error")
            if problem:
                raise GuestError(f"{problem.get('code')}: {problem.get('message', '')}"[:1000])
            return
        event = message.get("event")
        if isinstance(event, dict):
            yield event


class _Lines:
    """Bytes into lines of bounded length."""

    def __init__(self, name: str, on_line: OnLine) -> None:
        self._name = name
        self._on_line = on_line
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._pending = ""

    def add(self, chunk: bytes) -> None:
        *lines, self._pending = (self._pending + self._decode(chunk)).split("\n")
        for line in lines:
            self._tell(line)
        if len(self._pending) > _MAX_LINE:
            self.end()

    def end(self) -> None:
        if self._pending:
            self._tell(self._pending)
            self._pending = ""

    def _tell(self, line: str) -> None:
        # Progress bars draw over themselves: what is left on the line is what counts.
        text = line.rstrip("\r").rpartition("\r")[2]
        if text.strip():
            self._on_line(self._name, text[:_MAX_LINE])
