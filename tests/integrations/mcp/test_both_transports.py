"""What holds in both generations of the protocol and over both transports, with real sandboxes."""

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from mcp import Client, MCPError

from tests.integrations.mcp.calls import execute, record_of, sandboxes, text_of, wait_until_running

Connect = Callable[..., AbstractAsyncContextManager[Client]]


async def test_calls_progress_timeouts_and_wrong_arguments(
    open_client: Connect, remote: dict[str, str], era: str
) -> None:
    progress: list[tuple[float, str]] = []

    async def note(value: float, total: float | None, message: str | None) -> None:
        progress.append((value, message or ""))

    async with open_client(era, A_HOST_SECRET="swordfish", **remote) as client:
        first = await execute(client, "import os; x = 6\nprint(dict(os.environ))\nx * 7")
        assert first["result"] == "42"
        assert "swordfish" not in json.dumps(first)
        session = first["session_id"]

        code = "import time\nfor n in range(4):\n    print('step', n, flush=True)\n    time.sleep(0.7)"
        arguments = {"code": code, "session_id": session}
        await client.call_tool("execute_code", arguments, progress_callback=note)
        assert any("step" in message for _, message in progress)
        values = [value for value, _ in progress]
        assert values == sorted(set(values))

        slow = await execute(client, "while True: pass", session_id=session, timeout_s=1)
        assert (slow["status"], slow["session_state"]) == ("timeout", "preserved")
        assert (await execute(client, "x", session_id=session))["result"] == "6"
        large = await client.call_tool(
            "execute_code", {"code": "print('y' * 10_000_000)", "session_id": session}
        )
        assert len(large.model_dump_json(by_alias=True)) < 900_000

        for tool, wrong in (
            ("execute_code", {}),
            ("execute_code", {"code": "1", "timeout_s": -1}),
            ("execute_code", {"code": "1", "on_loss": "perhaps"}),
            ("install_packages", {"packages": ["--index-url=http://x"], "session_id": session}),
            ("read_file", {"path": "missing", "session_id": session}),
            ("execute_code", {"code": "1", "session_id": "s_" + "0" * 32}),
            ("nope", {}),
        ):
            assert (await client.call_tool(tool, wrong)).is_error, (tool, wrong)


async def test_cancelling_and_reading_timeouts_interrupt_and_keep_the_variables(
    open_client: Connect, remote: dict[str, str], era: str
) -> None:
    async with open_client(era, **remote) as client:
        session = (await execute(client, "import time; kept = 2"))["session_id"]
        arguments = {"code": "time.sleep(300)", "session_id": session, "timeout_s": 600}
        call = asyncio.create_task(client.call_tool("execute_code", arguments))
        await wait_until_running(client)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert (await execute(client, "kept", session_id=session))["result"] == "2"
        with pytest.raises(MCPError):
            await client.call_tool("execute_code", arguments, read_timeout_seconds=2)
        assert (await execute(client, "kept", session_id=session))["result"] == "2"


async def test_a_long_call_answers_and_goes_on(
    open_client: Connect, remote: dict[str, str], era: str
) -> None:
    async with open_client(era, RINGFENCE_MCP_PATIENCE="1", **remote) as client:
        code = "import time\nprint('begun', flush=True)\ntime.sleep(3)\n'end'"
        answered = await client.call_tool("execute_code", {"code": code})
        record = record_of(answered)
        assert record["status"] == "running"
        assert record["stdout"] == "begun\n"
        assert record["execution_id"] in text_of(answered)
        arguments = {"execution_id": record["execution_id"], "wait_s": 30}
        ended = record_of(await client.call_tool("get_execution", arguments))
        assert (ended["status"], ended["result"].strip("'")) == ("ok", "end")


async def test_a_client_that_goes_in_the_middle_of_a_call_leaves_nothing(
    open_client: Connect, remote: dict[str, str], server: Any, era: str, transport: str
) -> None:
    before = await sandboxes(server)
    async with open_client(era, **remote) as client:
        session = (await execute(client, "import time; kept = 3"))["session_id"]
        arguments = {"code": "time.sleep(300)", "session_id": session, "timeout_s": 600}
        call = asyncio.create_task(client.call_tool("execute_code", arguments))
        await wait_until_running(client)
    with pytest.raises((asyncio.CancelledError, MCPError, Exception)):
        call.cancel()
        await call
    if transport == "http":
        # The server lives on, and its sessions with it: what ends them is their lease, or its own end.
        assert len(await sandboxes(server) - before) == 1
        return
    deadline = time.monotonic() + 30
    while await sandboxes(server) - before:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
