"""The three backends through one code path: embedded, a server elsewhere, and E2B's settings against a
real server."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from e2b import AuthenticationException
from e2b_code_interpreter import AsyncSandbox

from ringfence.core.config import Settings
from ringfence.core.errors import BackendError
from ringfence.integrations.backend import open_backend
from ringfence.integrations.embedded import _Child, server_environment


def make(**values: Any) -> Settings:
    return Settings(_env_file=None, **values)  # type: ignore[call-arg]


def test_the_servers_environment_is_an_allowed_list() -> None:
    environ = {
        "PATH": "/bin",
        "LC_ALL": "C",
        "ANTHROPIC_API_KEY": "a",
        "E2B_API_KEY": "b",
        "AWS_SECRET_ACCESS_KEY": "c",
        "RINGFENCE_API_KEY": "other",
        "RINGFENCE_LEVEL": "standard",
        "RINGFENCE_URL": "http://elsewhere",
        "RINGFENCE_MCP_TOKENS": "anna=secret",
    }
    assert server_environment(environ, "key") == {
        "PATH": "/bin",
        "LC_ALL": "C",
        "RINGFENCE_LEVEL": "standard",
        "RINGFENCE_API_KEY": "key",
    }


def test_ending_a_server_twice_closes_nothing_of_others() -> None:
    child = _Child("no-such-template")
    numbers = {child._lifeline, child.ready}
    child.end()
    others = [os.open(os.devnull, os.O_RDONLY) for _ in range(40)]
    assert numbers <= set(others)
    child.end()
    for descriptor in others:
        os.close(descriptor)


async def test_the_embedded_server_starts_once_works_and_leaves_nothing(tmp_path: Path) -> None:
    settings = make(backend="local", template="base")
    async with open_backend(settings) as backend, open_backend(settings) as same:
        assert same.api_url == backend.api_url
        assert backend.embedded is not None
        process = backend.embedded._child.process
        assert os.readlink(f"/proc/{process.pid}/fd/0") == "/dev/null"
        assert backend.describe().startswith("local, isolation ")
        async with await AsyncSandbox.create("base", **backend.sdk_options()) as sandbox:
            assert (await sandbox.run_code("40 + 2")).text == "42"
        directory = backend.embedded._child.directory
        assert directory.exists()
    assert process.returncode == 0
    assert not directory.exists()


async def test_an_embedded_server_that_cannot_start_says_why() -> None:
    with pytest.raises(BackendError, match="no-such-template"):
        async with open_backend(make(backend="local", template="no-such-template")):
            pass


async def test_a_start_that_is_given_up_leaves_nothing() -> None:
    async def use() -> None:
        async with open_backend(make(backend="local", template="base")):
            await asyncio.Event().wait()

    before = _children()
    task = asyncio.create_task(use())
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert _children() == before


def test_a_killed_owner_takes_its_server_along() -> None:
    program = """
import asyncio
from ringfence.core.config import Settings
from ringfence.integrations.backend import open_backend
async def main():
    async with open_backend(Settings(_env_file=None, backend="local", template="base")) as backend:
        print(backend.embedded._child.process.pid, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    server = int(owner.stdout.readline())
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{server}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


async def test_a_server_elsewhere(server: Any) -> None:
    async with open_backend(make(url=server.url, api_key=server.key)) as backend:
        assert backend.name == "remote"
        assert backend.isolation is not None
        async with await AsyncSandbox.create("base", **backend.sdk_options()) as sandbox:
            assert (await sandbox.run_code("'re' + 'mote'")).text == "remote"


async def test_the_cloud_path_against_a_real_server_with_a_real_key(server: Any) -> None:
    settings = make(e2b_api_key=server.key, e2b_api_url=server.url, e2b_sandbox_url=server.url)
    async with open_backend(settings) as backend:
        assert backend.name == "e2b"
        assert backend.describe() == f"e2b ({server.url})"
        async with await AsyncSandbox.create(**backend.sdk_options()) as sandbox:
            assert (await sandbox.run_code("'cl' + 'oud'")).text == "cloud"
    async with open_backend(
        settings.model_copy(update={"e2b_api_key": make(e2b_api_key="e2b_00").e2b_api_key})
    ) as wrong:
        with pytest.raises(AuthenticationException):
            await AsyncSandbox.create(**wrong.sdk_options())


async def test_what_is_not_a_ringfence_server_is_refused(server: Any) -> None:
    with pytest.raises(BackendError, match="no answer"):
        async with open_backend(make(url="http://127.0.0.1:9", api_key="e2b_00")):
            pass
    with pytest.raises(BackendError, match="/health with 404"):
        async with open_backend(make(url=f"{server.url}/nowhere", api_key=server.key)):
            pass


def _children() -> set[str]:
    tasks = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return {pid for task in tasks for pid in task.read_text().split()}
