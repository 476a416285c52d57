"""Whoever is cancelled while it waits for the engine leaves no sandbox behind, wherever that strikes it."""

import asyncio
from collections.abc import Coroutine, Generator
from pathlib import Path
from typing import Any

import pytest

from ringfence.core.errors import LauncherError
from ringfence.core.ids import new_sandbox_id
from ringfence.core.uninterrupted import uninterrupted
from ringfence.engine.engine import Engine
from ringfence.engine.model import SandboxSpec
from ringfence.engine.settings import EngineSettings

TEMPLATE = "base"


class CancelledAt:
    """Drives a coroutine that is cancelled at its `step`-th wait: before the wait, or just after it."""

    def __init__(self, work: Coroutine[Any, Any, Any], step: int, *, after: bool) -> None:
        self._work = work
        self._step = step
        self._after = after

    def __await__(self) -> Generator[Any, None, bool]:
        """Whether it was cancelled; otherwise it has fewer waits, and is done."""
        steps = 0
        try:
            waits_for = self._work.send(None)
            while True:
                steps += 1
                if steps == self._step:
                    if self._after:
                        yield waits_for
                    elif waits_for is not None:
                        waits_for._asyncio_future_blocking = False  # nobody waits
                    waits_for = self._work.throw(asyncio.CancelledError())
                else:
                    yield waits_for
                    waits_for = self._work.send(None)
        except StopIteration:
            return False
        except asyncio.CancelledError:
            return True


@pytest.fixture
async def engine(tmp_path: Path) -> Any:
    engine = await Engine.start(EngineSettings(templates=(TEMPLATE,), snapshot_dir=tmp_path / "snapshots"))
    yield engine
    await engine.aclose()


async def test_wherever_the_engine_is_cancelled_nothing_is_lost(engine: Engine, tmp_path: Path) -> None:
    for after in (False, True):
        step = 1
        while True:
            spec = SandboxSpec(new_sandbox_id(), TEMPLATE)
            if not await CancelledAt(engine.create(spec), step, after=after):
                break
            assert engine.get(spec.sandbox_id) is None
            assert not await engine.kill(spec.sandbox_id), f"it lives on, cancelled at {step} ({after=})"
            step += 1
        assert step > 1
        await check_revive_and_snapshot(engine, spec.sandbox_id, tmp_path / "snapshots", after=after)
        assert await engine.kill(spec.sandbox_id)
    assert not engine.snapshots_in_use()


async def check_revive_and_snapshot(engine: Engine, sandbox_id: str, snapshots: Path, *, after: bool) -> None:
    step = 1
    while await CancelledAt(engine.snapshot(sandbox_id, f"s{step}"), step, after=after):
        await engine.erase(f"s{step}")
        step += 1
    assert {path.name for path in snapshots.iterdir()} == {f"s{step}"}
    await engine.erase(f"s{step}")
    await engine.suspend(sandbox_id)
    step = 1
    while await CancelledAt(engine.revive(sandbox_id), step, after=after):
        with pytest.raises(LauncherError):
            await engine.suspend(sandbox_id)  # it is that already
        step += 1
    assert step > 1


async def test_work_is_done_to_its_end_and_then_the_cancellation_is_told() -> None:
    go_on, done = asyncio.Event(), []

    async def work() -> None:
        await go_on.wait()
        done.append(True)
        raise ValueError

    task = asyncio.create_task(uninterrupted(work()))
    for _ in range(3):  # however often
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == [True]
    with pytest.raises(ValueError, match=r"^$"):
        await uninterrupted(work())
