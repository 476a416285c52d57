"""The life of sandboxes as the SDK sees it: ends of all kinds, connections, ports, lists."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from e2b import (
    NotFoundException,
    SandboxException,
    SandboxNotFoundException,
    SandboxQuery,
    SandboxState,
    TimeoutException,
)

if TYPE_CHECKING:
    from tests.conformance.conftest import Face
    from tests.conftest import RunningServer

SERVE = (
    "python3 -c '"
    + "; ".join(
        (
            "import http.server as h",
            'h.ThreadingHTTPServer(("{host}", {port}), h.SimpleHTTPRequestHandler).serve_forever()',
        )
    )
    + "'"
)


async def test_running_until_killed(sdk: Face, box: Any) -> None:
    assert await sdk(box.is_running)
    assert box.envd_api_url if hasattr(box, "envd_api_url") else True
    assert await sdk(box.kill) is True
    assert not await sdk(box.is_running)
    assert await sdk(box.kill) is False
    assert await sdk(sdk.Sandbox.kill, box.sandbox_id, **sdk.options) is False
    with pytest.raises((SandboxNotFoundException, TimeoutException)):
        await sdk(box.commands.run, "true")
    with pytest.raises(NotFoundException):
        await sdk(sdk.Sandbox.connect, box.sandbox_id, **sdk.options)


async def test_information(sdk: Face, make: Callable[..., Any]) -> None:
    box = await make(metadata={"a": "b c", "ü": "&="}, timeout=77)
    info = await sdk(box.get_info)
    assert (info.sandbox_id, info.metadata) == (box.sandbox_id, {"a": "b c", "ü": "&="})
    assert info.state == SandboxState.RUNNING
    assert abs((info.end_at - info.started_at).total_seconds() - 77) < 1
    assert info.cpu_count >= 1
    assert info.memory_mb > 0
    assert info.envd_version
    assert (await sdk(sdk.Sandbox.get_info, box.sandbox_id, **sdk.options)).name == info.name == "base"


async def test_secured(sdk: Face, box: Any, server: RunningServer) -> None:
    assert box._envd_access_token
    headers = {"E2b-Sandbox-Id": box.sandbox_id, "E2b-Sandbox-Port": "49983"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers) as http:
        assert (await http.get("/health")).status_code == 204
        assert (await http.get("/envs")).status_code == 401
        refused = await http.post("/process.Process/List", json={})
        assert (refused.status_code, refused.json()["code"]) == (401, 401)
    again = await sdk(sdk.Sandbox.connect, box.sandbox_id, **sdk.options)
    assert again._envd_access_token == box._envd_access_token
    assert (await sdk(again.commands.run, "echo same")).stdout == "same\n"


async def test_the_lease(sdk: Face, make: Callable[..., Any]) -> None:
    box = await make(timeout=100)
    before = (await sdk(box.get_info)).end_at
    await sdk(sdk.Sandbox.connect, box.sandbox_id, timeout=10, **sdk.options)
    assert (await sdk(box.get_info)).end_at == before
    await sdk(sdk.Sandbox.connect, box.sandbox_id, timeout=600, **sdk.options)
    longer = (await sdk(box.get_info)).end_at
    assert longer > before
    await sdk(box.set_timeout, 5)
    assert (await sdk(box.get_info)).end_at < before
    await sdk(box.set_timeout, 1)
    async with asyncio.timeout(20):
        while await sdk(box.is_running):
            await asyncio.sleep(0.1)


async def test_killed_in_the_middle_of_a_command(sdk: Face, box: Any) -> None:
    running = asyncio.ensure_future(sdk(box.commands.run, "echo started; sleep 60"))
    await asyncio.sleep(0.5)
    await sdk(sdk.Sandbox.kill, box.sandbox_id, **sdk.options)
    with pytest.raises(SandboxException, match="killed or reached its end of life"):
        await running


async def test_lists_page_newest_first(sdk: Face, make: Callable[..., Any]) -> None:
    mark = f"{sdk.name}-{id(make)}"
    made = [(await make(metadata={"mark": mark})).sandbox_id for _ in range(3)]
    query = SandboxQuery(metadata={"mark": mark}, state=[SandboxState.RUNNING])
    paginator = sdk.Sandbox.list(query=query, limit=2, **sdk.options)
    first = [info.sandbox_id for info in await sdk(paginator.next_items)]
    assert (first, paginator.has_next) == ([made[2], made[1]], True)
    second = [info.sandbox_id for info in await sdk(paginator.next_items)]
    assert (second, paginator.has_next, paginator.next_token) == ([made[0]], False, None)
    none = sdk.Sandbox.list(query=SandboxQuery(metadata={"mark": mark, "x": "y"}), **sdk.options)
    assert await sdk(none.next_items) == []


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1", "::1"])
async def test_a_server_inside(sdk: Face, box: Any, server: RunningServer, host: str) -> None:
    await sdk(box.files.write, "hello.txt", "from inside")
    script = SERVE.format(host=host, port=8000)
    if ":" in host:
        script = "python3 -m http.server 8000 --bind ::1"
    await sdk(box.commands.run, script, background=True)
    assert box.get_host(8000).startswith(f"8000-{box.sandbox_id}.")
    async with httpx.AsyncClient(base_url=server.url, headers={"Host": box.get_host(8000)}) as http:
        async with asyncio.timeout(20):
            while (answer := await http.get("/hello.txt")).status_code != 200:
                assert answer.status_code == 502
                await asyncio.sleep(0.1)
    assert answer.text == "from inside"


async def test_a_closed_port(sdk: Face, box: Any, server: RunningServer) -> None:
    async with httpx.AsyncClient(base_url=server.url, headers={"Host": box.get_host(3999)}) as http:
        answer = await http.get("/")
    assert (answer.status_code, answer.json()) == (502, {
        "sandboxId": box.sandbox_id, "message": "The sandbox is running but port is not open",
        "port": 3999, "code": 502,
    })  # fmt: skip


async def test_a_traffic_token(sdk: Face, make: Callable[..., Any], server: RunningServer) -> None:
    box = await make(network={"allow_public_traffic": False})
    assert box.traffic_access_token
    await sdk(box.commands.run, "python3 -m http.server 8000", background=True)
    assert (await sdk(box.run_code, "1 + 1")).text == "2"
    headers = {"Host": box.get_host(8000)}
    async with httpx.AsyncClient(base_url=server.url, headers=headers) as http:
        refused = await http.get("/")
        assert (refused.status_code, refused.json()["code"]) == (403, 403)
        token = {"E2B-Traffic-Access-Token": box.traffic_access_token}
        async with asyncio.timeout(20):
            while (await http.get("/", headers=token)).status_code != 200:
                await asyncio.sleep(0.1)


async def test_metrics(sdk: Face, box: Any) -> None:
    async with asyncio.timeout(30):
        while not (found := await sdk(box.get_metrics)):
            await asyncio.sleep(0.2)
    point = found[0]
    assert point.cpu_count >= 1
    assert 0 < point.mem_used <= point.mem_total
    assert 0 < point.disk_used <= point.disk_total


async def test_many_clients_of_one_sandbox(sdk: Face, box: Any) -> None:
    others = [await sdk(sdk.Sandbox.connect, box.sandbox_id, **sdk.options) for _ in range(5)]
    await asyncio.gather(*(sdk(o.files.write, f"f{n}", str(n)) for n, o in enumerate(others)))
    read = await asyncio.gather(*(sdk(o.files.read, f"f{n}") for n, o in enumerate(others)))
    assert read == [str(n) for n in range(5)]
