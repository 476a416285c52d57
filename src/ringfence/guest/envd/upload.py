"""``POST /files``: writing files, as one body or as the parts of a form, straight to disk."""

import asyncio
import errno
import os
import posixpath
import stat
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import Any

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from ringfence.guest.envd.auth import HTTPError
from ringfence.guest.envd.entries import write_metadata
from ringfence.guest.envd.paths import PathError, ensure_dirs, printable
from ringfence.guest.envd.users import User

IDLE_SECONDS = 60.0
"""An upload of which nothing came for so long is given up."""

_WRITE_BYTES = 256 * 1024
_GZIP_WINDOW = 31
_MAX_PART_HEADER_BYTES = 16 * 1024
_METADATA_HEADER = "x-metadata-"
_MAX_METADATA_KEY_BYTES = 246  # 255 of the kernel less the prefix "user.e2b."
_MAX_METADATA_BYTES = 4096
_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the last: the limit of one file is about the disk too
_OPEN_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


def request_metadata(headers: Mapping[str, str]) -> dict[str, str]:
    """The metadata in ``X-Metadata-*`` headers, keys in lower case. Raises `HTTPError` (400)."""
    found: dict[str, str] = {}
    total = 0
    for name, value in headers.items():
        if not name.lower().startswith(_METADATA_HEADER):
            continue
        key = name.lower().removeprefix(_METADATA_HEADER)
        if not key or len(key) > _MAX_METADATA_KEY_BYTES:
            raise HTTPError(400, f"metadata key must have 1 to {_MAX_METADATA_KEY_BYTES} bytes")
        if not all(" " <= letter <= "~" for letter in key + value):
            raise HTTPError(400, f"metadata '{key}' must be printable US-ASCII")
        total += len(key) + len(value)
        found[key] = value
    if total > _MAX_METADATA_BYTES:
        raise HTTPError(400, f"metadata must have at most {_MAX_METADATA_BYTES} bytes in total")
    return found


