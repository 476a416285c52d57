"""The mirror: pages of indexes, and the files on them, as far as a sandbox's policies allow their hosts."""

import asyncio
import re
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from ringfence.engine.egress.dialer import RefusedError
from ringfence.engine.egress.mirror.blobs import Blob, Blobs
from ringfence.engine.egress.mirror.fetch import Answer, Fetcher, FetchError, origin_of
from ringfence.engine.egress.mirror.pages import File, Page, npm_page, python_page
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
_MOST_PROJECTS = 256
_MOST_READ = 8
"""Pages that are read at once, for all sandboxes: the largest take hundreds of megabytes meanwhile."""

Answering = AbstractAsyncContextManager[Answer]


@dataclass(frozen=True)
class Index:
    """A package index. kind: ``pypi`` or ``npm``. authorization: the value of the header, or empty."""

    kind: str
    url: str
    authorization: str = field(repr=False)

    def credentials(self) -> tuple[str, str] | None:
        """What `Fetcher.get` takes."""
        return (origin_of(self.url), self.authorization) if self.authorization else None


class NotThereError(Exception):
    """There is nothing at this path; the message may say more."""


@dataclass(frozen=True)
class Project:
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
        self.blobs = blobs
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
            except FetchError:
                continue
            else:
                return
        raise refused or RefusedError("there is no package index")

    def project(self, path: str) -> tuple[Project, str]:
        """The project that a path is about, and the file or nothing. Raises NotThereError."""
        if found := _PYTHON.fullmatch(path):
            number, what, name, file = int(found[1]), found[2], found[3], found[4] or ""
            if number < len(self._python) and bool(file) == (what == "files"):
                return Project(self._python[number], name, f"{ADDRESS}/pypi/{number}/files/{name}"), file
        elif self._npm is not None and (found := _NPM.fullmatch(path)):
            return Project(self._npm, found[1], f"{ADDRESS}/npm/{found[1]}/-"), found[2] or ""
        raise NotThereError("this is the package mirror of the sandbox")

    async def check_index(self, project: Project, policies: tuple[Policy, ...]) -> None:
        """Whether a sandbox may use a project's index. Raises FetchError, RefusedError, UnreachableError."""
        await self._fetcher.check(project.index.url, policies)

    async def check_file(self, file: File, policies: tuple[Policy, ...]) -> None:
        """Whether a sandbox may have a file from where its index says it is, though it may be had from here.

        Raises FetchError, RefusedError, UnreachableError.
        """
        await self._fetcher.check(file.url, _beyond_packages(policies))

    async def page(self, project: Project, accept_types: str, policies: tuple[Policy, ...]) -> Page:
        """A project's page.

        Raises FetchError, BadPageError, NotThereError, RefusedError, UnreachableError.
        """
        headers = {"Accept": accept_types, "Accept-Encoding": "gzip"}
        async with self._get(project, project.url, headers, policies) as answer:
            if answer.status != 200:
                raise NotThereError(f"{project.name}: the index answered {answer.status}")
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

    async def file(self, project: Project, name: str, policies: tuple[Policy, ...]) -> File:
        """What the index says of a file. Raises what `page` raises."""
        base = name.removesuffix(_METADATA) if project.index.kind == "pypi" else name
        known = self._files.get(project.files_at, {})
        if base not in known:
            known = (await self.page(project, _ANY_PAGE[project.index.kind], policies)).files
        if base not in known:
            raise NotThereError(f"{project.name} has no file {base}")
        found = known[base]
        return found if base == name else File(found.url + _METADATA, "")

    async def open(self, digest: str) -> Blob:
        """The file with a digest in the cache."""
        return await self.blobs.open(digest) if digest else Blob(0, None, found=False)

    def fetch(self, project: Project, file: File, policies: tuple[Policy, ...]) -> Answering:
        """A request for a file, as a context."""
        return self._get(project, file.url, {"Accept": "*/*"}, policies)

    def _get(
        self, project: Project, url: str, headers: Mapping[str, str], policies: tuple[Policy, ...]
    ) -> Answering:
        return self._fetcher.get(url, headers, project.index.credentials(), _beyond_packages(policies))


def _beyond_packages(policies: tuple[Policy, ...]) -> tuple[Policy, ...]:
    """Those that judge where an index has its files: who allows indexes by ``@packages`` means these too."""
    return tuple(policy for policy in policies if not policy.has_packages)
