"""The mirror's HTTP: one sandbox's requests, and how much of the egress they may hold at a time.

A page is in memory until the sandbox has read it, and a file holds a connection and a place in the cache. So
each sandbox may have so many answers of each kind under way, and has to read them: further requests wait.
"""

import asyncio
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

import h11

from ringfence.engine.egress.dialer import RefusedError, UnreachableError
from ringfence.engine.egress.http1 import Peer, accept
from ringfence.engine.egress.mirror.blobs import Blob
from ringfence.engine.egress.mirror.fetch import Answer, FetchError
from ringfence.engine.egress.mirror.pages import BadPageError, File
from ringfence.engine.egress.mirror.service import Mirror, NotThereError, Project
from ringfence.engine.egress.policy import Policy

_MOST_PAGES = 4
_MOST_FILES = 16
_BLOCK = 256 * 1024


@dataclass(frozen=True)
class Pace:
    """How slowly a sandbox may read: `seconds` behind at most, at `rate` bytes per second."""

    seconds: float = 30.0
    rate: float = 256 * 1024


class MirrorClient:
    """One sandbox's use of the mirror. `refused` gets a sentence about what was refused to it."""

    def __init__(
        self,
        mirror: Mirror,
        policies: Callable[[], tuple[Policy, ...]],
        refused: Callable[[str], None],
        pace: Pace = Pace(),
    ) -> None:
        self.mirror = mirror
        self.policies = policies
        self.refused = refused
        self.pace = pace
        self.pages = asyncio.Semaphore(_MOST_PAGES)
        self.files = asyncio.Semaphore(_MOST_FILES)
        self._running: set[_Exchange] = set()

    def judge(self) -> None:
        """Whether the sandbox may use the mirror at all. Raises RefusedError."""
        self.mirror.judge(self.policies())

    async def serve(self, near: socket.socket) -> None:
        """Serve one connection until it closes."""
        peer = await accept(near, None)
        try:
            while await self._exchange(_Exchange(self, peer)):
                peer.machine.start_next_cycle()
        except (OSError, h11.ProtocolError):
            return
        finally:
            await peer.close()

    async def _exchange(self, exchange: "_Exchange") -> bool:
        self._running.add(exchange)
        try:
            return await exchange.run()
        finally:
            self._running.discard(exchange)

    async def recheck(self) -> None:
        """Break off what the sandbox's policies do not allow any more."""
        for exchange in tuple(self._running):
            await exchange.recheck()


class _Exchange:
    """One request of a sandbox."""

    def __init__(self, client: MirrorClient, peer: Peer) -> None:
        self._client = client
        self._mirror = client.mirror
        self._peer = peer
        self._policies: tuple[Policy, ...] = ()
        self._project: Project | None = None
        self._file: File | None = None
        self._patience = client.pace.seconds

    async def run(self) -> bool:
        """Answer it; whether another may follow."""
        request = await self._peer.receive()
        if not isinstance(request, h11.Request):
            return False
        while not isinstance(await self._peer.receive(), h11.EndOfMessage):
            pass
        self._policies = self._client.policies()
        try:
            await self._answer(request)
        except RefusedError as error:
            self._client.refused(str(error))
            await self._say(403, str(error))
        except NotThereError as error:
            await self._say(404, str(error))
        except (FetchError, BadPageError, UnreachableError, ValueError) as error:  # an address may be none
            await self._say(502, str(error))
        return self._peer.reusable

    async def _answer(self, request: h11.Request) -> None:
        if request.method != b"GET":
            await self._say(405, "this mirror can only be read from")
            return
        path = unquote(urlsplit(request.target.decode("latin-1")).path)
        project, name = self._mirror.project(path)
        self._project = project
        await self._mirror.check_index(project, self._policies)
        if name:
            async with self._client.files:
                await self._answer_file(project, name)
            return
        accepted = next((value for key, value in request.headers if key == b"accept"), b"*/*")
        async with self._client.pages:
            page = await self._mirror.page(project, accepted.decode("latin-1"), self._policies)
            await self._send(200, page.content_type, page.body)

    async def recheck(self) -> None:
        """Break off unless it is still allowed."""
        policies = self._client.policies()
        try:
            if self._project is not None:
                await self._mirror.check_index(self._project, policies)
            if self._file is not None:
                await self._mirror.check_file(self._file, policies)
        except (FetchError, RefusedError, UnreachableError) as error:
            self._client.refused(str(error))
            self._peer.writer.transport.abort()

    async def _answer_file(self, project: Project, name: str) -> None:
        async with self._client.pages:
            self._file = file = await self._mirror.file(project, name, self._policies)
        await self._mirror.check_file(file, self._policies)
        blob = await self._mirror.open(file.digest)
        whole = False
        try:
            if blob.found and blob.descriptor is not None:
                await self._from_cache(blob.descriptor)
            else:
                async with self._mirror.fetch(project, file, self._policies) as answer:
                    whole = await self._from_index(answer, blob)
        finally:
            self._mirror.blobs.done(blob, whole=whole)

    async def _from_cache(self, descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        await self._head(200, [("content-length", str(size))])
        at = 0
        while at < size:
            block = await asyncio.to_thread(os.pread, descriptor, _BLOCK, at)
            if not block:
                raise ConnectionAbortedError
            await self._pass_on(block)
            at += len(block)
        await self._peer.send(h11.EndOfMessage())

    async def _from_index(self, answer: Answer, blob: Blob) -> bool:
        """Pass a file on while it comes, and write it down. Whether all of it is written."""
        if answer.status != 200:
            raise NotThereError(f"the index answered {answer.status}")
        length = answer.headers.get(b"content-length", b"").decode("latin-1")
        if length.isdigit():
            self._mirror.blobs.expect(blob, int(length))
        await self._head(200, [("content-length", length)] if length.isdigit() else [])
        try:
            async for block in answer.blocks():
                await self._mirror.blobs.write(blob, block)
                await self._pass_on(block)
        except FetchError:
            raise ConnectionAbortedError from None  # it is too late for another answer
        await self._peer.send(h11.EndOfMessage())
        return blob.descriptor is not None

    async def _head(self, status: int, headers: list[tuple[str, str]]) -> None:
        fields = [("content-type", "application/octet-stream"), *headers]
        await self._peer.send(h11.Response(status_code=status, headers=fields))

    async def _say(self, status: int, sentence: str) -> None:
        await self._send(status, "text/plain; charset=utf-8", f"Ringfence: {sentence}\n".encode())

    async def _send(self, status: int, content_type: str, body: bytes) -> None:
        await self._peer.send(
            h11.Response(
                status_code=status,
                headers=[("content-type", content_type), ("content-length", str(len(body)))],
            )
        )
        for at in range(0, len(body), _BLOCK):
            await self._pass_on(body[at : at + _BLOCK])
        await self._peer.send(h11.EndOfMessage())

    async def _pass_on(self, block: bytes) -> None:
        """Send a part of an answer to a sandbox that reads. Raises OSError when it does not."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            async with asyncio.timeout(self._patience):
                await self._peer.send(h11.Data(data=block))
        except TimeoutError:
            self._client.refused(
                "an answer of the package mirror was broken off: the sandbox reads it too slowly, "
                f"less than {self._client.pace.rate / 1024:.0f} KiB per second"
            )
            self._peer.writer.transport.abort()
            raise
        gained = len(block) / self._client.pace.rate - (loop.time() - started)
        self._patience = min(self._client.pace.seconds, self._patience + gained)
