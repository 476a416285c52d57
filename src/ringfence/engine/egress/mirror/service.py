"""The mirror's HTTP: pages of indexes, and the files on them."""

import asyncio
import os
import re
import socket
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

import h11

from ringfence.engine.egress.dialer import RefusedError, UnreachableError
from ringfence.engine.egress.http1 import Peer, accept
from ringfence.engine.egress.mirror.blobs import Blob, Blobs
from ringfence.engine.egress.mirror.fetch import Answer, Fetcher, FetchError, origin_of
from ringfence.engine.egress.mirror.pages import BadPageError, File, Page, npm_page, python_page
from ringfence.engine.egress.policy import Policy

PORT = 3129
"""On which the guest listens, on the sandbox's loopback."""
ADDRESS = f"http://127.0.0.1:{PORT}"

_PYTHON = re.compile(r"/pypi/([0-9]{1,2})/(simple|files)/([A-Za-z0-9][A-Za-z0-9._-]{0,127})(?:/([^/]*))?")
_NPM = re.compile(
    r"/npm/((?:@[a-z0-9~][a-z0-9~._-]{0,100}/)?[a-zA-Z0-9~][a-zA-Z0-9~._-]{0,213})(?:/-/([^/]+))?"
)
_ANY_PAGE = {"pypi": "application/vnd.pypi.simple.v1+json, text/html;q=0.5", "npm": "application/json"}
_METADATA = ".metadata"
_BLOCK = 1 << 20
_MOST_PROJECTS = 256
_MOST_READ = 8
"""Pages that are read at once, for all sandboxes: the largest take hundreds of megabytes meanwhile."""


@dataclass(frozen=True)
class Index:
    """A package index. kind: ``pypi`` or ``npm``. authorization: the value of the header, or empty."""

    kind: str
    url: str
    authorization: str = field(repr=False)

    def credentials(self) -> tuple[str, str] | None:
        """What `Fetcher.get` takes."""
        return (origin_of(self.url), self.authorization) if self.authorization else None


class _NotThereError(Exception):
    """There is nothing at this path; the message may say more."""


@dataclass(frozen=True)
class _Project:
    """A project of an index, and where a sandbox finds its files."""

    index: Index
    name: str
    files_at: str

    @property
    def url(self) -> str:
        base = self.index.url.rstrip("/")
        if self.index.kind == "npm":
            return f"{base}/{self.name.replace('/', '%2f')}"
        return f"{base}/{self.name}/"


class Mirror:
    """Serves all sandboxes."""

    def __init__(self, indexes: tuple[Index, ...], fetcher: Fetcher, blobs: Blobs) -> None:
        self._python = [index for index in indexes if index.kind == "pypi"]
        self._npm = next((index for index in indexes if index.kind == "npm"), None)
        self._fetcher = fetcher
        self._blobs = blobs
        self._files: OrderedDict[str, dict[str, File]] = OrderedDict()
        self._reading = asyncio.Semaphore(_MOST_READ)

    def judge(self, policies: tuple[Policy, ...]) -> None:
        """Whether a sandbox may use any of the indexes. Raises RefusedError."""
        refused: RefusedError | None = None
        for index in (*self._python, *filter(None, [self._npm])):
            try:
                self._fetcher.judge(index.url, policies)
            except RefusedError as error:
                refused = error
            else:
                return
        raise refused or RefusedError("there is no package index")

    async def serve(
        self,
        near: socket.socket,
        policies: Callable[[], tuple[Policy, ...]],
        refused: Callable[[str], None],
    ) -> None:
        """Serve one connection until it closes."""
        client = await accept(near, None)
        try:
            while await _Exchange(self, client, policies(), refused).run():
                client.machine.start_next_cycle()
        except (OSError, h11.ProtocolError):
            return
        finally:
            await client.close()

    def project(self, path: str) -> tuple[_Project, str]:
        """The project that a path is about, and the file or nothing. Raises _NotThereError."""
        if found := _PYTHON.fullmatch(path):
            number, what, name, file = int(found[1]), found[2], found[3], found[4] or ""
            if number < len(self._python) and bool(file) == (what == "files"):
                return _Project(self._python[number], name, f"{ADDRESS}/pypi/{number}/files/{name}"), file
        elif self._npm is not None and (found := _NPM.fullmatch(path)):
            return _Project(self._npm, found[1], f"{ADDRESS}/npm/{found[1]}/-"), found[2] or ""
        raise _NotThereError("this is the package mirror of the sandbox")

    def judge_index(self, project: _Project, policies: tuple[Policy, ...]) -> None:
        """Whether a sandbox may use a project's index. Raises RefusedError."""
        self._fetcher.judge(project.index.url, policies)

    async def page(self, project: _Project, accept_types: str) -> Page:
        """A project's page. Raises FetchError, BadPageError, _NotThereError."""
        headers = {"Accept": accept_types, "Accept-Encoding": "gzip"}
        async with self._fetcher.get(project.url, headers, project.index.credentials()) as answer:
            if answer.status != 200:
                raise _NotThereError(f"{project.name}: the index answered {answer.status}")
            kind = answer.headers.get(b"content-type", b"").decode("latin-1")
            read = npm_page if project.index.kind == "npm" else python_page
            async with self._reading:
                body = await answer.page()
                page = await asyncio.to_thread(read, body, kind, answer.url, project.files_at)
        self._files[project.files_at] = page.files
        self._files.move_to_end(project.files_at)
        if len(self._files) > _MOST_PROJECTS:
            self._files.popitem(last=False)
        return page

    async def file(self, project: _Project, name: str) -> File:
        """What the index says of a file. Raises what `page` raises."""
        base = name.removesuffix(_METADATA) if project.index.kind == "pypi" else name
        known = self._files.get(project.files_at, {})
        if base not in known:
            known = (await self.page(project, _ANY_PAGE[project.index.kind])).files
        if base not in known:
            raise _NotThereError(f"{project.name} has no file {base}")
        found = known[base]
        return found if base == name else File(found.url + _METADATA, "")

    async def open(self, digest: str) -> Blob:
        """The file with a digest in the cache."""
        return await self._blobs.open(digest) if digest else Blob(0, None, found=False)

    def done(self, blob: Blob, *, whole: bool) -> None:
        """Give it back."""
        self._blobs.done(blob, whole=whole)

    def fetch(self, project: _Project, url: str) -> Any:
        """A request for a file, as a context."""
        return self._fetcher.get(url, {"Accept": "*/*"}, project.index.credentials())


