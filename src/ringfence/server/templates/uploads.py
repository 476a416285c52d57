"""The files that builds copy: archives named by their hash, uploaded to URLs that permit it."""

import asyncio
import contextlib
import hashlib
import os
import re
import tempfile
import time
from pathlib import Path

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ringfence.core.ids import new_token
from ringfence.server.errors import ApiError

PATH = "/uploads/"
"""Where upload URLs begin on this server."""
_HASH = re.compile(r"[0-9a-f]{64}")
_LIFETIME = 3600.0
_MOST_GRANTS = 10_000


class Uploads:
    """Archives below `directory`, by owner and hash. max_size: of one archive, in bytes."""

    def __init__(self, directory: Path, max_size: int) -> None:
        self._directory = directory
        self._max_size = max_size
        self._grants: dict[str, tuple[Path, float]] = {}

    def find(self, owner: str, files_hash: str) -> Path | None:
        """The owner's archive with this hash, if it was uploaded; from now on it counts as used."""
        path = self._place(owner, files_hash)
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
        return path

    def remove_old(self, before: float) -> None:
        """Remove archives that were not used since `before`, in seconds since the epoch."""
        for path in self._directory.glob("*/*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < before:
                    path.unlink()

    def grant(self, owner: str, files_hash: str) -> str:
        """Permission to upload one archive within an hour: the path of the URL to PUT it to."""
        now = time.monotonic()
        self._grants = {token: grant for token, grant in self._grants.items() if grant[1] > now}
        if len(self._grants) >= _MOST_GRANTS:
            raise ApiError(429, "too many uploads are under way")
        token = new_token()
        self._grants[token] = (self._place(owner, files_hash), now + _LIFETIME)
        return PATH + token

    async def receive(self, request: Request) -> Response:
        """``PUT /uploads/{token}``. Raises ApiError: 403 for a token that is not or no longer good, 413."""
        grant = self._grants.get(request.url.path.removeprefix(PATH))
        if request.method != "PUT" or grant is None or grant[1] <= time.monotonic():
            raise ApiError(403, "this upload URL is not valid, or no longer")
        place = grant[0]
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(dir=place.parent, prefix=".upload-")
        try:
            with os.fdopen(handle, "wb") as file:
                await self._store(request, file.fileno())
            os.replace(name, place)  # noqa: PTH105
        except BaseException:
            os.unlink(name)  # noqa: PTH108
            raise
        return Response(status_code=200)

    async def _store(self, request: Request, fd: int) -> None:
        size = 0
        try:
            async for part in request.stream():
                size += len(part)
                if size > self._max_size:
                    raise ApiError(413, f"the files are larger than {self._max_size} bytes")
                await asyncio.to_thread(_write_all, fd, part)
        except ClientDisconnect:
            raise ApiError(499, "the client hung up") from None

    def _place(self, owner: str, files_hash: str) -> Path:
        if not _HASH.fullmatch(files_hash):
            raise ApiError(400, "the hash of files is 64 lowercase hex digits")
        return self._directory / hashlib.sha256(owner.encode()).hexdigest()[:32] / f"{files_hash}.tar"


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
