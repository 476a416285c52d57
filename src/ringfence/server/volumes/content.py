"""The content API (``/volumecontent/{id}/…``): a volume's files without a sandbox, for whoever has its token.

Nothing here touches a path: each operation is one of the volume's agent, which has no power over the host.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from ringfence.core.errors import VolumeError
from ringfence.engine.volumes.client import Download, VolumeAgent
from ringfence.engine.volumes.tree import DEFAULT_DIRECTORY_MODE, DEFAULT_FILE_MODE, DEFAULT_ID, Entry
from ringfence.server.errors import ApiError
from ringfence.server.models import EntryChange
from ringfence.server.protocol import connection_of
from ringfence.server.records import timestamp
from ringfence.server.requests import read_body, read_model
from ringfence.server.volumes.volumes import Volumes

if TYPE_CHECKING:
    from ringfence.engine.volumes.manager import VolumeManager

PATH = "/volumecontent/"
_IDLE_SECONDS = 60.0
"""How long a client may send nothing of a body that it is sending."""
_WRITE_BYTES = 1 << 20


class VolumeContent:
    """Handlers of the content API. max_body: of one file, in bytes."""

    def __init__(self, volumes: Volumes, manager: "VolumeManager", max_body: int) -> None:
        self._volumes = volumes
        self._manager = manager
        self._max_body = max_body
        self._operations = {
            ("GET", "path"): self.stat,
            ("PATCH", "path"): self.change,
            ("DELETE", "path"): self.remove,
            ("GET", "dir"): self.list,
            ("POST", "dir"): self.make_directory,
            ("GET", "file"): self.read,
            ("PUT", "file"): self.write,
        }

    async def serve(self, request: Request) -> Response:
        """Serve one request. Raises ApiError, VolumeError."""
        raw = request.scope["raw_path"].decode("latin-1").removeprefix(PATH)
        volume_id, _, what = raw.partition("/")
        operation = self._operations.get((request.method, what))
        if operation is None:
            raise ApiError(404, f"not implemented: {request.method} {PATH}{{id}}/{what[:40]}")
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise ApiError(401, "send the volume's token: Authorization: Bearer <token>")
        volume = self._volumes.authorized(unquote(volume_id), token.strip())
        return await operation(request, volume.volume_id)

    async def stat(self, request: Request, volume_id: str) -> Response:
        """``GET …/path``."""
        async with self._manager.agent(volume_id) as agent:
            return _answer(await agent.entry("stat", path=_Query(request).path))

    async def change(self, request: Request, volume_id: str) -> Response:
        """``PATCH …/path``: what the body names of owner, group and mode."""
        path = _Query(request).path
        body = await read_model(request, EntryChange)
        async with self._manager.agent(volume_id) as agent:
            return _answer(await agent.entry("change", path=path, **body.model_dump()))

    async def remove(self, request: Request, volume_id: str) -> Response:
        """``DELETE …/path``: a directory with all that is in it."""
        async with self._manager.agent(volume_id) as agent:
            await agent.remove(_Query(request).path)
        return Response(status_code=204)

    async def list(self, request: Request, volume_id: str) -> Response:
        """``GET …/dir``: `depth` levels, one unless told."""
        query = _Query(request)
        depth = max(1, query.number("depth", 1))
        async with self._manager.agent(volume_id) as agent:
            entries = await agent.list(query.path, depth)
        return JSONResponse(await asyncio.to_thread(lambda: [_shown(entry) for entry in entries]))

    async def make_directory(self, request: Request, volume_id: str) -> Response:
        """``POST …/dir``: with `force` those on the way too, and it may be there already."""
        query = _Query(request)
        asked = query.attributes(DEFAULT_DIRECTORY_MODE)
        async with self._manager.agent(volume_id) as agent:
            made = await agent.entry("mkdir", path=query.path, parents=query.flag("force") is True, **asked)
        return _answer(made, 201)

    async def read(self, request: Request, volume_id: str) -> Response:
        """``GET …/file``."""
        await read_body(request)  # it has none, but an answer to half a request could not be streamed
        async with contextlib.AsyncExitStack() as stack:
            agent = await stack.enter_async_context(self._manager.agent(volume_id))
            download = await stack.enter_async_context(agent.download(_Query(request).path))
            return _FileResponse(download, stack.pop_all())

    async def write(self, request: Request, volume_id: str) -> Response:
        """``PUT …/file``: over what is there, unless `force` is false; with `force` it makes directories."""
        query = _Query(request)
        force = query.flag("force")
        asked = query.attributes(DEFAULT_FILE_MODE)
        length = request.headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self._max_body:
            raise ApiError(413, f"the file is larger than {self._max_body} bytes")
        async with self._manager.agent(volume_id) as agent:
            made = await self._store(
                agent, request, path=query.path, parents=force is True, overwrite=force is not False, **asked
            )
        return _answer(made, 201)

    async def _store(self, agent: VolumeAgent, request: Request, **arguments: Any) -> Entry:
        size = 0
        async with agent.upload(**arguments) as upload:
            async for part in _parts(request):
                size += len(part)
                if size > self._max_body:
                    raise ApiError(413, f"the file is larger than {self._max_body} bytes")
                await upload.write(part)
            return await upload.publish()


class _FileResponse(Response):
    """The contents of an open file; whatever comes of the answer, the file is closed."""

    def __init__(self, download: Download, stack: contextlib.AsyncExitStack) -> None:
        headers = {"content-length": str(download.entry["size"])}
        super().__init__(headers=headers, media_type="application/octet-stream")
        self._download = download
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._stack:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                async for chunk in self._download.chunks():
                    if connection_of(scope).gone:
                        return  # nobody takes the rest
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            except VolumeError:
                connection_of(scope).reset()  # it is too late for another answer
                return
            await send({"type": "http.response.body", "body": b""})


class _Query:
    """The parameters of a request. Names that are no UTF-8 can be given, as their percent-encoded bytes."""

    def __init__(self, request: Request) -> None:
        text = request.scope["query_string"].decode("latin-1")
        self._values = parse_qs(text, keep_blank_values=True, errors="surrogateescape")

    @property
    def path(self) -> str:
        path = self._text("path")
        if path is None:
            raise ApiError(400, "the query parameter path is missing")
        return path

    def number(self, name: str, default: int) -> int:
        text = self._text(name)
        if text is None:
            return default
        if not (text.isascii() and text.removeprefix("-").isdigit() and len(text) <= 10):
            raise ApiError(400, f"{name} must be a whole number")
        return int(text)

    def flag(self, name: str) -> bool | None:
        text = self._text(name)
        if text is None:
            return None
        if text.lower() not in ("true", "false", "1", "0"):
            raise ApiError(400, f"{name} must be true or false")
        return text.lower() in ("true", "1")

    def attributes(self, mode: int) -> dict[str, int]:
        """Owner, group and mode of what is to be made."""
        return {
            "uid": self.number("uid", DEFAULT_ID),
            "gid": self.number("gid", DEFAULT_ID),
            "mode": self.number("mode", mode),
        }

    def _text(self, name: str) -> str | None:
        values = self._values.get(name, [])
        if len(values) > 1:
            raise ApiError(400, f"{name} was given more than once")
        return values[0] if values else None


async def _parts(request: Request) -> AsyncIterator[bytes]:
    """The body, in parts large enough to be worth a thread each."""
    body = aiter(request.stream())
    collected = bytearray()
    try:
        while True:
            async with asyncio.timeout(_IDLE_SECONDS):
                part = await anext(body, None)
            if part is None:
                break
            collected += part
            if len(collected) >= _WRITE_BYTES:
                yield bytes(collected)
                collected.clear()
    except TimeoutError:
        raise ApiError(408, "the file stopped arriving") from None
    except ClientDisconnect:
        raise ApiError(499, "the client hung up") from None
    if collected:
        yield bytes(collected)


def _answer(entry: Entry, status: int = 200) -> Response:
    return JSONResponse(_shown(entry), status_code=status)


def _shown(entry: Entry) -> dict[str, Any]:
    """An entry as the wire has it (``VolumeEntryStat``); bytes that are no UTF-8 become U+FFFD."""
    shown = dict(entry)
    for key in ("name", "path", "target"):
        if key in shown:
            shown[key] = _printable(shown[key])
    for key in ("atime", "mtime", "ctime"):
        shown[key] = timestamp(shown[key])
    return shown


def _printable(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
