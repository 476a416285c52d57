"""Every tool in real sandboxes of a real server, through a real client."""

import asyncio
import base64
import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import Client

from tests.integrations.mcp.calls import execute, record_of, sandboxes, text_of, wait_until_running

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
Connect = Callable[..., AbstractAsyncContextManager[Client]]


async def test_state_persists_and_the_answer_is_complete(
    connect: Connect, remote: dict[str, str], era: str
) -> None:
    async with connect(era, **remote) as client:
        first = await execute(client, "x = 6\nprint('hello')\nx * 7")
        assert first["stdout"] == "hello\n"
        assert first["result"] == "42"
        assert first["session_state"] == "preserved"
        assert first["backend"].startswith("remote")
        assert first["isolation"]
        second = await client.call_tool("execute_code", {"code": "x + 1"})
        assert record_of(second)["result"] == "7"
        assert record_of(second)["session_id"] == first["session_id"]
        assert "result:\n7" in text_of(second)
        told = {name: part for name, part in record_of(second).items() if name != "usage"}
        assert second.structured_content == told


async def test_an_exception_is_a_normal_result(connect: Connect, remote: dict[str, str], era: str) -> None:
    async with connect(era, **remote) as client:
        result = await client.call_tool("execute_code", {"code": "y = 1\n1 / 0"})
        record = record_of(result)
        assert record["status"] == "error"
        assert record["error"]["name"] == "ZeroDivisionError"
        assert "1 / 0" in record["error"]["traceback"]
        assert (await execute(client, "y"))["result"] == "1"
        assert (await execute(client, "import nothing_like_this"))["hint"].startswith("'nothing_like_this'")
        assert (await execute(client, "def f(:"))["error"]["name"] == "SyntaxError"
        assert (await execute(client, "raise SystemExit(3)"))["error"]["name"] == "SystemExit"
        assert (await execute(client, "y"))["result"] == "1"


async def test_charts_come_as_pictures_and_tables_as_text(connect: Connect, remote: dict[str, str]) -> None:
    async with connect(**remote) as client:
        code = "import matplotlib.pyplot as plt\nplt.plot([1, 3, 2]); plt.show()"
        result = await client.call_tool("execute_code", {"code": code})
        image = result.content[1]
        assert image.type == "image"
        assert base64.b64decode(image.data).startswith(b"\x89PNG")
        assert result.structured_content is None
        assert record_of(result)["images"][0]["shown"] is True
        table = await execute(client, "import pandas as pd\npd.DataFrame({'a': range(100), 'b': 'x'})")
        assert "100 rows" in table["result"]


async def test_many_and_large_pictures_stay_within_the_budget(
    connect: Connect, remote: dict[str, str]
) -> None:
    code = """
import numpy as np
from PIL import Image
from IPython.display import display
noise = np.random.default_rng(1).integers(0, 255, (1400, 1800, 3), dtype='uint8')
for _ in range(6):
    display(Image.fromarray(noise))
"""
    async with connect(**remote) as client:
        result = await client.call_tool("execute_code", {"code": code, "timeout_s": 120})
        record = record_of(result)
        shown = [block for block in result.content if block.type == "image"]
        assert len(record["images"]) == 6
        assert 1 <= len(shown) <= 4
        assert len(result.model_dump_json(by_alias=True)) < 900_000
        for image in record["images"]:
            listed = await client.call_tool("list_files", {"path": str(Path(image["path"]).parent)})
            assert image["path"] in text_of(listed)


async def test_the_timeout_interrupts_and_keeps_the_variables(
    connect: Connect, remote: dict[str, str], era: str
) -> None:
    async with connect(era, **remote) as client:
        code = "kept = 1\nprint('begin')\nwhile True: pass"
        record = await execute(client, code, timeout_s=3)
        assert record["status"] == "timeout"
        assert record["stdout"] == "begin\n"
        assert record["session_state"] == "preserved"
        assert "background=true" in record["hint"]
        assert (await execute(client, "kept"))["result"] == "1"


