"""The egress process as the engine has it: what it may do on the host, and what its death does."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ringfence.core.ids import new_sandbox_id
from ringfence.engine.egress.settings import NetworkSettings
from ringfence.engine.engine import Engine
from ringfence.engine.model import NetworkRules, Sandbox, SandboxSpec
from ringfence.engine.settings import EngineSettings

ADDRESS = "127.0.0.12"


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    network = NetworkSettings(hosts=(f"public.test={ADDRESS}",), allow_private=(ADDRESS,), connections=8)
    engine = await Engine.start(EngineSettings(templates=("base",), network=network))
    yield engine
    await engine.aclose()


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """A server that sends back what it gets."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(echo, ADDRESS, 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


def egress_pids(engine: Engine) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"ringfence.engine.egress.main" in entry.read_bytes():
                status = (entry.parent / "status").read_text()
                if f"PPid:\t{os.getpid()}\n" in status:
                    found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


async def execute(sandbox: Sandbox, code: str) -> str:
    reader, writer = await asyncio.open_unix_connection(str(sandbox.http_socket), limit=1 << 22)
    body = json.dumps({"code": code}).encode()
    head = "POST /execute HTTP/1.1\r\nHost: x\r\nE2b-Sandbox-Port: 49999\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    answer = (await reader.read()).decode()
    writer.close()
    return answer


async def make(engine: Engine, rules: NetworkRules | None = None) -> Sandbox:
    return await engine.create(SandboxSpec(new_sandbox_id(), "base", network=rules or NetworkRules()))


def echo(port: int, size: int = 5) -> str:
    return (
        f"import socket\nc = socket.create_connection(('public.test', {port}), 20)\n"
        f"c.sendall(b'x' * {size}); c.shutdown(1); n = 0\n"
        "while d := c.recv(65536): n += len(d)\nprint('got', n)"
    )


async def test_it_has_no_privilege(engine: Engine) -> None:
    (pid,) = egress_pids(engine)
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert "0" not in status["Uid"].split()
    assert {status[name] for name in ("CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"


async def test_its_account(engine: Engine, port: int) -> None:
    sandbox = await make(engine)
    assert "got 300000" in await execute(sandbox, echo(port, 300_000))
    account = await engine.network_account(sandbox.sandbox_id)
    assert account["connections"] == 1
    assert account["bytes_sent"] == account["bytes_received"] == 300_000
    refused = await make(engine, NetworkRules(internet=False))
    await execute(refused, echo(port))
    assert (await engine.network_account(refused.sandbox_id))["refused"] >= 1


async def test_a_sandbox_has_so_many_connections_and_no_more(engine: Engine, port: int) -> None:
    sandbox = await make(engine)
    code = (
        "import socket\nopen_ = []\nrefused = 0\n"
        "for _ in range(12):\n    try:\n"
        f"        c = socket.create_connection(('public.test', {port}), 20)\n"
        "        c.sendall(b'x'); c.recv(1); open_.append(c)\n"
        "    except OSError: refused += 1\n"
        "print(len(open_) + refused, 0 < len(open_) <= 8)"
    )
    assert "12 True" in await execute(sandbox, code)


async def test_its_death_closes_the_network_and_the_next_sandbox_has_one(engine: Engine, port: int) -> None:
    sandbox = await make(engine)
    assert "got 5" in await execute(sandbox, echo(port))
    (pid,) = egress_pids(engine)
    os.kill(pid, signal.SIGKILL)
    answer = await execute(sandbox, echo(port))
    assert "got 5" not in answer
    assert '"error"' in answer
    assert "1" in await execute(sandbox, "1")
    assert "got 5" in await execute(await make(engine), echo(port))
    assert egress_pids(engine) != [pid]
