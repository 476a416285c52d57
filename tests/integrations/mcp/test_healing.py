"""Sessions that are lost and rebuilt, forked, exported; packages that are installed."""

import base64
import io
import json
import zipfile
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import nbformat
import pytest
from mcp import Client

from tests.integrations.mcp.calls import execute, record_of, sandboxes, text_of

Connect = Callable[..., AbstractAsyncContextManager[Client]]


async def kill_all(server: Any, keep: set[str]) -> None:
    async with httpx.AsyncClient(headers={"X-API-KEY": server.key}) as http:
        for item in (await http.get(f"{server.url}/v2/sandboxes")).json():
            if item["sandboxID"] not in keep:
                await http.delete(f"{server.url}/sandboxes/{item['sandboxID']}")


async def test_a_lost_session_says_so_and_is_rebuilt_under_its_handle(
    connect: Connect, remote: dict[str, str], server: Any
) -> None:
    async with connect(**remote) as client:
        before = await sandboxes(server)
        made = record_of(await client.call_tool("create_session", {"env": {"COLOUR": "blue"}}))
        handle = made["session_id"]
        await client.call_tool("write_file", {"path": "in.txt", "content": "7", "session_id": handle})
        await execute(client, "import os; a = int(open('in.txt').read())", session_id=handle)
        await execute(client, "1 / 0", session_id=handle)
        await client.call_tool("run_command", {"command": "echo hi > made", "session_id": handle})
        await kill_all(server, before)
        found = await execute(client, "a", session_id=handle)
        assert found["session_state"] == "lost"
        told = await client.call_tool("execute_code", {"code": "a", "session_id": handle})
        assert told.is_error
        assert "2 cells" in text_of(told) or "3 cells" in text_of(told)
        assert 'on_loss="replay"' in text_of(told)
        code = "a * 6, os.environ['COLOUR'], open('made').read()"
        rebuilt = await execute(client, code, session_id=handle, on_loss="replay")
        assert rebuilt["result"] == "(42, 'blue', 'hi\\n')"
        assert rebuilt["session_id"] == handle
        assert "was rebuilt" in rebuilt["session_note"]
        assert "the sandbox ended in it" in rebuilt["session_note"]
        assert (await execute(client, "a", session_id=handle))["result"] == "7"


async def test_a_session_made_for_it_heals_by_itself(
    connect: Connect, remote: dict[str, str], server: Any
) -> None:
    async with connect(**remote) as client:
        before = await sandboxes(server)
        made = record_of(await client.call_tool("create_session", {"on_loss": "replay"}))
        await execute(client, "b = 5", session_id=made["session_id"])
        await kill_all(server, before)
        assert (await execute(client, "b", session_id=made["session_id"]))["result"] == "5"


async def test_the_default_session_is_rebuilt_if_asked_for(
    connect: Connect, remote: dict[str, str], server: Any
) -> None:
    async with connect(**remote) as client:
        before = await sandboxes(server)
        first = await execute(client, "c = 5")
        await kill_all(server, before)
        rebuilt = await execute(client, "c", on_loss="replay")
        assert (rebuilt["result"], rebuilt["session_id"]) == ("5", first["session_id"])
        assert (await execute(client, "c"))["session_id"] == first["session_id"]


