"""What is special to HTTP, with real sandboxes: sessions belong to tokens, files pass beside the protocol."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable
from typing import Any

import httpx

from tests.integrations.mcp.calls import execute, record_of, sandboxes, text_of

ANNA, BEN = "a" * 24, "b" * 24
StartHttp = Callable[..., Any]


async def test_sessions_belong_to_their_token(
    start_http: StartHttp, remote: dict[str, str], era: str
) -> None:
    server = start_http(RINGFENCE_MCP_TOKENS=f"anna={ANNA},ben={BEN}", **remote)
    async with server.connect(era, ANNA) as anna, server.connect(era, BEN) as ben:
        first = await execute(anna, "v = 1")
        handle = first["session_id"]
        assert "new session" in first["session_note"]
        assert (await execute(anna, "v", session_id=handle))["result"] == "1"
        other = await execute(anna, "'v' in globals()")
        assert (other["result"], other["session_id"] == handle) == ("False", False)
        no_such = {"code": "1", "session_id": "s_" + "0" * 32}
        unknown = text_of(await ben.call_tool("execute_code", no_such)).partition(": ")[2]
        assert "no such session" in unknown
        started = await execute(anna, "import time; time.sleep(60)", session_id=handle, background=True)
        for tool, arguments in (
            ("execute_code", {"code": "v"}),
            ("execute_code", {"code": "v", "on_loss": "replay"}),
            ("run_command", {"command": "ls"}),
            ("list_files", {}),
            ("export_notebook", {}),
            ("fork_session", {}),
            ("interrupt_execution", {}),
        ):
            refused = await ben.call_tool(tool, {**arguments, "session_id": handle})
            assert refused.is_error
            assert text_of(refused).partition(": ")[2] == unknown
        jobs = {"execution_id": started["execution_id"]}
        assert (await ben.call_tool("get_execution", jobs)).is_error
        assert (await ben.call_tool("interrupt_execution", jobs)).is_error
        assert (await ben.call_tool("close_session", {"session_id": handle})).is_error
        assert record_of(await ben.call_tool("list_sessions", {}))["sessions"] == []
        assert len(record_of(await anna.call_tool("list_sessions", {}))["sessions"]) == 2
        url = f"{server.url}/files/{handle}/home/user/a.bin"
        assert httpx.put(url, content=b"1", headers={"Authorization": f"Bearer {BEN}"}).status_code == 404
        needs = await anna.call_tool("list_files", {})
        assert needs.is_error
        assert "session_id" in text_of(needs)


async def test_large_files_pass_beside_the_protocol(start_http: StartHttp, remote: dict[str, str]) -> None:
    server = start_http(RINGFENCE_MCP_TOKENS=ANNA, RINGFENCE_MCP_MAX_UPLOAD="8000000", **remote)
    data = bytes(range(256)) * 20_000
    bearer = {"Authorization": f"Bearer {ANNA}"}
    async with server.connect(token=ANNA) as client, httpx.AsyncClient(headers=bearer) as http:
        where = record_of(await client.call_tool("upload_file", {"path": "in/data.bin"}))
        session = where["session_id"]
        sent = await http.put(where["upload_url"], content=data)
        assert (sent.status_code, sent.json()["bytes"]) == (201, len(data))
        code = "d = open('in/data.bin', 'rb').read(); n = open('out.bin', 'wb').write(d[::-1]); n"
        assert (await execute(client, code, session_id=session))["result"] == str(len(data))
        answer = await client.call_tool("download_file", {"path": "out.bin", "session_id": session})
        fetched = await http.get(record_of(answer)["download_url"])
        assert fetched.content == data[::-1]
        assert fetched.headers["Content-Disposition"].startswith("attachment")
        assert fetched.headers["X-Content-Type-Options"] == "nosniff"
        base = f"{server.url}/files/{session}"
        assert (await http.get(f"{base}/home/user/missing")).status_code == 404
        assert (await http.get(f"{base}/home/user")).status_code == 400
        assert (await http.put(f"{base}/home/user/big", content=b"x" * 9_000_000)).status_code == 413

        async def endless() -> Any:
            for _ in range(100):
                yield b"x" * 100_000

        with contextlib.suppress(httpx.HTTPError):  # it may hang up on the rest
            assert (await http.put(f"{base}/home/user/big", content=endless())).status_code == 413
        local = await client.call_tool("upload_file", {"path": "a", "local_path": "/etc/passwd"})
        assert "over HTTP" in text_of(local)
        local = await client.call_tool(
            "download_file", {"path": "a", "local_path": "a", "session_id": session}
        )
        assert "over HTTP" in text_of(local)


async def test_callers_with_keys_of_the_ringfence_server(
    start_http: StartHttp, remote: dict[str, str], server: Any, era: str
) -> None:
    settings = {name: value for name, value in remote.items() if name != "RINGFENCE_API_KEY"}
    mcp = start_http(**settings)
    before = await sandboxes(server)
    async with mcp.connect(era, server.stranger) as client:
        made = await execute(client, "1 + 1")
        assert made["result"] == "2"
        assert await sandboxes(server) == before  # it is the caller's, not ours
    async with mcp.connect(era, server.key) as client:
        await execute(client, "1")
        assert len(await sandboxes(server) - before) == 1
        foreign = await client.call_tool("execute_code", {"code": "1", "session_id": made["session_id"]})
        assert "no such session" in text_of(foreign)
    refused = httpx.post(f"{mcp.url}/mcp", headers={"Authorization": "Bearer " + "x" * 40}, json={})
    assert refused.status_code == 401


async def test_the_end_of_the_server_ends_running_code_and_sandboxes(
    start_http: StartHttp, remote: dict[str, str], server: Any, era: str
) -> None:
    before = await sandboxes(server)
    mcp = start_http(RINGFENCE_MCP_DRAIN="1", **remote)

    async def run() -> None:
        async with mcp.connect(era) as client:
            await client.call_tool("execute_code", {"code": "import time; time.sleep(300)"})

    running = asyncio.create_task(run())
    async with mcp.connect(era) as client:
        while not any(
            session["running"]
            for session in record_of(await client.call_tool("list_sessions", {}))["sessions"]
        ):
            await asyncio.sleep(0.05)
    mcp.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(mcp.process.wait, 30) == 0
    await asyncio.wait({running}, timeout=20)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    deadline = time.monotonic() + 20
    while await sandboxes(server) - before:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


async def test_a_session_is_rebuilt_after_the_servers_end(
    start_http: StartHttp, remote: dict[str, str], tmp_path: Any
) -> None:
    settings = {"RINGFENCE_MCP_JOURNAL_DIR": str(tmp_path / "journals"), "RINGFENCE_MCP_TOKENS": ANNA}
    first = start_http(**settings, **remote)
    async with first.connect(token=ANNA) as client:
        handle = (await execute(client, "a = 20"))["session_id"]
        await execute(client, "a += 1", session_id=handle)
    first.process.terminate()
    assert await asyncio.to_thread(first.process.wait, 30) == 0
    second = start_http(**settings, **remote)
    async with second.connect(token=ANNA) as client:
        lost = await client.call_tool("execute_code", {"code": "a", "session_id": handle})
        assert "started anew" in text_of(lost)
        rebuilt = await execute(client, "a * 2", session_id=handle, on_loss="replay")
        assert rebuilt["result"] == "42"
        await client.call_tool("close_session", {"session_id": handle})
    assert not list((tmp_path / "journals").glob("*/*.jsonl"))
