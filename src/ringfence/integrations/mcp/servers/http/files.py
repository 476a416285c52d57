"""Large files beside the protocol: ``GET`` and ``PUT /files/{session_id}/{path of the file in the sandbox}``.

The same token and the same sessions as the tools'. Nothing of a file is kept here: it streams through.
"""

import logging
import mimetypes
from collections.abc import AsyncIterator
from urllib.parse import quote

import httpx
from e2b import AuthenticationException, FileNotFoundException, InvalidArgumentException, SandboxException
from e2b.sandbox.filesystem.filesystem import AsyncFileStreamReader, FileType
from mcp.server.mcpserver.exceptions import ToolError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ringfence.integrations.mcp.servers.app import App
from ringfence.integrations.mcp.servers.executor.session import Session

_log = logging.getLogger(__name__)


class FileRoutes:
    """The two routes. max_upload: bytes one file may have."""

    def __init__(self, app: App, max_upload: int) -> None:
        self._app = app
        self._max_upload = max_upload

    def routes(self) -> list[Route]:
        """What is mounted beside ``/mcp``."""
        path = "/files/{session_id}/{path:path}"
        return [
            Route(path, self._download, methods=["GET"]),
            Route(path, self._upload, methods=["PUT"]),
        ]

    async def _session(self, request: Request) -> tuple[Session, str]:
        try:
            executor = await self._app.executor()
            session = await executor.sessions.get(request.path_params["session_id"])
        except ToolError as error:
            raise HTTPException(404, str(error)) from None
        return session, "/" + request.path_params["path"].lstrip("/")

    async def _download(self, request: Request) -> Response:
        session, path = await self._session(request)
        try:
            info = await session.sandbox.files.get_info(path)
            if info.type != FileType.FILE:
                raise HTTPException(400, f"{path} is not a file")
            chunks = await session.sandbox.files.read(path, format="stream")
        except (SandboxException, AuthenticationException, httpx.HTTPError) as error:
            raise _refusal(error) from error
        name = quote(info.name)
        headers = {
            # Never shown as a page of this origin, whatever the sandbox wrote into it.
            "Content-Disposition": f"attachment; filename*=UTF-8''{name}",
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "sandbox; default-src 'none'",
            "Cache-Control": "no-store",
        }
        media_type = mimetypes.guess_type(info.name)[0] or "application/octet-stream"
        return StreamingResponse(_streamed(session, chunks), media_type=media_type, headers=headers)

    async def _upload(self, request: Request) -> Response:
        declared = request.headers.get("content-length")
        if declared is not None and declared.isdecimal() and int(declared) > self._max_upload:
            raise HTTPException(413, f"files may have {self._max_upload} bytes")
        session, path = await self._session(request)
        count = _Count(request, self._max_upload)
        try:
            written = await session.sandbox.files.write(path, count.chunks())
        except ClientDisconnect:
            raise HTTPException(400, "the upload ended early") from None
        except (SandboxException, AuthenticationException, httpx.HTTPError) as error:
            if count.size > self._max_upload:
                raise HTTPException(413, f"files may have {self._max_upload} bytes") from None
            raise _refusal(error) from error
        session.journal.add_file(written.path, None, count.size)
        session.usage.uploaded += count.size
        await session.watch.look(session.sandbox)
        return JSONResponse({"path": written.path, "bytes": count.size}, status_code=201)


class _Count:
    """The body of a request, counted, and cut off by an error at the limit."""

    def __init__(self, request: Request, limit: int) -> None:
        self._request = request
        self._limit = limit
        self.size = 0

    async def chunks(self) -> AsyncIterator[bytes]:
        async for chunk in self._request.stream():
            self.size += len(chunk)
            if self.size > self._limit:
                raise HTTPException(413)  # the SDK may tell it as an error of its own
            yield chunk


async def _streamed(session: Session, chunks: AsyncFileStreamReader) -> AsyncIterator[bytes]:
    """The file, and the end of its connection to the sandbox also when the client goes in the middle."""
    async with chunks:
        async for chunk in chunks:
            session.usage.downloaded += len(chunk)
            yield chunk


def _refusal(error: Exception) -> HTTPException:
    if isinstance(error, FileNotFoundException):
        return HTTPException(404, str(error))
    if isinstance(error, InvalidArgumentException):
        return HTTPException(400, str(error))
    _log.info("a file could not be moved: %s", error)
    return HTTPException(502, f"the sandbox does not answer: {error or type(error).__name__}")