async def test_a_notebook_of_the_session_even_when_it_was_lost(
    connect: Connect, remote: dict[str, str], server: Any, tmp_path: Path
) -> None:
    async with connect(**remote) as client:
        before = await sandboxes(server)
        handle = (await execute(client, "print('hello')\n6 * 7"))["session_id"]
        await execute(client, "import matplotlib.pyplot as plt\nplt.plot([1, 2]); plt.show()")
        await execute(client, "1 / 0")
        in_sandbox = record_of(await client.call_tool("export_notebook", {}))
        page = await client.call_tool("download_file", {"path": in_sandbox["path"]})
        blob = base64.b64decode(page.content[1].resource.blob)  # type: ignore[union-attr]
        notebook = nbformat.reads(blob.decode(), as_version=4)
        nbformat.validate(notebook)
        first, chart, failed = notebook.cells
        assert first.outputs[0].text == "hello\n"
        assert first.outputs[1].data["text/plain"] == "42"
        assert any("image/png" in output.get("data", {}) for output in chart.outputs)
        assert failed.outputs[0].ename == "ZeroDivisionError"
        await client.call_tool("export_notebook", {"local_path": "mine.ipynb"})
        nbformat.validate(nbformat.read(tmp_path / "mine.ipynb", as_version=4))
        await kill_all(server, before)
        lost = await client.call_tool("export_notebook", {"session_id": handle})
        if lost.is_error:
            lost = await client.call_tool("export_notebook", {"session_id": handle})
        embedded = lost.content[1].resource.text  # type: ignore[union-attr]
        assert len(json.loads(embedded)["cells"]) == 3


async def test_a_fork_has_the_files_and_the_variables_and_says_what_it_lacks(
    connect: Connect, remote: dict[str, str]
) -> None:
    async with connect(**remote) as client:
        code = "d = [1]; g = (i for i in d); n = open('kept', 'w').write('here')"
        origin = (await execute(client, code))["session_id"]
        answer = await client.call_tool("fork_session", {})
        fork = record_of(answer)["session_id"]
        assert fork != origin
        assert "variables" in text_of(answer)
        assert "NOT copied" not in text_of(answer)
        assert "g (TypeError: cannot pickle 'generator' object)" in text_of(answer)
        code = "print(open('kept').read(), d); d.append(2); n = open('kept', 'w').write('changed')"
        assert (await execute(client, code, session_id=fork))["stdout"] == "here [1]\n"
        assert (await execute(client, "open('kept').read()"))["result"].strip("'") == "here"
        assert (await execute(client, "d"))["result"] == "[1]"


def wheel(name: str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr(f"{name}.py", "VALUE = 42\n")
        info = f"{name}-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return data.getvalue()


async def test_packages_are_installed_from_wheels_and_refused_without_network(
    connect: Connect, remote: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "tiny_thing-1.0-py3-none-any.whl").write_bytes(wheel("tiny_thing"))
    async with connect(**remote) as client:
        await client.call_tool("upload_file", {"local_path": "tiny_thing-1.0-py3-none-any.whl"})
        arguments = {"packages": ["./tiny_thing-1.0-py3-none-any.whl"]}
        done = await client.call_tool("install_packages", arguments)
        assert record_of(done)["installed"] in (["tiny-thing-1.0"], ["tiny_thing-1.0"])
        assert (await execute(client, "import tiny_thing; tiny_thing.VALUE"))["result"] == "42"
        missing = await client.call_tool("install_packages", {"packages": ["no-such-package-at-all"]})
        assert record_of(missing)["status"] == "error"


@pytest.mark.parametrize("package", ["-r x", "--index-url=x", "a b", "http://x/y.whl", "a; rm -rf", ""])
async def test_what_is_not_a_package_is_refused(connect: Connect, package: str) -> None:
    async with connect() as client:
        result = await client.call_tool("install_packages", {"packages": [package]})
        assert result.is_error
        assert "is not a package" in text_of(result)


async def test_descriptions_tell_what_is_in_force_once_it_is_known(
    connect: Connect, remote: dict[str, str]
) -> None:
    async with connect(**remote) as client:
        await execute(client, "import platform; platform.python_version()")
        version = (await execute(client, "platform.python_version()"))["result"].strip("'")
        for _ in range(100):
            tools = {tool.name: tool for tool in (await client.list_tools(cache_mode="refresh")).tools}
            description = tools["execute_code"].description or ""
            if version in description:
                break
            await execute(client, "1")
        assert f"Python {version}" in description
        assert "MiB" in description
        assert all(len(tool.description or "") < 2000 for tool in tools.values())
