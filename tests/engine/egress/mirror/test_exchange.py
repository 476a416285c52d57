"""The mirror, with an index and file hosts on loopback: whom it fetches from for whom, and what it keeps."""

import asyncio
import contextlib
import hashlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ringfence.engine.egress.dialer import Dialer
from ringfence.engine.egress.http1 import client_context
from ringfence.engine.egress.mirror.blobs import Blobs
from ringfence.engine.egress.mirror.exchange import MirrorClient, Pace
from ringfence.engine.egress.mirror.fetch import Fetcher
from ringfence.engine.egress.mirror.service import Index, Mirror
from ringfence.engine.egress.policy import Policy, parse_policy
from ringfence.engine.egress.resolver import Resolver
from ringfence.engine.egress.settings import NetworkSettings

INDEX, FILES = "127.0.0.17", "127.0.0.18"
DENY_ALL = ["0.0.0.0/0"]
WHEEL = b"wheel" * 1000
LARGE = 2 << 20
PATIENT = Pace()


class Hosts:
    """An index on one address, and what its pages name on another, both at one port."""

    def __init__(self) -> None:
        self.port = 0
        self.asked: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            path = head.split()[1]
            self.asked.append(path)
            status, extra, body = self.answer(path)
            writer.write(f"HTTP/1.1 {status}\r\n{extra}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            await writer.drain()
        writer.close()

    def answer(self, path: str) -> tuple[str, str, bytes]:
        if path.startswith("/simple/large"):
            return "200 OK", "Content-Type: application/json\r\n", b'{"meta": "%s"}' % (b"x" * LARGE)
        if path.startswith("/simple/"):
            digest = hashlib.sha256(WHEEL).hexdigest()
            name = path.split("/")[2]
            host = "index.test" if name == "moved" else "files.test"
            page = f'<a href="http://{host}:{self.port}/{name}/x-1.0.tar.gz#sha256={digest}"></a>'
            return "200 OK", "Content-Type: text/html\r\n", page.encode()
        if path.startswith("/moved/"):
            return "302 Found", f"Location: http://files.test:{self.port}/x-1.0.tar.gz\r\n", b""
        return "200 OK", "", WHEEL


@pytest.fixture
async def hosts() -> AsyncIterator[Hosts]:
    made = Hosts()
    index = await asyncio.start_server(made.serve, INDEX, 0)
    made.port = index.sockets[0].getsockname()[1]
    files = await asyncio.start_server(made.serve, FILES, made.port)
    yield made
    index.close()
    files.close()


class Engine:
    """The engine's side of the cache: `kept` is what is there, `target` where the rest is written to."""

    def __init__(self) -> None:
        self.kept: Path | None = None
        self.target = os.devnull
        self.ended: list[bool] = []
        self.blobs = Blobs(self.tell, 1 << 30)

    def tell(self, message: dict[str, Any]) -> None:
        number = message["number"]
        if message["event"] == "blob-end":
            self.ended.append(message["whole"])
            self.blobs.ended(number)
            return
        path, flags = (self.kept, os.O_RDONLY) if self.kept else (self.target, os.O_WRONLY)
        descriptor = os.open(path, flags)
        asyncio.get_running_loop().call_soon(self.blobs.opened, number, descriptor, self.kept is not None)


class Sandbox:
    """Uses the mirror as a sandbox with a policy does."""

    def __init__(self, hosts: Hosts, engine: Engine, pace: Pace) -> None:
        self.hosts = hosts
        self.packages = [("index.test", hosts.port)]
        self.policy = self.of(["@packages"], DENY_ALL)
        self.refusals: list[str] = []
        resolver = Resolver({"index.test": (INDEX,), "files.test": (FILES,)})
        dialer = Dialer(NetworkSettings(allow_private=(INDEX, FILES)), resolver, self.packages)
        fetcher = Fetcher(dialer, client_context(""), frozenset())
        mirror = Mirror((Index("pypi", f"http://index.test:{hosts.port}/simple", ""),), fetcher, engine.blobs)
        self.client = MirrorClient(mirror, lambda: (self.policy,), self.refusals.append, pace)
        self.tasks: list[asyncio.Task[None]] = []
        self.ends: list[socket.socket] = []

    def of(self, allow: Sequence[str], deny: Sequence[str]) -> Policy:
        return parse_policy([text.format(self.hosts.port) for text in allow], deny, None, self.packages)

    async def ask(self, path: str) -> socket.socket:
        near, end = socket.socketpair()
        end.setblocking(False)
        self.ends.append(end)
        self.tasks.append(asyncio.ensure_future(self.client.serve(near)))
        await asyncio.get_running_loop().sock_sendall(end, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        return end

    async def get(self, path: str) -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection(sock=await self.ask(path), limit=1 << 24)
        async with asyncio.timeout(20):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.partition("content-length: ")[2].split()[0])
            body = await reader.readexactly(length)
        writer.close()
        return int(head.split()[1]), body

    async def ended(self) -> None:
        async with asyncio.timeout(20):
            await asyncio.gather(*self.tasks)


@pytest.fixture
async def make(hosts: Hosts) -> AsyncIterator[Callable[..., Sandbox]]:
    made: list[Sandbox] = []

    def create(engine: Engine | None = None, pace: Pace = PATIENT) -> Sandbox:
        made.append(Sandbox(hosts, engine or Engine(), pace))
        return made[-1]

    yield create
    for sandbox in made:
        for end in sandbox.ends:
            end.close()
        await sandbox.ended()


Make = Callable[..., Sandbox]
FILE = "/pypi/0/files/tiny/x-1.0.tar.gz"
NAMED = ["index.test:{0}"]


@pytest.mark.parametrize("kept", [False, True])
async def test_a_file_comes_only_from_a_host_that_the_policy_allows(
    make: Make, hosts: Hosts, tmp_path: Path, kept: bool
) -> None:
    engine = Engine()
    if kept:
        engine.kept = tmp_path / "file"
        engine.kept.write_bytes(WHEEL)
    sandbox = make(engine)
    for allow, deny, status in (
        (NAMED, DENY_ALL, 403),
        ([*NAMED, "files.test:{0}"], DENY_ALL, 200),
        (["@packages"], DENY_ALL, 200),
        ([], [f"{FILES}/32"], 403),
        ([], [f"{INDEX}/32"], 403),
        ([], ["192.0.2.0/24"], 200),
    ):
        sandbox.policy = sandbox.of(allow, deny)
        del hosts.asked[:]
        found, body = await sandbox.get(FILE)
        assert (found, body == WHEEL) == (status, status == 200), (allow, deny, body[:200])
        assert hosts.asked.count("/tiny/x-1.0.tar.gz") == (status == 200 and not kept)
    assert f"files.test:{hosts.port} was refused by the sandbox's network policy" in sandbox.refusals[0]


async def test_a_redirect_does_not_lead_to_another_host(make: Make) -> None:
    sandbox = make()
    path = FILE.replace("tiny", "moved")
    assert (await sandbox.get(path))[0] == 200
    sandbox.policy = sandbox.of(NAMED, DENY_ALL)
    status, sentence = await sandbox.get(path)
    assert (status, b"files.test" in sentence) == (403, True)


async def test_what_is_under_way_is_broken_off_when_the_policy_changes(make: Make) -> None:
    sandbox = make()
    end = await sandbox.ask("/pypi/0/simple/large/")
    await asyncio.get_running_loop().sock_recv(end, 1)
    sandbox.policy = sandbox.of(["@packages", "else.test"], DENY_ALL)
    await sandbox.client.recheck()
    assert not sandbox.tasks[0].done()
    sandbox.policy = sandbox.of(["else.test"], DENY_ALL)
    await sandbox.client.recheck()
    await sandbox.ended()


async def test_a_page_that_is_not_read_is_given_up(make: Make) -> None:
    sandbox = make(pace=Pace(seconds=0.05, rate=1 << 40))
    for number in range(4):
        await sandbox.ask(f"/pypi/0/simple/large{number}/")
    await sandbox.ended()
    assert "reads it too slowly" in sandbox.refusals[0]
    assert (await sandbox.get("/pypi/0/simple/tiny/"))[0] == 200


async def test_a_sandbox_has_four_pages_under_way_and_no_more(make: Make, hosts: Hosts) -> None:
    sandbox = make()
    ends = [await sandbox.ask(f"/pypi/0/simple/large{number}/") for number in range(6)]
    for end in ends[:4]:
        await asyncio.get_running_loop().sock_recv(end, 1)  # they have begun, and nobody reads on
    await asyncio.sleep(0.05)
    assert len(hosts.asked) == 4
    ends[0].close()
    await asyncio.get_running_loop().sock_recv(ends[4], 1)
    assert len(hosts.asked) == 5


async def test_a_full_disk_does_not_spoil_a_download(make: Make) -> None:
    engine = Engine()
    for engine.target, kept in (("/dev/full", False), (os.devnull, True)):
        sandbox = make(engine)
        assert await sandbox.get(FILE) == (200, WHEEL)
        await sandbox.ended()
        assert engine.ended.pop() == kept
