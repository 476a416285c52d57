"""Freezing, suspending and copying sandboxes: what stays, what goes, and that nothing is left behind."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from ringfence.core.errors import LauncherError, RingfenceError, SandboxNotFoundError
from ringfence.core.ids import new_sandbox_id
from ringfence.engine.engine import Engine
from ringfence.engine.model import Exit, Limits, Sandbox, SandboxSpec
from ringfence.engine.settings import EngineSettings

TEMPLATE = "base"
MEGABYTE = 1 << 20


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    engine = await Engine.start(EngineSettings(templates=(TEMPLATE,), snapshot_dir=tmp_path / "snapshots"))
    yield engine
    await engine.aclose()


async def request(sandbox: Sandbox, text: str, body: bytes = b"") -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(sandbox.http_socket))
    head = f"{text} HTTP/1.1\r\nHost: x\r\nE2b-Sandbox-Port: 49983\r\nConnection: close\r\n"
    head += f"Content-Type: application/octet-stream\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    answer = await reader.read()
    writer.close()
    return answer


async def write(sandbox: Sandbox, path: str, data: bytes, user: str = "user") -> None:
    answer = await request(sandbox, f"POST /files?path={path}&username={user}", data)
    assert answer.startswith(b"HTTP/1.1 200"), answer


async def read(sandbox: Sandbox, path: str) -> bytes:
    head, _, body = (await request(sandbox, f"GET /files?path={path}&username=user")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    return body


def shared_memory() -> int:
    """What all tmpfs of the machine take, in MiB."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["Shmem"].split()[0]) // 1024


async def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_a_frozen_sandbox_stands_still_and_goes_on(engine: Engine, sandbox: Sandbox) -> None:
    await engine.freeze(sandbox.sandbox_id)
    asking = asyncio.create_task(request(sandbox, "GET /health"))
    _, pending = await asyncio.wait([asking], timeout=0.3)
    assert pending
    with pytest.raises(LauncherError, match="does not run"):
        await engine.freeze(sandbox.sandbox_id)
    await engine.thaw(sandbox.sandbox_id)
    assert (await asking).startswith(b"HTTP/1.1 204")
    await engine.thaw(sandbox.sandbox_id)


async def test_a_frozen_sandbox_can_be_killed(engine: Engine, sandbox: Sandbox) -> None:
    await engine.freeze(sandbox.sandbox_id)
    assert await engine.kill(sandbox.sandbox_id) is True
    assert not Path(f"/proc/{sandbox.pid}").exists()
    assert not sandbox.http_socket.parent.exists()


async def test_a_suspended_sandbox_keeps_files_and_ids(engine: Engine, sandbox: Sandbox) -> None:
    exits: list[Exit] = []
    engine.add_exit_listener(exits.append)
    await write(sandbox, "/home/user/a", b"kept")
    await write(sandbox, "/root/b", b"root's", user="root")
    ids = Path(f"/proc/{sandbox.pid}/uid_map").read_text()
    for _ in range(3):
        await engine.suspend(sandbox.sandbox_id)
        assert not Path(f"/proc/{sandbox.pid}").exists()
        assert not sandbox.http_socket.exists()
        sandbox = await engine.revive(sandbox.sandbox_id)
        assert Path(f"/proc/{sandbox.pid}/uid_map").read_text() == ids
        assert await read(sandbox, "/home/user/a") == b"kept"
    assert engine.get(sandbox.sandbox_id) == sandbox
    assert exits == []


async def test_a_frozen_sandbox_can_be_suspended(engine: Engine, sandbox: Sandbox) -> None:
    await write(sandbox, "/home/user/a", b"kept")
    await engine.freeze(sandbox.sandbox_id)
    await engine.suspend(sandbox.sandbox_id)
    sandbox = await engine.revive(sandbox.sandbox_id)
    assert await read(sandbox, "/home/user/a") == b"kept"


async def test_the_files_of_a_killed_suspended_sandbox_are_gone(engine: Engine, sandbox: Sandbox) -> None:
    before = shared_memory()
    await write(sandbox, "/home/user/a", b"x" * (300 * MEGABYTE))
    await engine.suspend(sandbox.sandbox_id)
    assert shared_memory() > before + 200
    exits: list[Exit] = []
    engine.add_exit_listener(exits.append)
    assert await engine.kill(sandbox.sandbox_id) is True
    assert [one.reason for one in exits] == ["killed"]
    assert not sandbox.http_socket.parent.exists()
    await eventually(lambda: shared_memory() < before + 100)
    with pytest.raises(SandboxNotFoundError):
        await engine.revive(sandbox.sandbox_id)