async def test_a_cancelled_call_stops_the_code_and_keeps_the_variables(
    connect: Connect, remote: dict[str, str], era: str
) -> None:
    async with connect(era, **remote) as client:
        await execute(client, "import time; kept = 2")
        call = asyncio.create_task(
            client.call_tool("execute_code", {"code": "time.sleep(300)", "timeout_s": 600})
        )
        await wait_until_running(client)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert (await execute(client, "kept"))["result"] == "2"


async def test_interrupting_running_code(connect: Connect, remote: dict[str, str]) -> None:
    async with connect(**remote) as client:
        await execute(client, "import time; z = 3")
        call = asyncio.create_task(client.call_tool("execute_code", {"code": "time.sleep(300)"}))
        await wait_until_running(client)
        interrupted = record_of(await client.call_tool("interrupt_execution", {}))
        assert interrupted["status"] == "interrupted"
        assert record_of(await call)["status"] == "interrupted"
        assert (await execute(client, "z"))["result"] == "3"


async def test_code_in_the_background(connect: Connect, remote: dict[str, str]) -> None:
    async with connect(**remote) as client:
        code = "import time\nfor n in range(3):\n    print(n, flush=True)\n    time.sleep(0.2)\n'end'"
        started = await execute(client, code, background=True)
        assert started["status"] == "running"
        arguments = {"execution_id": started["execution_id"], "wait_s": 30}
        ended = record_of(await client.call_tool("get_execution", arguments))
        assert ended["status"] == "ok"
        assert ended["stdout"] == "0\n1\n2\n"
        assert ended["result"] == "'end'" or ended["result"] == "end"


async def test_progress_carries_what_the_code_prints(
    connect: Connect, remote: dict[str, str], era: str
) -> None:
    messages: list[tuple[float, str]] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        messages.append((progress, message or ""))

    async with connect(era, **remote) as client:
        code = "import time\nfor n in range(4):\n    print('step', n, flush=True)\n    time.sleep(0.7)"
        await client.call_tool("execute_code", {"code": code}, progress_callback=note)
    assert any("step" in message for _, message in messages)
    values = [progress for progress, _ in messages]
    assert values == sorted(set(values))


async def test_long_output_is_cut_and_can_be_read_page_by_page(
    connect: Connect, remote: dict[str, str]
) -> None:
    async with connect(**remote) as client:
        result = await client.call_tool("execute_code", {"code": "for n in range(50_000): print('line', n)"})
        record = record_of(result)
        assert len(text_of(result)) < 10_000
        assert record["stdout_total_chars"] > 500_000
        page = record_of(
            await client.call_tool("read_file", {"path": record["stdout_file"], "offset": 30_001, "limit": 2})
        )
        assert page["text"] == "line 30000\nline 30001\n"
        assert page["next_offset"] == 30_003


async def test_a_flood_of_output_does_not_break_anything(connect: Connect, remote: dict[str, str]) -> None:
    code = "import sys\nfor _ in range(100): sys.stdout.write('x' * 1_000_000 + '\\n')"
    async with connect(**remote) as client:
        result = await client.call_tool("execute_code", {"code": code, "timeout_s": 110})
        assert len(result.model_dump_json(by_alias=True)) < 900_000
        assert (await execute(client, "1 + 1"))["result"] == "2"


