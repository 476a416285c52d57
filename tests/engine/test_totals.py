"""What all sandboxes together may use: over it sandboxes lose processes, and the engine goes on."""

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


async def test_the_total_holds_where_one_limit_would_not() -> None:
    engine = await Engine.start(EngineSettings(templates=(TEMPLATE,), total_memory_mb=400))
    try:
        if not any(layer.in_force for layer in engine.isolation.layers if layer.name.startswith("cgroup")):
            pytest.skip("there are no cgroups for this engine")
        limits = Limits(memory_mb=1024)
        first = await engine.create(SandboxSpec(new_sandbox_id(), TEMPLATE, limits=limits))
        assert await output(first, FILL) == b""
        assert (await engine.stats(first.sandbox_id)).memory_peak < 512 << 20
        second = await engine.create(SandboxSpec(new_sandbox_id(), TEMPLATE, limits=limits))
        assert await output(second, "print(6 * 7)") == b"42\n"
    finally:
        await engine.aclose()
