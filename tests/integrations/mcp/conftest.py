"""The `python_executor` server as real clients see it: a process, spoken to on its standard input and
output."""

import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters

COMMAND = [sys.executable, "-P", "-m", "ringfence", "mcp"]
_PASSED_ON = ("RINGFENCE_CACHE_DIR", "XDG_CACHE_HOME", "TMPDIR")

Connect = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture(params=["auto", "legacy"])
def era(request: pytest.FixtureRequest) -> str:
    """Both generations of the protocol."""
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


@pytest.fixture
def remote(server: Any) -> dict[str, str]:
    """Settings that lead to the shared server of the tests."""
    template = "code-interpreter-v1" if "code-interpreter-v1" in server.templates else server.templates[0]
    return {"RINGFENCE_URL": server.url, "RINGFENCE_API_KEY": server.key, "RINGFENCE_TEMPLATE": template}