@pytest.mark.parametrize(
    "code", ["import os; os._exit(3)", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"]
)
async def test_a_dead_kernel_is_told_truthfully(connect: Connect, remote: dict[str, str], code: str) -> None:
    async with connect(**remote) as client:
        await execute(client, "gone = 1")
        await client.call_tool("write_file", {"path": "stays.txt", "content": "here"})
        record = await execute(client, code)
        assert record["session_state"] == "reset"
        after = await execute(client, "print(open('stays.txt').read())\ngone")
        assert after["stdout"] == "here\n"
        assert after["error"]["name"] == "NameError"
        assert "'gone' is gone" in after["hint"]


async def test_a_sandbox_that_ended_is_told_and_replaced(
    connect: Connect, remote: dict[str, str], server: Any
) -> None:
    async with connect(**remote) as client:
        before = await sandboxes(server)
        record = await execute(client, "a = 1")
        (sandbox_id,) = await sandboxes(server) - before
        async with httpx.AsyncClient(headers={"X-API-KEY": server.key}) as http:
            await http.delete(f"{server.url}/sandboxes/{sandbox_id}")
        lost = await execute(client, "a")
        assert lost["session_state"] == "lost"
        fresh = await execute(client, "'a' in globals()")
        assert fresh["result"] == "False"
        assert fresh["session_id"] != record["session_id"]
        assert "new session" in fresh["session_note"]
        old = await client.call_tool("execute_code", {"code": "1", "session_id": record["session_id"]})
        assert old.is_error
        assert "has ended" in text_of(old)


async def test_sessions_are_separate_and_foreign_handles_unknown(
    connect: Connect, remote: dict[str, str]
) -> None:
    async with connect(**remote) as client, connect(**remote) as stranger:
        await execute(client, "v = 'default'")
        made = record_of(await client.call_tool("create_session", {"env": {"COLOUR": "blue"}}))
        handle = made["session_id"]
        assert (await execute(client, "'v' in globals()", session_id=handle))["result"] == "False"
        colour = await execute(client, "import os; print(os.environ['COLOUR'])", session_id=handle)
        assert colour["stdout"] == "blue\n"
        foreign = await stranger.call_tool("execute_code", {"code": "1", "session_id": handle})
        unknown = await stranger.call_tool("execute_code", {"code": "1", "session_id": "s_" + "0" * 32})
        assert foreign.is_error
        assert text_of(foreign) == text_of(unknown)
        assert len(record_of(await client.call_tool("list_sessions", {}))["sessions"]) == 2
        assert record_of(await client.call_tool("close_session", {"session_id": handle}))["closed"] is True
        closed = await client.call_tool("execute_code", {"code": "1", "session_id": handle})
        assert "it was closed" in text_of(closed)
        assert (await execute(client, "v"))["result"] in ("'default'", "default")


async def test_files_go_in_and_out(connect: Connect, remote: dict[str, str], tmp_path: Path) -> None:
    data = bytes(range(256)) * 1000
    (tmp_path / "data.bin").write_bytes(data)
    async with connect(**remote) as client:
        uploaded = record_of(await client.call_tool("upload_file", {"local_path": "data.bin"}))
        assert (uploaded["path"], uploaded["bytes"]) == ("/home/user/data.bin", len(data))
        code = "d = open('data.bin', 'rb').read(); _ = open('turned.bin', 'wb').write(d[::-1])"
        changes = (await execute(client, code))["files"]
        assert changes == {"created": {"turned.bin": len(data)}}
        arguments = {"path": "turned.bin", "local_path": "turned.bin"}
        saved = record_of(await client.call_tool("download_file", arguments))
        assert (tmp_path / "turned.bin").read_bytes() == data[::-1]
        assert saved["local_path"] == str(tmp_path / "turned.bin")
        again = await client.call_tool("download_file", arguments)
        assert again.is_error
        assert "overwrite=true" in text_of(again)
        content = await client.call_tool("download_file", {"path": "turned.bin"})
        assert base64.b64decode(content.content[1].resource.blob) == data[::-1]  # type: ignore[union-attr]
        await client.call_tool("upload_file", {"path": "a/b.txt", "content": "é\n"})
        await client.call_tool(
            "upload_file", {"path": "c.bin", "content_base64": base64.b64encode(b"\0\1").decode()}
        )
        listed = record_of(await client.call_tool("list_files", {"depth": 2, "pattern": "*.txt"}))
        assert [entry["path"] for entry in listed["entries"]] == ["/home/user/a/b.txt"]
        assert record_of(await client.call_tool("read_file", {"path": "a/b.txt"}))["text"] == "é\n"
        binary = await client.call_tool("read_file", {"path": "c.bin"})
        assert "not a text file" in text_of(binary)
        missing = await client.call_tool("read_file", {"path": "missing.txt"})
        assert missing.is_error


async def test_pictures_can_be_looked_at(connect: Connect, remote: dict[str, str]) -> None:
    async with connect(**remote) as client:
        code = f"import base64; _ = open('p.png', 'wb').write(base64.b64decode('{PNG}'))"
        await execute(client, code)
        looked = await client.call_tool("read_file", {"path": "p.png"})
        assert looked.content[1].type == "image"


async def test_shell_commands(connect: Connect, remote: dict[str, str]) -> None:
    async with connect(**remote) as client:
        ran = record_of(
            await client.call_tool("run_command", {"command": "echo out; echo err >&2; touch f; exit 3"})
        )
        assert (ran["stdout"], ran["stderr"], ran["exit_code"]) == ("out\n", "err\n", 3)
        assert ran["files"] == {"created": {"f": 0}}
        slow = await client.call_tool("run_command", {"command": "sleep 300", "timeout_s": 1})
        assert record_of(slow)["status"] == "timeout"
        gone = await client.call_tool("run_command", {"command": "pgrep -x sleep || echo none"})
        assert record_of(gone)["stdout"] == "none\n"
        where = record_of(await client.call_tool("run_command", {"command": "pwd", "cwd": "/tmp"}))
        assert where["stdout"] == "/tmp\n"


async def test_the_hosts_environment_is_not_in_the_sandbox(
    connect: Connect, remote: dict[str, str], server: Any
) -> None:
    async with connect(A_HOST_SECRET="swordfish", **remote) as client:
        record = await execute(client, "import os; print(dict(os.environ))")
        assert "swordfish" not in json.dumps(record)
        assert server.key not in record["stdout"]


async def test_nothing_is_left_when_the_client_goes(
    connect: Connect, remote: dict[str, str], server: Any
) -> None:
    before = await sandboxes(server)
    async with connect(**remote) as client:
        await execute(client, "1")
        await client.call_tool("create_session", {})
        await execute(client, "import time; time.sleep(300)", background=True)
        assert len(await sandboxes(server) - before) == 2
    deadline = time.monotonic() + 20
    while await sandboxes(server) - before:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


async def test_concurrent_first_calls_share_one_session(connect: Connect, remote: dict[str, str]) -> None:
    async with connect(**remote) as client:
        records = await asyncio.gather(*(execute(client, f"print({n})") for n in range(10)))
        assert len({record["session_id"] for record in records}) == 1
        assert sorted(record["stdout"] for record in records) == [f"{n}\n" for n in range(10)]


def embedded_server_of(directory: Path) -> int:
    """The pid of the server that the MCP server whose working directory is `directory` has started."""
    for cwd in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            children = [
                pid for task in cwd.parent.glob("task/*/children") for pid in task.read_text().split()
            ]
            if cwd.readlink() == directory and children:
                (pid,) = children
                return int(pid)
    raise AssertionError("there is no embedded server")


def is_running(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


async def test_an_embedded_server_that_dies_is_replaced_and_told(connect: Connect, tmp_path: Path) -> None:
    async with connect(RINGFENCE_TEMPLATE="base") as client:
        first = await execute(client, "a = 1")
        assert first["backend"].startswith("local, isolation ")
        server = embedded_server_of(tmp_path)
        os.kill(server, signal.SIGKILL)
        while is_running(server):
            await asyncio.sleep(0.01)
        second = await client.call_tool("execute_code", {"code": "'a' in globals()"})
        if second.is_error:  # it noticed in the middle of the call
            second = await client.call_tool("execute_code", {"code": "'a' in globals()"})
        record = record_of(second)
        assert record["result"] == "False"
        assert "the sandbox server ended" in record["session_note"]
