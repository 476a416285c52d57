"""The pull half of the OCI distribution protocol: manifests and blobs, with tokens, digests checked."""

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import aiohttp
from yarl import URL

from ringfence.core.errors import TemplateError
from ringfence.engine.templates.builder.spec import Credentials
from ringfence.engine.templates.registry.guard import Guard
from ringfence.engine.templates.registry.manifest import INDEX_TYPES, MANIFEST_TYPES
from ringfence.engine.templates.registry.reference import Reference

_MAX_JSON = 8 << 20
_MAX_REDIRECTS = 5
_CHUNK = 1 << 20
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=120)
_REDIRECTS = (301, 302, 303, 307, 308)
_PARAMETER = re.compile(r'([a-z_]+)="([^"]*)"')


class RegistryClient:
    """One image's repository at its registry. An async context manager. Raises TemplateError."""

    def __init__(self, reference: Reference, credentials: Credentials | None, guard: Guard) -> None:
        self._reference = reference
        self._credentials = credentials
        self._guard = guard
        self._authorization: str | None = None
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=self._guard.connector(), timeout=_TIMEOUT, auto_decompress=False
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def manifest(self, wanted: str) -> tuple[bytes, str]:
        """The manifest or index with this tag or digest, and its digest."""
        headers = {"Accept": ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))}
        async with self._get(URL(f"{self._reference.url}/manifests/{wanted}"), headers) as answer:
            data = await _bounded(answer, _MAX_JSON)
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        if wanted.startswith("sha256:") and wanted != digest:
            raise TemplateError(f"the registry sent another manifest than {wanted}")
        return data, digest

    async def blob(self, digest: str, most: int, target: Path) -> None:
        """Fetch a blob of at most `most` bytes into the new file `target`, and check its digest."""
        try:
            await self._fetch(digest, most, target)
        except OSError as error:
            raise TemplateError(f"the image cannot be stored on this machine: {error.strerror}") from error

    async def _fetch(self, digest: str, most: int, target: Path) -> None:
        hasher, size = hashlib.sha256(), 0
        with await asyncio.to_thread(target.open, "xb") as file:
            async with self._get(URL(f"{self._reference.url}/blobs/{digest}"), {}) as answer:
                async for chunk in answer.content.iter_chunked(_CHUNK):
                    size += len(chunk)
                    if size > most:
                        raise TemplateError(f"blob {digest} is larger than the manifest says")
                    await asyncio.to_thread(_digest_and_write, hasher, file, chunk)
        if "sha256:" + hasher.hexdigest() != digest:
            raise TemplateError(f"the registry sent another blob than {digest}")

    @asynccontextmanager
    async def _get(self, url: URL, headers: dict[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        """A GET with the login the registry asks for, along its redirects."""
        try:
            answer = await self._follow(url, headers)
            if answer.status == 401:
                challenge = answer.headers.get("WWW-Authenticate", "")
                answer.release()
                self._authorization = await self._login(challenge)
                answer = await self._follow(url, headers)
            try:
                if answer.status != 200:
                    raise TemplateError(self._problem(answer.status))
                yield answer
            finally:
                answer.release()
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            # ValueError: what it answers makes no address, or no header.
            raise TemplateError(f"registry {self._reference.host} cannot be used: {error}") from error

    async def _follow(self, url: URL, headers: dict[str, str]) -> aiohttp.ClientResponse:
        session = self._opened()
        origin = url.origin()
        for _ in range(_MAX_REDIRECTS):
            self._guard.check(url)
            # A redirect leads to a store that needs no login, and must not see this one.
            login = self._authorization if url.origin() == origin else None
            sent = {**headers, **({"Authorization": login} if login else {})}
            answer = await session.get(url, headers=sent, allow_redirects=False)
            if answer.status not in _REDIRECTS:
                return answer
            target = answer.headers.get("Location", "")
            answer.release()
            url = url.join(URL(target))
        raise TemplateError(f"registry {self._reference.host} redirects too often")

    async def _login(self, challenge: str) -> str:
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "basic" and self._credentials is not None:
            return self._basic(self._credentials)
        if scheme.lower() != "bearer":
            raise TemplateError(self._problem(401))
        parameters = dict(_PARAMETER.findall(rest))
        url = URL(parameters.get("realm", ""))
        query = {key: parameters[key] for key in ("service", "scope") if key in parameters}
        query.setdefault("scope", f"repository:{self._reference.path}:pull")
        self._guard.check(url)
        headers = {"Authorization": self._basic(self._credentials)} if self._credentials else {}
        async with self._opened().get(
            url.update_query(query), headers=headers, allow_redirects=False
        ) as answer:
            if answer.status != 200:
                raise TemplateError(self._problem(answer.status))
            try:
                token: dict[str, Any] = json.loads(await _bounded(answer, _MAX_JSON))
                return f"Bearer {token.get('token') or token['access_token']}"
            except (ValueError, KeyError, AttributeError):
                raise TemplateError(f"registry {self._reference.host} gave no token") from None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("the client is used outside of its context")
        return self._session

    @staticmethod
    def _basic(credentials: Credentials) -> str:
        pair = f"{credentials.username}:{credentials.password}".encode()
        return "Basic " + base64.b64encode(pair).decode()

    def _problem(self, status: int) -> str:
        name = f"{self._reference.host}/{self._reference.path}:{self._reference.wanted}"
        if status == 404:
            return f"there is no image {name}"
        if status in (401, 403):
            return f"the registry does not let us pull {name}; give user name and password"
        return f"the registry answered {status} for {name}"


def _digest_and_write(hasher: Any, file: Any, chunk: bytes) -> None:
    hasher.update(chunk)
    file.write(chunk)


async def _bounded(answer: aiohttp.ClientResponse, most: int) -> bytes:
    data = bytearray()
    async for chunk in answer.content.iter_chunked(_CHUNK):
        data += chunk
        if len(data) > most:
            raise TemplateError("the registry's answer is too large")
    return bytes(data)
