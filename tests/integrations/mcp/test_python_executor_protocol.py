"""What the server promises before any code runs: the protocol, the tools' descriptions, and how it ends."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from ringfence.core.config import Settings
from ringfence.integrations.mcp.servers import texts

Connect = Callable[..., AbstractAsyncContextManager[Client]]

TOOLS = [
    "execute_code",
    "get_execution",
    "interrupt_execution",
    "run_command",
    "install_packages",
    "list_files",
    "read_file",
    "write_file",
    "upload_file",
    "download_file",
    "export_notebook",
    "create_session",
    "fork_session",
    "list_sessions",
    "close_session",
]
COMMAND = [sys.executable, "-P", "-m", "ringfence", "mcp"]


async def test_the_tools_are_listed_in_order_and_nothing_is_started(connect: Connect, era: str) -> None:
    async with connect(era) as client:
        tools = (await client.list_tools()).tools
        assert [tool.name for tool in tools] == TOOLS
        assert client.server_info is not None
        assert client.server_info.name == "python_executor"
        sessions = await client.call_tool("list_sessions", {})
        assert sessions.content[0].text == "There are no sessions."


async def test_schemas_are_what_clients_can_use(connect: Connect) -> None:
    async with connect() as client:
        for tool in (await client.list_tools()).tools:
            assert tool.output_schema is None
            assert 20 < len(tool.description or "") < 2000
            for name, schema in tool.input_schema["properties"].items():
                if name not in tool.input_schema.get("required", []):
                    assert schema["nullable"] is True, (tool.name, name)


async def test_null_stands_for_what_is_left_out(connect: Connect, remote: dict[str, str]) -> None:
    async with connect(**remote) as client:
        for tool in (await client.list_tools()).tools:
            given = {
                name: None
                for name in tool.input_schema["properties"]
                if name not in tool.input_schema.get("required", [])
            }
            needed = {
                "code": "1 + 1",
                "command": "true",
                "path": "/etc/hostname",
                "content": "",
                "packages": [],
            }
            needed |= {"execution_id": "x_none"}
            given |= {name: needed[name] for name in tool.input_schema.get("required", [])}
            result = await client.call_tool(tool.name, given)
            assert "validation error" not in result.content[0].text, (tool.name, result.content)


def test_texts_are_short_and_speak_of_the_settings() -> None:
    settings = Settings(_env_file=None, exec_timeout=33, backend="local")  # type: ignore[call-arg]
    assert len(texts.instructions(settings)) < 2000
    descriptions = texts.descriptions(settings)
    assert all(len(text) < 2000 for text in descriptions.values())
    assert "default 33" in descriptions["execute_code"]
    assert "user's own machine" in descriptions["execute_code"]


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("execute_code", {}, "code"),
        ("execute_code", {"code": "1", "timeout_s": -1}, "timeout_s"),
        ("execute_code", {"code": 7}, "code"),
        ("nope", {}, "Unknown tool"),
        ("upload_file", {"path": "a"}, "exactly one"),
        ("upload_file", {"path": "a", "content_base64": "%%%"}, "not base64"),
        ("upload_file", {"local_path": "/etc/passwd"}, "outside the directories"),
        ("download_file", {"path": "a", "local_path": "../b"}, "outside the directories"),
        ("close_session", {"session_id": "s_foreign"}, "no such session"),
        ("get_execution", {"execution_id": "x_foreign"}, "no such execution"),
    ],
)
async def test_wrong_arguments_are_errors_that_help(
    connect: Connect, tool: str, arguments: dict[str, Any], message: str
) -> None:
    async with connect() as client:
        result = await client.call_tool(tool, arguments)
        assert result.is_error
        assert message in result.content[0].text


async def test_a_backend_that_does_not_answer_is_an_error_with_the_reason(connect: Connect, era: str) -> None:
    settings = {"RINGFENCE_URL": "http://127.0.0.1:9", "RINGFENCE_API_KEY": "e2b_00"}
    async with connect(era, **settings) as client:
        result = await client.call_tool("execute_code", {"code": "1"})
        assert result.is_error
        assert "no answer from the server at http://127.0.0.1:9" in result.content[0].text


async def test_contradicting_settings_are_told_to_the_model(connect: Connect) -> None:
    async with connect(RINGFENCE_BACKEND="e2b") as client:
        result = await client.call_tool("execute_code", {"code": "1"})
        assert result.is_error
        assert "E2B_API_KEY is not set" in result.content[0].text


def test_a_wrong_setting_ends_the_start_with_one_line() -> None:
    ended = subprocess.run(
        COMMAND,
        env={**os.environ, "RINGFENCE_LEASE": "soon"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.startswith("ringfence: wrong setting: RINGFENCE_LEASE")
    assert "Traceback" not in ended.stderr


def start(tmp_path: Path) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(
        COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    )
    client = {"name": "test", "version": "1"}
    parameters = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client}
    send(process, {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": parameters})
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["id"] == 1
    return process


def send(process: "subprocess.Popen[bytes]", message: dict[str, Any]) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(message).encode() + b"\n")
    process.stdin.flush()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_end_it_in_order(tmp_path: Path, number: int) -> None:
    process = start(tmp_path)
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert errors == b""


def test_the_end_of_its_input_ends_it_in_order(tmp_path: Path) -> None:
    process = start(tmp_path)
    out, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert (out, errors) == (b"", b"")


def test_its_output_is_json_rpc_only_and_descriptors_are_diverted(tmp_path: Path) -> None:
    process = start(tmp_path)
    try:
        assert os.readlink(f"/proc/{process.pid}/fd/0") == "/dev/null"
        assert os.readlink(f"/proc/{process.pid}/fd/1") == os.readlink(f"/proc/{process.pid}/fd/2")
    finally:
        process.kill()
        process.communicate()


def family_of(pid: int) -> set[tuple[int, str]]:
    """All processes below `pid`, each with its start time."""
    parents: dict[int, list[tuple[int, str]]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append((int(stat.parent.name), fields[19]))
    found: set[tuple[int, str]] = set()
    waiting = [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found.update(children)
        waiting += [child for child, _ in children]
    return found


def living(family: set[tuple[int, str]]) -> list[int]:
    alive = []
    for pid, started in family:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if fields[19] == started and fields[0] != "Z":
                alive.append(pid)
    return alive


@pytest.mark.parametrize("end", ["SIGTERM", "SIGINT", "EOF", "SIGKILL"])
def test_however_it_ends_in_the_middle_of_a_call_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setenv("RINGFENCE_TEMPLATE", "base")
    process = start(tmp_path)
    try:
        send(process, {"jsonrpc": "2.0", "method": "notifications/initialized"})
        arguments = {"code": "open('begun', 'w').close()\nimport time; time.sleep(300)"}
        call = {"name": "execute_code", "arguments": arguments}
        send(process, {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": call})
        wait_for_file(process)
        family = family_of(process.pid)
        assert len(family) > 3
        if end == "EOF":
            assert process.stdin is not None
            process.stdin.close()
            process.stdin = None
        else:
            process.send_signal(signal.Signals[end])
        process.wait(30)
        assert process.returncode == (-signal.SIGKILL if end == "SIGKILL" else 0)
        deadline = time.monotonic() + 30
        while left := living(family):
            assert time.monotonic() < deadline, left
            time.sleep(0.05)
        parent = Path(tempfile.gettempdir()) / f"ringfence-{os.getuid()}"
        assert end == "SIGKILL" or not list(parent.glob(f"{process.pid}-*"))
    finally:
        process.kill()
        process.communicate()


def wait_for_file(process: "subprocess.Popen[bytes]") -> None:
    """Ask the server until the running cell has made its file."""
    assert process.stdout is not None
    number = 100
    while True:
        number += 1
        call = {"name": "list_files", "arguments": {"pattern": "begun"}}
        send(process, {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": call})
        while (answer := json.loads(process.stdout.readline())).get("id") != number:
            pass
        if answer["result"]["structuredContent"]["total"]:
            return
        time.sleep(0.1)
