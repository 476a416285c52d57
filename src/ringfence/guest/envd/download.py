"""``GET /files``: a file's bytes, with ranges, conditions and gzip."""

import email.utils
import mimetypes
import os
import posixpath
import stat
import zlib
from asyncio import sleep
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ringfence.guest.connect import until_hang_up
from ringfence.guest.envd.auth import HTTPError
from ringfence.guest.envd.paths import printable

mimetypes.init(())  # the built-in table only: the files of the system are the sandbox's user's

_CHUNK_BYTES = 128 * 1024
_GZIP_LEVEL = 1  # the wire is local; speed matters more than size
_GZIP_WINDOW = 31
_CONDITIONAL = ("range", "if-range", "if-modified-since", "if-none-match")
_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A regular file that is open for reading."""

    fd: int
    path: str
    size: int
    modified: float

    @property
    def etag(self) -> str:
        """A validator that changes with size or time."""
        return f'"{int(self.modified * 1_000_000):x}-{self.size:x}"'


def open_file(path: str) -> OpenFile:
    """Open `path` for reading. Raises `HTTPError`: 404 missing, 400 directory or no regular file.

    A pipe or a device is never waited for.
    """
    try:
        fd = os.open(path, _OPEN_FLAGS)
    except (FileNotFoundError, NotADirectoryError):
        raise HTTPError(404, f"path '{printable(path)}' does not exist") from None
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise HTTPError(500, f"error opening file '{printable(path)}': {reason}") from None
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise HTTPError(400, f"path '{printable(path)}' is {kind}")
    return OpenFile(fd, path, status.st_size, status.st_mtime)


def accepted_encoding(header: str) -> str:
    """The coding for an ``Accept-Encoding`` header (RFC 9110, 12.5.3): ``gzip`` or ``identity``.

    gzip is for who asks for it, as the SDK does with ``gzip=True``: who names several codings tells what his
    library can read, and on a local wire reading it takes longer. Raises `HTTPError` (406).
    """
    weights: dict[str, float] = {}
    for item in header.split(","):
        name, _, parameters = item.partition(";")
        weight = 1.0
        if parameters.strip().lower().startswith("q="):
            try:
                weight = float(parameters.strip()[2:])
            except ValueError:
                weight = 0.0
        if name.strip():
            weights[name.strip().lower()] = weight
    gzip = weights.get("gzip", 0.0)
    # Without a word about it, the identity is acceptable, but nobody asked for it.
    identity = weights.get("identity", weights.get("*", 0.0001))
    if identity <= 0:
        gzip = weights.get("gzip", weights.get("*", 0.0))
    several = len(weights.keys() - {"identity", "*"}) > 1
    if gzip > 0 and gzip >= identity and not (several and identity > 0):
        return "gzip"
    if identity <= 0:
        raise HTTPError(406, "no acceptable encoding found, supported: [gzip]")
    return "identity"


def file_response(request: Request, file: OpenFile) -> Response:
    """The answer for an open file; it is closed when the answer has been sent."""
    kind = mimetypes.guess_type(file.path, strict=False)[0] or "application/octet-stream"
    name = quote(printable(posixpath.basename(file.path)))
    headers = {
        "content-disposition": f"inline; filename*=UTF-8''{name}",
        "vary": "Accept-Encoding",
        # A page from a sandbox may run its scripts, but never as a page of the server it is shown through.
        "content-security-policy": "sandbox allow-scripts allow-downloads",
        "x-content-type-options": "nosniff",
        "last-modified": email.utils.formatdate(file.modified, usegmt=True),
    }
    try:
        if any(name in request.headers for name in _CONDITIONAL):
            return _conditional(request, file, headers, kind)
        if accepted_encoding(request.headers.get("accept-encoding", "")) == "gzip":
            headers["content-encoding"] = "gzip"
            return _StreamedFile(200, file, _gzip(file), headers, kind)
    except BaseException:
        os.close(file.fd)
        raise
    headers |= {"accept-ranges": "bytes", "etag": file.etag}
    return _whole(file, headers, kind)


def _whole(file: OpenFile, headers: dict[str, str], kind: str) -> Response:
    if 0 < file.size <= _CHUNK_BYTES:
        try:
            return Response(os.read(file.fd, _CHUNK_BYTES), 200, headers, kind)
        finally:
            os.close(file.fd)
    if file.size > 0:  # files of /proc say 0 and have content all the same: no length then
        headers["content-length"] = str(file.size)
    return _StreamedFile(200, file, _read(file, 0, file.size or None), headers, kind)


class _StreamedFile(Response):
    """Sends pieces of a file as fast as the client takes them, then closes it.

    Starlette's own streaming response imports modules on first use, which is too late in a sandbox.
    """

    def __init__(
        self,
        status: int,
        file: OpenFile,
        pieces: AsyncGenerator[bytes, None],
        headers: dict[str, str],
        kind: str,
    ) -> None:
        super().__init__(None, status, headers, kind)
        self._file = file
        self._pieces = pieces
        if "content-length" not in headers and "content-length" in self.headers:
            del self.headers["content-length"]  # of the body that is not there

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_hang_up(self._send(scope, send), receive)
        finally:
            os.close(self._file.fd)

    async def _send(self, scope: Scope, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        await send(start)
        async with aclosing(self._pieces) as pieces:
            async for piece in pieces:
                if scope["method"] == "HEAD":
                    break
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _read(file: OpenFile, start: int, length: int | None) -> AsyncGenerator[bytes, None]:
    """Pieces of the file; with `length` None until its end. A file that shrank breaks the answer off."""
    os.lseek(file.fd, start, os.SEEK_SET)
    while length is None or length > 0:
        data = os.read(file.fd, _CHUNK_BYTES if length is None else min(_CHUNK_BYTES, length))
        if not data:
            if length is not None:
                raise EOFError(f"{file.path} became shorter while it was read")
            return
        length = None if length is None else length - len(data)
        yield data
        await sleep(0)  # a fast client must not keep the loop from everybody else


async def _gzip(file: OpenFile) -> AsyncGenerator[bytes, None]:
    compressor = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
    async for data in _read(file, 0, None):
        if packed := compressor.compress(data):
            yield packed
    yield compressor.flush()


def _conditional(request: Request, file: OpenFile, headers: dict[str, str], kind: str) -> Response:
    headers |= {"accept-ranges": "bytes", "etag": file.etag}
    if _not_modified(request, file):
        os.close(file.fd)
        return Response(None, 304, headers)
    wanted = request.headers.get("range")
    condition = request.headers.get("if-range")
    if condition not in (None, file.etag, headers["last-modified"]):
        wanted = None
    span = None if wanted is None else parse_range(wanted, file.size)
    if span is None:
        return _whole(file, headers, kind)
    start, end = span
    if start >= end:
        os.close(file.fd)
        headers["content-range"] = f"bytes */{file.size}"
        return Response("invalid range", 416, headers, "text/plain")
    headers["content-range"] = f"bytes {start}-{end - 1}/{file.size}"
    headers["content-length"] = str(end - start)
    return _StreamedFile(206, file, _read(file, start, end - start), headers, kind)


def _not_modified(request: Request, file: OpenFile) -> bool:
    tags = request.headers.get("if-none-match")
    if tags is not None:
        given = {tag.strip().removeprefix("W/") for tag in tags.split(",")}
        return "*" in given or file.etag in given
    since = request.headers.get("if-modified-since")
    if since is None:
        return False
    try:
        return int(file.modified) <= email.utils.parsedate_to_datetime(since).timestamp()
    except (ValueError, TypeError):
        return False


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """Start and end (exclusive) of a single byte range, clipped to `size`; an empty span is unsatisfiable.

    None for what is not understood (other units, several ranges): then the whole file is the answer.
    """
    unit, _, spec = header.partition("=")
    first, dash, last = spec.strip().partition("-")
    digits = (first + last).isascii() and (first + last).isdigit() and len(first + last) <= 36
    if unit.strip().lower() != "bytes" or "," in spec or not dash or not digits:
        return None
    if not first:
        return max(0, size - int(last)), size if int(last) else 0
    if last and int(last) < int(first):
        return None
    return int(first), min(size, int(last) + 1) if last else size
