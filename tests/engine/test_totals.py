"""What all sandboxes together may use: over it sandboxes lose processes, and the engine goes on."""

from pathlib import Path

import pytest

from ringfence.core.ids import new_sandbox_id
from ringfence.engine.engine import Engine
from ringfence.engine.model import Limits, Sandbox, SandboxSpec
from ringfence.engine.proof.guest_client import run_program
from ringfence.engine.settings import EngineSettings

TEMPLATE = "base"
FILL = "held = b'x' * (600 << 20); print('held')"


async def output(sandbox: Sandbox, code: str) -> bytes:
    return b"".join([data async for data in run_program(sandbox, "", "user", ["-c", code])])


FORK = """
import os, signal
children = []
try:
    while len(children) < 150:
        pid = os.fork()
        if pid == 0:
            signal.pause()
        children.append(pid)
except BlockingIOError:
    pass
for pid in children:
    os.kill(pid, signal.SIGKILL)
print(len(children))
"""


async def test_all_sandboxes_together_have_no_more_processes() -> None:
    engine = await Engine.start(EngineSettings(templates=(TEMPLATE,), total_pids=64, total_cpus=1))
    try:
        if not any(layer.in_force for layer in engine.isolation.layers if layer.name.startswith("cgroup")):
            pytest.skip("there are no cgroups for this engine")
        sandbox = await engine.create(
            SandboxSpec(new_sandbox_id(), TEMPLATE, limits=Limits(pids=256, cpus=2))
        )
        assert 0 < int(await output(sandbox, FORK)) < 64
    finally:
        await engine.aclose()


async def test_sandboxes_are_ended_before_the_engine_when_the_machine_runs_out_of_memory() -> None:
    engine = await Engine.start(EngineSettings(templates=(TEMPLATE,)))
    try:
        sandbox = await engine.create(SandboxSpec(new_sandbox_id(), TEMPLATE))
        assert int(Path(f"/proc/{sandbox.pid}/oom_score_adj").read_text()) >= 0
        # A value below the engine's cannot be taken from inside.
        code = "open('/proc/self/oom_score_adj', 'w').write('-1')"
        assert b"OSError" in await output(sandbox, code)
    finally:
        await engine.aclose()


async def test_the_total_holds_where_one_limit_would_not() -> None:
    engine = await Engine.start(EngineSettings(templates=(TEMPLATE,), total_memory_mb=400))
    try:
        if not any(layer.in_force for layer in engine.isolation.layers if layer.name.startswith("cgroup")):
            pytest.skip("there are no cgroups for this engine")
        limits = Limits(memory_mb=1024)
        first = await engine.create(SandboxSpec(new_sandbox_id(), TEMPLATE, limits=limits))
        told = (await output(first, FILL)).decode()
        assert "held" not in told
        assert "all sandboxes together ran out of memory (this one had " in told
        assert "--total-memory-mb" in told
        assert (await engine.stats(first.sandbox_id)).memory_peak < 512 << 20
        second = await engine.create(SandboxSpec(new_sandbox_id(), TEMPLATE, limits=limits))
        assert await output(second, "print(6 * 7)") == b"42\n"
    finally:
        await engine.aclose()