class _Exchange:
    """One request of a sandbox."""

    def __init__(
        self, mirror: Mirror, client: Peer, policies: tuple[Policy, ...], refused: Callable[[str], None]
    ) -> None:
        self._mirror = mirror
        self._client = client
        self._policies = policies
        self._refused = refused

    async def run(self) -> bool:
        """Answer it; whether another may follow."""
        request = await self._client.receive()
        if not isinstance(request, h11.Request):
            return False
        while not isinstance(await self._client.receive(), h11.EndOfMessage):
            pass
        try:
            await self._answer(request)
        except RefusedError as error:
            self._refused(str(error))
            await self._say(403, str(error))
        except _NotThereError as error:
            await self._say(404, str(error))
        except (FetchError, BadPageError, UnreachableError, ValueError) as error:  # an address may be none
            await self._say(502, str(error))
        return self._client.reusable

    async def _answer(self, request: h11.Request) -> None:
        if request.method != b"GET":
            await self._say(405, "this mirror can only be read from")
            return
        path = unquote(urlsplit(request.target.decode("latin-1")).path)
        project, name = self._mirror.project(path)
        self._mirror.judge_index(project, self._policies)
        if name:
            await self._file(project, name)
            return
        accepted = next((value for key, value in request.headers if key == b"accept"), b"*/*")
        page = await self._mirror.page(project, accepted.decode("latin-1"))
        await self._send(200, page.content_type, page.body)

    async def _file(self, project: _Project, name: str) -> None:
        file = await self._mirror.file(project, name)
        blob = await self._mirror.open(file.digest)
        whole = False
        try:
            if blob.found and blob.descriptor is not None:
                await self._from_cache(blob.descriptor)
            else:
                async with self._mirror.fetch(project, file.url) as answer:
                    whole = await self._from_index(answer, blob)
        finally:
            self._mirror.done(blob, whole=whole)

    async def _from_cache(self, descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        await self._head(200, [("content-length", str(size))])
        at = 0
        while at < size:
            block = await asyncio.to_thread(os.pread, descriptor, _BLOCK, at)
            if not block:
                raise ConnectionAbortedError
            await self._client.send(h11.Data(data=block))
            at += len(block)
        await self._client.send(h11.EndOfMessage())

    async def _from_index(self, answer: Answer, blob: Blob) -> bool:
        """Pass a file on while it comes, and write it down. Whether all of it is written."""
        if answer.status != 200:
            raise _NotThereError(f"the index answered {answer.status}")
        length = answer.headers.get(b"content-length", b"").decode("latin-1")
        await self._head(200, [("content-length", length)] if length.isdigit() else [])
        try:
            async for block in answer.blocks():
                await self._write_down(blob, block)
                await self._client.send(h11.Data(data=block))
        except FetchError:
            raise ConnectionAbortedError from None  # it is too late for another answer
        await self._client.send(h11.EndOfMessage())
        return blob.descriptor is not None

    async def _write_down(self, blob: Blob, block: bytes) -> None:
        if blob.descriptor is None:
            return
        try:
            await asyncio.to_thread(_write, blob.descriptor, block)
        except OSError:  # no room; the sandbox gets the file nevertheless
            self._mirror.done(blob, whole=False)

    async def _head(self, status: int, headers: list[tuple[str, str]]) -> None:
        fields = [("content-type", "application/octet-stream"), *headers]
        await self._client.send(h11.Response(status_code=status, headers=fields))

    async def _say(self, status: int, sentence: str) -> None:
        await self._send(status, "text/plain; charset=utf-8", f"Ringfence: {sentence}\n".encode())

    async def _send(self, status: int, content_type: str, body: bytes) -> None:
        fields = [("content-type", content_type), ("content-length", str(len(body)))]
        await self._client.send(h11.Response(status_code=status, headers=fields))
        await self._client.send(h11.Data(data=body))
        await self._client.send(h11.EndOfMessage())


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
