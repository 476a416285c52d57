"""Programs that know nothing of proxies, held to the names of their servers: git, apt, databases.

The servers are on a loopback address that the operator's table calls ``*.test``.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http.server
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from e2b_code_interpreter import Sandbox

from ringfence.engine.certificates import issue, make_authority

if TYPE_CHECKING:
    from conftest import RunningServer

ADDRESS = "127.0.0.17"
NAMES = ("code.test", "deb.test", "cache.test", "sql.test", "late.test")
REDIS, POSTGRES, GREETING = 6379, 5432, 2525
ALLOWED = ["code.test", "deb.test", f"cache.test:{REDIS}", f"sql.test:{POSTGRES}", f"late.test:{GREETING}"]


class _Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        pass  # connections that are refused in the middle


async def _redis(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers PING, in the protocol of Redis, on one connection that stays open."""
    with contextlib.suppress(OSError):
        while (line := await reader.readline()).startswith(b"*"):
            for _ in range(2 * int(line[1:])):
                await reader.readline()
            writer.write(b"+PONG\r\n")
    writer.close()


async def _postgres(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Declines TLS, as PostgreSQL does: one word each way before anything else."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        assert await reader.readexactly(8) == b"\0\0\0\x08\x04\xd2\x16\x2f"
        writer.write(b"N")
        await reader.read()
    writer.close()


async def _greeting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Speaks first, as mail servers do."""
    with contextlib.suppress(OSError):
        writer.write(b"220 late.test\r\n")
        writer.write(await reader.readline())
    writer.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A web server with a git repository and a repository of Debian packages, and three others."""
    directory = tmp_path_factory.mktemp("site")
    _repository(directory)
    (directory / "Packages").write_text(
        "Package: tiny\nVersion: 1.0\nArchitecture: all\nFilename: ./tiny.deb\nSize: 1\nSHA256: " + "0" * 64
        + "\n\n"
    )  # fmt: skip
    keys = tmp_path_factory.mktemp("keys")
    make_authority(keys / "ca.pem", keys / "ca.key", "test")
    pair = issue((keys / "ca.pem").read_bytes(), (keys / "ca.key").read_bytes(), NAMES)
    (keys / "pair.pem").write_bytes(b"".join(pair))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys / "pair.pem")
    handler = functools.partial(_Files, directory=str(directory))
    with contextlib.ExitStack() as stack:
        for port in (80, 443):
            server = _Server((ADDRESS, port), handler)
            if port == 443:
                # The handshake is the handler's, which closes what does not come through it.
                server.socket = context.wrap_socket(
                    server.socket, server_side=True, do_handshake_on_connect=False
                )
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
        stack.enter_context(_serving({REDIS: _redis, POSTGRES: _postgres, GREETING: _greeting}))
        yield


def _repository(directory: Path) -> None:
    work = directory / "work"
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t.test", "-C", str(work)]
    subprocess.run(["git", "init", "-q", "-b", "main", str(work)], check=True)
    (work / "README").write_text("cloned\n")
    subprocess.run([*git, "add", "README"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "first"], check=True)
    subprocess.run(["git", "clone", "-q", "--bare", str(work), str(directory / "r.git")], check=True)
    subprocess.run(["git", "-C", str(directory / "r.git"), "update-server-info"], check=True)


@contextlib.contextmanager
def _serving(handlers: dict[int, Any]) -> Iterator[None]:
    loop = asyncio.new_event_loop()

    async def start() -> list[asyncio.Server]:
        return [await asyncio.start_server(handler, ADDRESS, port) for port, handler in handlers.items()]

    servers = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        for server in servers:
            server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.05))
        loop.close()


@pytest.fixture(scope="module")
def sandbox(
    site: None, tmp_path_factory: pytest.TempPathFactory, starting: Callable[..., RunningServer]
) -> Iterator[Sandbox]:
    running = starting(
        tmp_path_factory.mktemp("programs"),
        templates="base",
        RINGFENCE_NETWORK_HOSTS=",".join(f"{name}={ADDRESS}" for name in NAMES),
        RINGFENCE_NETWORK_ALLOW_PRIVATE=ADDRESS,
    )
    network: Any = {"allow_out": ALLOWED, "deny_out": ["0.0.0.0/0"]}
    with Sandbox.create("base", network=network, timeout=600, **running.options) as made:
        yield made
    assert running.stop() == 0


def shell(sandbox: Sandbox, command: str, **options: Any) -> str:
    result = sandbox.commands.run(f"({command}) 2>&1 || true", timeout=120, **options)
    return result.stdout.strip()


