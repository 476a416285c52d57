"""Zygotes are replaced after so many forks; sandboxes of the old one go on, and nothing of it is left."""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from ringfence.core.errors import LauncherError, SandboxStartError
from ringfence.core.ids import new_sandbox_id
from ringfence.engine.engine import Engine
from ringfence.engine.launcher.backlog import Backlog
from ringfence.engine.model import Sandbox, SandboxSpec
from ringfence.engine.proof.guest_client import GuestAnswerError, run_cell
from ringfence.engine.settings import EngineSettings
from ringfence.engine.zygote import channel

TEMPLATE = "base"
SHARED = """
import json
with open("/proc/self/maps") as maps:
    library = next(line.split()[0] for line in maps if "/libc" in line)
print(json.dumps({"hash seed": hash("x"), "layout": library}))
"""


async def facts(sandbox: Sandbox) -> dict[str, Any]:
    events = await run_cell(sandbox, "", SHARED)
    text = "".join(event["text"] for event in events if event["type"] == "stdout")
    return dict(json.loads(text))


def zygotes() -> set[int]:
    """Our own zygotes: children of the launcher, a child of ours, in no PID namespace of their own."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            line = path.read_text()
            parent = int(line.rpartition(") ")[2].split()[1])
            launcher = (path.parent.parent / str(parent) / "cmdline").read_bytes()
            grandparent = (path.parent.parent / str(parent) / "stat").read_text().rpartition(") ")[2]
            inside = os.readlink(path.parent / "ns/pid") != os.readlink("/proc/self/ns/pid")
        except OSError:
            continue
        ours = b"ringfence.engine.launcher.main" in launcher and int(grandparent.split()[1]) == os.getpid()
        if ours and not inside:
            found.add(int(path.parent.name))
    return found


async def test_after_so_many_forks_kernels_share_nothing_with_those_before() -> None:
    engine = await Engine.start(EngineSettings(templates=(TEMPLATE,), rotate_after=2))
    try:
        first = await engine.create(SandboxSpec(new_sandbox_id(), TEMPLATE))
        before, at_first = await facts(first), zygotes()
        assert len(at_first) == 2, "a guest zygote and one for kernels"
        for _ in range(100):
            sandbox = await engine.create(SandboxSpec(new_sandbox_id(), TEMPLATE))
            now = await facts(sandbox)
            await engine.kill(sandbox.sandbox_id)
            if now["hash seed"] != before["hash seed"] and not at_first & zygotes():
                break
            await asyncio.sleep(0.1)
        assert now["hash seed"] != before["hash seed"]
        assert now["layout"] != before["layout"]
        assert not at_first & zygotes(), "the old ones have ended"
        assert await facts(first) == before, "what was forked from the old ones goes on"
    finally:
        await engine.aclose()
    assert zygotes() == set()


async def test_a_zygote_is_not_replaced_without_need() -> None:
    engine = await Engine.start(EngineSettings(templates=(TEMPLATE,)))
    try:
        seeds = set()
        for _ in range(3):
            sandbox = await engine.create(SandboxSpec(new_sandbox_id(), TEMPLATE))
            seeds.add((await facts(sandbox))["hash seed"])
            await engine.kill(sandbox.sandbox_id)
        assert len(seeds) == 1
    finally:
        await engine.aclose()


async def test_a_zygote_that_reads_nothing_is_replaced() -> None:
    engine = await Engine.start(EngineSettings(templates=(TEMPLATE,), zygote_patience=0.5))
    try:
        other = await engine.create(SandboxSpec(new_sandbox_id(), TEMPLATE))
        before = zygotes()
        for pid in before:
            os.kill(pid, signal.SIGSTOP)
        async with asyncio.timeout(60):
            with pytest.raises(
                (SandboxStartError, LauncherError), match=r"fork of the sandbox died|replaced"
            ):
                await engine.create(SandboxSpec(new_sandbox_id(), TEMPLATE))
            assert (await engine.stats(other.sandbox_id)).memory_used  # the launcher does not wait for it
            sandbox = await started(engine)
            # The zygote for kernels is noticed when a nursery is asked of it, and this sandbox gets another.
            while not await runs(sandbox):
                await asyncio.sleep(0.1)
        assert not before & zygotes()
        assert await runs(other)
        assert not engine.ended.is_set()
    finally:
        await engine.aclose()
    assert zygotes() == set()


async def started(engine: Engine) -> Sandbox:
    while True:
        try:
            return await engine.create(SandboxSpec(new_sandbox_id(), TEMPLATE))
        except (SandboxStartError, LauncherError):
            await asyncio.sleep(0.1)


async def runs(sandbox: Sandbox) -> bool:
    try:
        events = await run_cell(sandbox, "", "print(6 * 7)")
    except GuestAnswerError:  # it has no nursery
        return False
    return any(event.get("text") == "42\n" for event in events)


def test_a_backlog_is_counted_until_it_is_read() -> None:
    ours, theirs = channel.pair()
    with ours, theirs:
        backlog = Backlog(ours)
        assert backlog.look() == 0
        assert backlog.empty
        for _ in range(2):
            channel.send(ours, {})
        backlog.look()
        waited = backlog.look()
        assert waited > 0
        assert backlog.look() > waited
        channel.receive(theirs)
        assert backlog.look() < waited, "it has read something meanwhile"
        assert not backlog.empty
        channel.receive(theirs)
        assert backlog.look() == 0
        assert backlog.empty
