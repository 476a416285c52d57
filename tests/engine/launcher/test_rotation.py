"""Zygotes are replaced after so many forks; sandboxes of the old one go on, and nothing of it is left."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from ringfence.core.ids import new_sandbox_id
from ringfence.engine.engine import Engine
from ringfence.engine.model import Sandbox, SandboxSpec
from ringfence.engine.proof.guest_client import run_cell
from ringfence.engine.settings import EngineSettings

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