def python(sandbox: Sandbox, code: str) -> str:
    result = sandbox.run_code(code)
    assert result.error is None, result.error
    return "".join(result.logs.stdout).strip()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_git(sandbox: Sandbox, scheme: str) -> None:
    command = (
        f"cd $(mktemp -d) && GIT_SSL_NO_VERIFY=1 git clone -q {scheme}://code.test/r.git && cat r/README"
    )
    assert shell(sandbox, command) == "cloned"
    assert "not resolve" in shell(sandbox, f"git clone -q {scheme}://elsewhere.test/r.git /tmp/none")


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="there is no apt on this machine")
def test_apt(sandbox: Sandbox) -> None:
    shown = shell(
        sandbox,
        "mkdir -p /tmp/a/state/lists/partial /tmp/a/cache/archives/partial /tmp/a/etc\n"
        "touch /tmp/a/state/status\n"
        "echo 'deb [trusted=yes allow-insecure=yes] http://deb.test ./' > /tmp/a/list\n"
        "O='-o Dir::Etc=/tmp/a/etc -o Dir::Etc::sourcelist=/tmp/a/list -o Dir::State=/tmp/a/state "
        "-o Dir::State::status=/tmp/a/state/status -o Dir::Cache=/tmp/a/cache -o APT::Sandbox::User='\n"
        "apt-get $O update; apt-cache $O show tiny",
        user="root",
    )
    assert "Package: tiny" in shown, shown


def test_a_connection_that_stays_open(sandbox: Sandbox) -> None:
    code = (
        f"import socket\nc = socket.create_connection(('cache.test', {REDIS}), 20)\nr = []\n"
        "for _ in range(3):\n    c.sendall(b'*1\\r\\n$4\\r\\nPING\\r\\n'); r.append(c.recv(99))\nprint(r)"
    )
    assert python(sandbox, code) == str([b"+PONG\r\n"] * 3)


def test_a_word_each_way_before_anything_else(sandbox: Sandbox) -> None:
    code = (
        f"import socket\nc = socket.create_connection(('sql.test', {POSTGRES}), 20)\n"
        "c.sendall(bytes([0, 0, 0, 8, 4, 210, 22, 47])); print(c.recv(9))"
    )
    assert python(sandbox, code) == "b'N'"


def test_a_server_that_speaks_first(sandbox: Sandbox) -> None:
    code = (
        f"import socket\nc = socket.create_connection(('late.test', {GREETING}), 20)\n"
        "f = c.makefile('rwb', buffering=0); print(f.readline()); f.write(b'EHLO\\r\\n'); print(f.readline())"
    )
    assert python(sandbox, code).splitlines() == ["b'220 late.test\\r\\n'", "b'EHLO\\r\\n'"]


def test_event_loops(sandbox: Sandbox) -> None:
    code = (
        "import asyncio\nasync def get():\n"
        "    r, w = await asyncio.open_connection('deb.test', 80)\n"
        "    w.write(b'GET /Packages HTTP/1.0\\r\\nHost: deb.test\\r\\n\\r\\n')\n"
        "    return (await r.read()).startswith(b'HTTP/1.0 200')\n"
        "print(await asyncio.gather(*(get() for _ in range(20))) == [True] * 20)"
    )
    assert python(sandbox, code) == "True"


def test_a_handshake_that_hides_a_name(sandbox: Sandbox) -> None:
    """Encrypted ClientHello: its extension is added to an ordinary handshake."""
    code = (
        "import socket, ssl\n"
        "i, o = ssl.MemoryBIO(), ssl.MemoryBIO()\n"
        "t = ssl.create_default_context().wrap_bio(i, o, server_hostname='code.test')\n"
        "try: t.do_handshake()\nexcept ssl.SSLWantReadError: pass\n"
        "h = bytearray(o.read()[9:])\n"
        "at = 34; at += 1 + h[at]; at += 2 + int.from_bytes(h[at:at+2], 'big'); at += 1 + h[at]\n"
        "def hello(extra):\n"
        "    e = bytes(h[at+2:]) + extra; b = bytes(h[:at]) + len(e).to_bytes(2, 'big') + e\n"
        "    m = b'\\1' + len(b).to_bytes(3, 'big') + b\n"
        "    c = socket.create_connection(('code.test', 443), 20)\n"
        "    c.sendall(b'\\x16\\3\\1' + len(m).to_bytes(2, 'big') + m)\n"
        "    try: return c.recv(1)\n    except OSError as error: return type(error).__name__\n"
        "print(hello(b''), hello(b'\\xfe\\x0d\\0\\4abcd'))"
    )
    assert python(sandbox, code) == "b'\\x16' ConnectionResetError"
