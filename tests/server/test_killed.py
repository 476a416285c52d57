"""A sandbox that dies in the middle of a stream: the client's connection is reset, and the SDK knows why."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from e2b import SandboxException
from e2b_code_interpreter import AsyncSandbox, Sandbox

if TYPE_CHECKING:
    from conftest import RunningServer

KILLED = "sandbox was killed or reached its"


def kill_soon(server: RunningServer, sandbox_id: str) -> Any:
    """A callback for output: kills the sandbox once the stream is known to flow."""
    once = threading.Event()

    def kill(*_: Any) -> None:
        if not once.is_set():
            once.set()
            threading.Thread(target=Sandbox.kill, args=(sandbox_id,), kwargs=server.options).start()

    return kill


def first_processes(server: RunningServer) -> set[int]:
    """The host's pids of the server's descendants that are the first of a PID namespace."""
    found = set()
    for pid in server.descendants():
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text()
            if re.search(r"^NSpid:.*\t1$", status, re.MULTILINE):
                found.add(pid)
    return found


def test_a_command(server: RunningServer, sandbox: Sandbox) -> None:
    with pytest.raises(SandboxException, match=KILLED):
        sandbox.commands.run(
            "while true; do echo on; sleep 0.05; done",
            on_stdout=kill_soon(server, sandbox.sandbox_id),
            timeout=60,
        )


async def test_a_command_asynchronously(server: RunningServer, async_sandbox: AsyncSandbox) -> None:
    handle = await async_sandbox.commands.run("sleep 60", background=True)
    assert await async_sandbox.kill()
    with pytest.raises(SandboxException, match=KILLED):
        await handle.wait()


def test_a_cell(server: RunningServer, sandbox: Sandbox) -> None:
    with pytest.raises(Exception, match="killed"):
        sandbox.run_code(
            "import time\nwhile True: print('on', flush=True); time.sleep(0.05)",
            on_stdout=kill_soon(server, sandbox.sandbox_id),
        )


async def test_a_cell_asynchronously(server: RunningServer, async_sandbox: AsyncSandbox) -> None:
    async def kill(*_: Any) -> None:
        await async_sandbox.kill()

    with pytest.raises(Exception, match="killed"):
        await async_sandbox.run_code("print('on', flush=True)\nimport time\ntime.sleep(60)", on_stdout=kill)


async def test_at_the_end_of_its_lease(server: RunningServer) -> None:
    sandbox = await AsyncSandbox.create("base", timeout=2, **server.options)
    with pytest.raises(SandboxException, match=KILLED):
        await sandbox.commands.run("sleep 60", timeout=60)


async def test_the_end_is_a_reset(server: RunningServer, async_sandbox: AsyncSandbox) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    body = b'{"code": "print(1, flush=True)\\nimport time\\ntime.sleep(60)"}'
    writer.write(
        f"POST /execute HTTP/1.1\r\nHost: x\r\nE2b-Sandbox-Id: {async_sandbox.sandbox_id}\r\n"
        f"E2b-Sandbox-Port: 49999\r\nX-Access-Token: {async_sandbox._envd_access_token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    async with asyncio.timeout(60):
        await reader.readuntil(b"stdout")
        await async_sandbox.kill()
        with pytest.raises(ConnectionResetError):
            while await reader.read(65536):
                pass
    writer.close()


async def test_when_its_first_process_dies(server: RunningServer) -> None:
    before = first_processes(server)
    sandbox = await AsyncSandbox.create("base", **server.options)
    (pid,) = first_processes(server) - before
    handle = await sandbox.commands.run("sleep 60", background=True)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(SandboxException, match=KILLED):
        await handle.wait()
    assert not await sandbox.is_running()
    async with asyncio.timeout(30):
        while await sandbox.kill():
            pass


async def test_what_was_killed_is_gone_at_once(server: RunningServer, async_sandbox: AsyncSandbox) -> None:
    headers = {"X-API-KEY": server.key}
    await async_sandbox.kill()
    async with httpx.AsyncClient(base_url=server.url, headers=headers) as client:
        response = await client.get(f"/sandboxes/{async_sandbox.sandbox_id}")
    assert response.status_code == 404
    assert not await async_sandbox.is_running()
