"""The engine: sandboxes are created, watched and killed, and nothing of them is left."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from ringfence.core.errors import LauncherError, LimitError, SandboxNotFoundError, TemplateError
from ringfence.core.ids import new_sandbox_id
from ringfence.engine.engine import Engine
from ringfence.engine.model import Exit, Limits, Sandbox, SandboxSpec
from ringfence.engine.settings import EngineSettings

TEMPLATE = "base"


async def ask(sandbox: Sandbox, path: str, port: int = 49983) -> bytes:
    """One plain HTTP request to the guest; the whole answer."""
    reader, writer = await asyncio.open_unix_connection(str(sandbox.http_socket))
    head = f"GET {path} HTTP/1.1\r\nHost: x\r\nE2b-Sandbox-Port: {port}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode())
    answer = await reader.read()
    writer.close()
    return answer


def exit_of(engine: Engine, sandbox_id: str) -> "asyncio.Future[Exit]":
    future: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
    engine.add_exit_listener(lambda end: future.set_result(end) if end.sandbox_id == sandbox_id else None)
    return future


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_a_sandbox_serves_both_services(sandbox: Sandbox) -> None:
    assert (await ask(sandbox, "/health")).startswith(b"HTTP/1.1 204")
    assert (await ask(sandbox, "/health", port=49999)).startswith(b"HTTP/1.1 200")


async def test_an_unknown_service_is_refused(sandbox: Sandbox) -> None:
    assert (await ask(sandbox, "/health", port=1)).startswith(b"HTTP/1.1 404")


async def test_kill_leaves_nothing(engine: Engine, sandbox: Sandbox) -> None:
    end = exit_of(engine, sandbox.sandbox_id)
    assert await engine.kill(sandbox.sandbox_id) is True
    assert (await end).reason == "killed"
    assert not is_alive(sandbox.pid)
    assert not sandbox.http_socket.parent.exists()
    assert engine.get(sandbox.sandbox_id) is None
    assert await engine.kill(sandbox.sandbox_id) is False


async def test_the_death_of_pid_1_is_announced(engine: Engine, sandbox: Sandbox) -> None:
    end = exit_of(engine, sandbox.sandbox_id)
    os.kill(sandbox.pid, signal.SIGKILL)
    assert (await end).reason == "exited"
    assert not sandbox.http_socket.parent.exists()


async def test_the_end_of_the_engine_ends_its_sandboxes(engine: Engine, sandbox: Sandbox) -> None:
    runtime = sandbox.http_socket.parent.parent
    await engine.aclose()
    assert not is_alive(sandbox.pid)
    assert not runtime.exists()
    with pytest.raises(LauncherError):
        await engine.create(SandboxSpec(new_sandbox_id(), TEMPLATE))


async def test_many_at_once(engine: Engine) -> None:
    specs = [SandboxSpec(new_sandbox_id(), TEMPLATE) for _ in range(12)]
    sandboxes = await asyncio.gather(*(engine.create(spec) for spec in specs))
    answers = await asyncio.gather(*(ask(one, "/health") for one in sandboxes))
    assert all(answer.startswith(b"HTTP/1.1 204") for answer in answers)
    assert all(await asyncio.gather(*(engine.kill(one.sandbox_id) for one in sandboxes)))
    assert not [one for one in sandboxes if is_alive(one.pid)]


async def test_kill_during_create(engine: Engine) -> None:
    spec = SandboxSpec(new_sandbox_id(), TEMPLATE)
    creating = asyncio.create_task(engine.create(spec))
    await asyncio.sleep(0)
    await engine.kill(spec.sandbox_id)
    await asyncio.wait([creating])
    await engine.kill(spec.sandbox_id)
    assert creating.exception() is not None or not is_alive(creating.result().pid)


async def test_an_unknown_template(engine: Engine) -> None:
    with pytest.raises(TemplateError, match=r"no-such.*this engine has: base"):
        await engine.create(SandboxSpec(new_sandbox_id(), "no-such"))


@pytest.mark.parametrize("limits", [Limits(memory_mb=1 << 30), Limits(pids=0)])
async def test_limits_outside_of_the_ceiling(engine: Engine, limits: Limits) -> None:
    with pytest.raises(LimitError):
        await engine.create(SandboxSpec(new_sandbox_id(), TEMPLATE, limits=limits))


async def test_stats(engine: Engine, sandbox: Sandbox) -> None:
    with pytest.raises(SandboxNotFoundError):
        await engine.stats(new_sandbox_id())
    stats = await engine.stats(sandbox.sandbox_id)
    if not any(layer.in_force for layer in engine.isolation.layers if layer.name.startswith("cgroup")):
        assert stats.pids == 0
        pytest.skip("without cgroups nobody counts")
    assert 0 < stats.pids < 20
    assert 0 < stats.memory_used <= stats.memory_peak <= stats.memory_limit


async def test_ports_inside_are_reached_by_the_tunnel(sandbox: Sandbox) -> None:
    reader, writer = await asyncio.open_unix_connection(str(sandbox.tunnel_socket))
    writer.write(b"49999\nGET /health HTTP/1.1\r\nHost: localhost:49999\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"ok\nHTTP/1.1 200")


@pytest.mark.parametrize("request_line", [b"9\n", b"0\n", b"65536\n", b"-1\n", b"x\n"])
async def test_a_closed_or_impossible_port_is_refused(sandbox: Sandbox, request_line: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(str(sandbox.tunnel_socket))
    writer.write(request_line)
    assert await reader.read() == b"refused\n"
    writer.close()


async def test_a_gradual_engine_serves_before_it_is_warm() -> None:
    settings = EngineSettings(templates=("code-interpreter-mini",), gradual=True)
    engine = await Engine.start(settings)
    try:
        early, late = [
            await engine.create(SandboxSpec(new_sandbox_id(), "code-interpreter-mini")) for _ in range(2)
        ]
        for sandbox in (early, late):
            assert (await ask(sandbox, "/health", port=49999)).startswith(b"HTTP/1.1 200")
    finally:
        await engine.aclose()