class TargetFile:
    """A file that is being written. Made anew or truncated, and the user's from the first moment.

    The order (create, change owner, write) is what clients that watch the directory see.
    """

    def __init__(self, path: str, user: User, metadata: Mapping[str, str]) -> None:
        """Open `path` for writing, with its parents. Raises `HTTPError`."""
        self.path = path
        self._size = 0
        try:
            ensure_dirs(posixpath.dirname(path), user)
            self._fd = os.open(path, _OPEN_FLAGS, 0o666)
        except NotADirectoryError as error:
            raise HTTPError(400, f"error ensuring directories: {error}") from None
        except OSError as error:
            raise _http_error(error, path, "error opening file") from None
        try:
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                raise HTTPError(400, f"path is not a regular file: {printable(path)}")
            os.fchown(self._fd, user.uid, user.gid)
            write_metadata(self._fd, metadata)
        except OSError as error:
            self.close()
            raise _http_error(error, path, "error setting owner or metadata of file") from None
        except HTTPError:
            self.close()
            raise

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`. Raises `HTTPError` (507 when the disk is full)."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest[:_WRITE_BYTES]) :]
        except OSError as error:
            raise _http_error(error, self.path, "error writing file") from None

    def close(self) -> None:
        """Close the file; what was written stays."""
        os.close(self._fd)


def _http_error(error: OSError, path: str, doing: str) -> HTTPError:
    if error.errno in _SPACE:
        return HTTPError(507, "not enough disk space available")
    if error.errno == errno.EISDIR:
        return HTTPError(400, f"path is a directory: {printable(path)}")
    if error.errno == errno.ENXIO:  # a pipe nobody reads
        return HTTPError(400, f"path is not a regular file: {printable(path)}")
    return HTTPError(500, f"{doing}: {os.strerror(error.errno or 0).lower()}")


class Body:
    """A request's body, decompressed, piece by piece."""

    def __init__(self, request: Request) -> None:
        """Read `request`. Raises `HTTPError` (400) for an encoding that is not gzip or identity."""
        encoding = request.headers.get("content-encoding", "").partition(";")[0].strip().lower()
        if encoding not in ("", "identity", "gzip"):
            raise HTTPError(400, f"unsupported Content-Encoding: {encoding}, supported: [gzip]")
        self._gzip = encoding == "gzip"
        self._source = request.stream()

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body. Raises `HTTPError`: 400 broken gzip, 408 when nothing comes for `IDLE_SECONDS`."""
        if not self._gzip:
            while piece := await self._next():
                yield piece
            return
        decoder = zlib.decompressobj(_GZIP_WINDOW)
        try:
            while piece := await self._next():
                while piece:
                    if data := decoder.decompress(piece, _WRITE_BYTES):
                        yield data
                    piece = decoder.unconsumed_tail
                    if decoder.eof and decoder.unused_data:  # gzip files may be several in a row
                        piece, decoder = decoder.unused_data, zlib.decompressobj(_GZIP_WINDOW)
        except zlib.error as error:
            raise HTTPError(400, f"error decompressing request body: {error}") from None
        if not decoder.eof:
            raise HTTPError(400, "error decompressing request body: unexpected end")

    async def discard(self) -> None:
        """Read and forget the rest, so that the client gets the answer instead of a broken connection."""
        with suppress(HTTPError, ClientDisconnect):
            while await self._next():
                pass

    async def _next(self) -> bytes:
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                async for piece in self._source:
                    if piece:
                        return piece
        except TimeoutError:
            raise HTTPError(408, "no data received for too long") from None
        return b""


OpenTarget = Callable[[str], TargetFile]


async def store_body(body: Body, target: TargetFile) -> None:
    """Write the whole body to `target`. Raises `HTTPError`."""
    try:
        async for piece in body.pieces():
            target.write(piece)
    finally:
        target.close()


class FormWriter:
    """Writes the ``file`` parts of a multipart form as they arrive; other parts are ignored.

    The file name of a part is its path (slashes included) unless the request names one.
    """

    def __init__(self, boundary: bytes, path: str | None, open_target: OpenTarget) -> None:
        """Parse with `boundary`; `path`: the target given by the request; `open_target` makes the files."""
        self._path = path
        self._open_target = open_target
        self._target: TargetFile | None = None
        self._name = self._value = b""
        self._disposition = b""
        self._ended = False
        self._parser = MultipartParser(boundary, self._callbacks())

    def _callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._open,
            "on_part_data": self._data,
            "on_part_end": self.close,
            "on_end": self._end,
        }

    def feed(self, data: bytes) -> None:
        """Take a piece of the body. Raises `HTTPError`."""
        try:
            self._parser.write(data)
        except MultipartParseError as error:
            raise HTTPError(400, f"error reading form: {error}") from None

    def finish(self) -> None:
        """The body has ended. Raises `HTTPError` (400) when it ended too early."""
        if not self._ended:
            raise HTTPError(400, "error reading form: unexpected end")

    def close(self) -> None:
        """Close the file being written, if any."""
        if self._target is not None:
            self._target.close()
            self._target = None

    def _end(self) -> None:
        self._ended = True

    def _begin(self) -> None:
        self._name = self._value = self._disposition = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]
        self._bound()

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._bound()

    def _bound(self) -> None:
        if len(self._name) + len(self._value) > _MAX_PART_HEADER_BYTES:
            raise HTTPError(400, "error reading form: a header of a part is too long")

    def _header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name = self._value = b""

    def _open(self) -> None:
        _, options = parse_options_header(self._disposition.decode("latin-1"))
        if options.get(b"name") != b"file":
            return
        path = self._path
        if path is None:
            path = options.get(b"filename", b"").decode("utf-8", "surrogateescape")
            if not path:
                raise HTTPError(400, "error getting multipart custom part file name: no filename")
        self._target = self._open_target(path)

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._target is not None:
            self._target.write(memoryview(data)[start:end])


def form_boundary(content_type: str) -> bytes:
    """The boundary of a multipart ``Content-Type``. Raises `HTTPError` (400)."""
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not 0 < len(boundary) <= 256:
        raise HTTPError(400, "error parsing multipart form: no multipart boundary param in Content-Type")
    return boundary


async def store_form(body: Body, form: FormWriter) -> None:
    """Write all files of a form. Raises `HTTPError`."""
    try:
        async for piece in body.pieces():
            form.feed(piece)
        form.finish()
    except PathError as error:
        raise HTTPError(400, f"error resolving path: {error}") from None
    finally:
        form.close()
