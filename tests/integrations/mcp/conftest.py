"""The `python_executor` server as real clients see it: a process, spoken to on its standard input and
output, or over HTTP."""

import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client

COMMAND = [sys.executable, "-P", "-m", "ringfence", "mcp"]
_PASSED_ON = ("RINGFENCE_CACHE_DIR", "XDG_CACHE_HOME", "TMPDIR")

Connect = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture(params=["auto", "legacy"])
def era(request: pytest.FixtureRequest) -> str:
    """Both generations of the protocol."""
    return str(request.param)


@pytest.fixture(params=["stdio", "http"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def connect(tmp_path: Path) -> Connect:
    """Start a server for one client; its working directory, and so its allowed one, is `tmp_path`."""

    @asynccontextmanager
    async def start(mode: str = "auto", **environment: str) -> AsyncIterator[Client]:
        passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        parameters = StdioServerParameters(
            command=COMMAND[0], args=COMMAND[1:], env={**passed, **environment}, cwd=tmp_path
        )
        async with Client(parameters, mode=mode) as client:
            yield client

    return start


@dataclass
class HttpServer:
    """A ``ringfence mcp --http`` process. `errors` is what it wrote to its standard error so far."""

    process: "subprocess.Popen[str]"
    url: str
    errors: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def connect(self, mode: str = "auto", token: str | None = None) -> AsyncIterator[Client]:
        """A client that shows `token`."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with create_mcp_http_client(headers=headers) as http:
            transport = streamable_http_client(f"{self.url}/mcp", http_client=http, max_sse_event_size=None)
            async with Client(transport, mode=mode) as client:
                yield client


StartHttp = Callable[..., HttpServer]


@pytest.fixture
def start_http(tmp_path: Path) -> Iterator[StartHttp]:
    """Start servers on free ports of loopback; what still runs at the end is ended."""
    started: list[HttpServer] = []

    def start(**environment: str) -> HttpServer:
        process = subprocess.Popen(
            [*COMMAND, "--http", "127.0.0.1:0"],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "is ready at http" in line, line + process.stderr.read()
        server = HttpServer(process, line.split(" is ready at ")[1].split("/mcp")[0])
        threading.Thread(target=lambda: server.errors.extend(process.stderr), daemon=True).start()
        started.append(server)
        return server

    yield start
    for server in started:
        if server.process.poll() is None:
            server.process.terminate()
        server.process.wait(30)
        assert server.process.stderr is not None
        server.process.stderr.close()


@pytest.fixture
def open_client(connect: Connect, start_http: StartHttp, transport: str) -> Connect:
    """A client of a server of its own, over either transport."""

    @asynccontextmanager
    async def start(mode: str = "auto", **environment: str) -> AsyncIterator[Client]:
        if transport == "stdio":
            async with connect(mode, **environment) as client:
                yield client
        else:
            async with start_http(**environment).connect(mode) as client:
                yield client

    return start


@pytest.fixture
def remote(server: Any) -> dict[str, str]:
    """Settings that lead to the shared server of the tests."""
    template = "code-interpreter-v1" if "code-interpreter-v1" in server.templates else server.templates[0]
    return {"RINGFENCE_URL": server.url, "RINGFENCE_API_KEY": server.key, "RINGFENCE_TEMPLATE": template}
