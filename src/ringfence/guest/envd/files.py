"""``/files`` and ``/files/compose``: who may, which path is meant, and what is answered."""

import errno
import json
import os
import posixpath
import secrets
import stat
from contextlib import suppress
from functools import partial
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ringfence.guest.apart import run_apart
from ringfence.guest.config import GuestConfig
from ringfence.guest.connect import ConnectError, Message, discard_body
from ringfence.guest.envd import fields
from ringfence.guest.envd.auth import HTTPError, check_file_access, error_response
from ringfence.guest.envd.download import file_response, open_file
from ringfence.guest.envd.paths import PathError, ensure_dirs, printable, resolve
from ringfence.guest.envd.upload import (
    Body,
    FormWriter,
    TargetFile,
    form_boundary,
    request_metadata,
    store_body,
    store_form,
)
from ringfence.guest.envd.users import User, UserDatabase

_MAX_COMPOSE_BYTES = 1024 * 1024
_COPY_BYTES = 8 * 1024 * 1024


class FileService:
    """Reading and writing whole files over plain HTTP."""

    def __init__(self, config: GuestConfig, users: UserDatabase) -> None:
        """Serve files to whoever has the token of `config` or a URL signed with it."""
        self._config = config
        self._users = users

    def routes(self) -> list[Route]:
        """The routes."""
        return [
            Route("/files", self.download, methods=["GET", "HEAD"]),
            Route("/files", self.upload, methods=["POST"]),
            Route("/files/compose", self.compose, methods=["POST"]),
        ]

    def _user(self, name: str | None) -> User:
        name = name or self._config.default_user
        user = self._users.find(name)
        if user is None:
            raise HTTPError(401, f"error looking up user '{name}': user: unknown user {name}")
        return user

    def _resolve(self, path: str, user: User) -> str:
        try:
            return resolve(path, user, self._config.default_workdir)
        except PathError as error:
            raise HTTPError(400, f"error resolving path: {error}") from None

    async def download(self, request: Request) -> Response:
        """``GET /files?path=…``."""
        try:
            check_file_access(request, self._config.access_token, "read")
            user = self._user(request.query_params.get("username"))
            path = self._resolve(request.query_params.get("path", ""), user)
            return file_response(request, open_file(path))
        except HTTPError as error:
            return error_response(error.status, error.message)

    async def upload(self, request: Request) -> Response:
        """``POST /files``: answers the list of files written."""
        try:
            check_file_access(request, self._config.access_token, "write")
        except HTTPError as error:
            await discard_body(request.receive)
            return error_response(error.status, error.message)
        body: Body | None = None
        try:
            body = Body(request)
            return JSONResponse(await self._store(request, body))
        except HTTPError as error:
            if body is not None:
                await body.discard()
            return error_response(error.status, error.message)

    async def _store(self, request: Request, body: Body) -> list[Message]:
        metadata = request_metadata(request.headers)
        user = self._user(request.query_params.get("username"))
        path = request.query_params.get("path")
        written: list[Message] = []

        def open_target(target: str) -> TargetFile:
            resolved = self._resolve(target, user)
            if any(entry["path"] == printable(resolved) for entry in written):
                raise HTTPError(400, f"you cannot upload multiple files to the same path '{resolved}'")
            file = TargetFile(resolved, user, metadata)
            written.append(_written(resolved, metadata))
            return file

        given = request.headers.get("content-type", "")
        kind = given.partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            await store_form(body, FormWriter(form_boundary(given), path, open_target))
        elif kind == "application/octet-stream":
            if not path:
                raise HTTPError(400, "path is required for an application/octet-stream upload")
            await store_body(body, open_target(path))
        else:
            raise HTTPError(400, f"unsupported Content-Type: {kind or 'none'}")
        return written

    async def compose(self, request: Request) -> Response:
        """``POST /files/compose``: join files into one, then remove them."""
        try:
            order = await _compose_order(request)
            user = self._user(fields.optional_text(order, "username"))
            sources = fields.texts(order, "source_paths")
            if not sources:
                raise HTTPError(400, "source_paths must not be empty")
            if not fields.text(order, "destination"):
                raise HTTPError(400, "destination is required")
            target = self._resolve(fields.text(order, "destination"), user)
            paths = [self._source(source, target, user) for source in sources]
            await _compose(paths, target, user)
        except HTTPError as error:
            return error_response(error.status, error.message)
        except ConnectError as error:
            return error_response(400, error.message)
        return JSONResponse(_written(target, {}))

    def _source(self, source: str, target: str, user: User) -> str:
        path = self._resolve(source, user)
        if path == target:
            raise HTTPError(400, f'source path "{source}" cannot be the same as destination')
        try:
            mode = Path(path).stat().st_mode
        except OSError:
            raise HTTPError(404, f"source file not found: {source}") from None
        if not stat.S_ISREG(mode):
            raise HTTPError(400, f"source path is not a regular file: {source}")
        return path


def _written(path: str, metadata: dict[str, str]) -> Message:
    entry: Message = {
        "path": printable(path),
        "name": printable(posixpath.basename(path)),
        "type": "file",
    }
    if metadata:
        entry["metadata"] = metadata
    return entry


async def _compose_order(request: Request) -> Message:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _MAX_COMPOSE_BYTES:
            raise HTTPError(413, "request body is too large")
    try:
        order = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        raise HTTPError(400, "invalid request body: not JSON") from None
    if not isinstance(order, dict):
        raise HTTPError(400, "invalid request body: not a JSON object")
    return order


async def _compose(sources: list[str], target: str, user: User) -> None:
    try:
        await run_apart(partial(_join, sources, target, user))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise HTTPError(507, "not enough disk space available") from None
        raise HTTPError(500, f"error composing files: {error}") from None


def _join(sources: list[str], target: str, user: User) -> None:
    """Copy `sources` one after the other to a temporary file, which then takes the place of `target`.

    Raises `OSError`; a file that was there before is then untouched.
    """
    temporary = f"{target}.e2b-compose.{secrets.token_hex(8)}.tmp"
    try:
        ensure_dirs(posixpath.dirname(target), user)
        output = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            os.fchown(output, user.uid, user.gid)
            for source in sources:
                _append(source, output)
        finally:
            os.close(output)
        Path(temporary).replace(target)
    except OSError:
        with suppress(OSError):
            Path(temporary).unlink()
        raise
    for source in sources:
        with suppress(OSError):
            Path(source).unlink()


def _append(source: str, output: int) -> None:
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        while os.sendfile(output, fd, None, _COPY_BYTES):
            pass
    finally:
        os.close(fd)