async def test_files_still_count_against_the_disk_after_a_revival(engine: Engine) -> None:
    limits = Limits(disk_mb=64)
    sandbox = await engine.create(SandboxSpec(new_sandbox_id(), TEMPLATE, limits=limits))
    await write(sandbox, "/home/user/a", b"x" * (40 * MEGABYTE))
    await engine.suspend(sandbox.sandbox_id)
    sandbox = await engine.revive(sandbox.sandbox_id)
    answer = await request(sandbox, "POST /files?path=/home/user/b&username=user", b"x" * (40 * MEGABYTE))
    assert answer.startswith(b"HTTP/1.1 507")
    used = (await engine.stats(sandbox.sandbox_id)).memory_used
    assert used == 0 or used > 40 * MEGABYTE


async def test_what_makes_no_sense_is_refused(engine: Engine, sandbox: Sandbox) -> None:
    with pytest.raises(LauncherError, match="cannot be started again"):
        await engine.revive(sandbox.sandbox_id)
    await engine.suspend(sandbox.sandbox_id)
    for verb in (engine.suspend, engine.freeze):
        with pytest.raises(LauncherError):
            await verb(sandbox.sandbox_id)
    with pytest.raises(SandboxNotFoundError):
        await engine.suspend("unknown")
    for name in ("../x", "", "A", "a/b"):
        with pytest.raises(LauncherError, match="no place"):
            await engine.erase(name)


async def test_a_kill_during_every_step(engine: Engine) -> None:
    async def live(step: int) -> None:
        sandbox = await engine.create(SandboxSpec(new_sandbox_id(), TEMPLATE))
        if step >= 2:
            await engine.suspend(sandbox.sandbox_id)
        verb = engine.suspend if step < 2 else engine.revive
        work = asyncio.ensure_future(verb(sandbox.sandbox_id))
        await asyncio.sleep(0.005 * (step % 2 + step // 4))
        assert await engine.kill(sandbox.sandbox_id) is True
        with contextlib.suppress(RingfenceError):
            await work
        assert not sandbox.http_socket.parent.exists()
        assert engine.get(sandbox.sandbox_id) is None

    for step in range(6):
        await live(step)


async def test_a_snapshot_is_owned_by_the_ids_inside(
    engine: Engine, sandbox: Sandbox, tmp_path: Path
) -> None:
    await write(sandbox, "/home/user/a", b"kept")
    await write(sandbox, "/etc/b", b"root's", user="root")
    assert await engine.snapshot(sandbox.sandbox_id, "first") >= 10
    assert (await request(sandbox, "GET /health")).startswith(b"HTTP/1.1 204")
    copied = tmp_path / "snapshots" / "first"
    if os.geteuid() == 0:
        assert copied.stat().st_mode & 0o777 == 0o700
        assert (copied / "0/home/user/a").stat().st_uid == 1000
        assert (copied / "0/etc/b").stat().st_uid == 0
    other = await engine.create(SandboxSpec(new_sandbox_id(), TEMPLATE, snapshots=("first",)))
    assert await read(other, "/home/user/a") == b"kept"
    assert engine.snapshots_in_use() == {"first"}
    await engine.kill(other.sandbox_id)
    assert engine.snapshots_in_use() == set()
    await engine.erase("first")
    await engine.erase("first")
    assert list((tmp_path / "snapshots").iterdir()) == []


async def test_a_snapshot_of_a_suspended_sandbox(engine: Engine, sandbox: Sandbox) -> None:
    await write(sandbox, "/home/user/a", b"kept")
    await engine.suspend(sandbox.sandbox_id)
    await engine.snapshot(sandbox.sandbox_id, "asleep")
    other = await engine.create(SandboxSpec(new_sandbox_id(), TEMPLATE, snapshots=("asleep",)))
    assert await read(other, "/home/user/a") == b"kept"
    sandbox = await engine.revive(sandbox.sandbox_id)
    assert await read(sandbox, "/home/user/a") == b"kept"


async def test_a_snapshot_that_fails_leaves_nothing(engine: Engine, sandbox: Sandbox, tmp_path: Path) -> None:
    with pytest.raises(SandboxNotFoundError):
        await engine.snapshot("unknown", "none")
    await engine.suspend(sandbox.sandbox_id)
    await engine.snapshot(sandbox.sandbox_id, "once")
    with pytest.raises(RingfenceError):
        await engine.snapshot(sandbox.sandbox_id, "once")
    other = await engine.create(SandboxSpec(new_sandbox_id(), TEMPLATE, snapshots=("once",)))
    assert await engine.kill(other.sandbox_id)
    with pytest.raises(RingfenceError):
        await engine.create(SandboxSpec(new_sandbox_id(), TEMPLATE, snapshots=("nosuch",)))
    await engine.erase("once")
    assert list((tmp_path / "snapshots").iterdir()) == []


async def test_the_end_of_the_engine_ends_suspended_sandboxes(engine: Engine, sandbox: Sandbox) -> None:
    before = shared_memory()
    await write(sandbox, "/home/user/a", b"x" * (200 * MEGABYTE))
    await engine.suspend(sandbox.sandbox_id)
    await engine.aclose()
    assert not sandbox.http_socket.parent.parent.exists()
    await eventually(lambda: shared_memory() < before + 100)
