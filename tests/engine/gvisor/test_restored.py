"""Images of real sandboxes under gVisor: of a template that warms nothing, so that it takes little time."""

import asyncio
import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from ringfence.core.ids import new_sandbox_id
from ringfence.engine.engine import Engine
from ringfence.engine.gvisor.images import Images
from ringfence.engine.gvisor.warmstarts import WarmStarts
from ringfence.engine.model import Sandbox, SandboxSpec

_SECONDS = 60


@pytest.fixture
async def bare(engine: Engine, tmp_path: Path) -> str:
    """A template without anything to import; its images are kept in the test's own directory."""
    available, why = await engine._tier.describe()
    if not available:
        pytest.skip(why)
    engine.warm_starts = WarmStarts(Images(tmp_path), engine._link)
    engine.built.add(dataclasses.replace(engine.templates["base"], name="bare", preload=()))
    return "bare"


async def _create(engine: Engine, template: str) -> Sandbox:
    return await engine.create(SandboxSpec(new_sandbox_id(), template, isolation="gvisor"))


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(_SECONDS):
        while not condition():
            await asyncio.sleep(0.02)


def _images(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("checkpoint.img") if "making" not in path.parts]


async def test_a_sandbox_is_restored_unless_its_image_is_spoiled(
    engine: Engine, bare: str, tmp_path: Path
) -> None:
    assert not (await _create(engine, bare)).restored
    await _until(lambda: _images(tmp_path))
    assert (await _create(engine, bare)).restored
    (image,) = _images(tmp_path)
    with image.open("r+b") as file:
        file.truncate(image.stat().st_size // 2)
    assert not (await _create(engine, bare)).restored
    assert engine.warm_starts.as_dict()["cold"] == 2


async def test_an_image_that_is_wanted_no_longer_is_broken_off(
    engine: Engine, bare: str, tmp_path: Path
) -> None:
    await _create(engine, bare)
    runtime_dir = engine._runtime_dir
    await _until(lambda: list(runtime_dir.glob("image-*")))
    engine.built.discard(bare)
    await _until(lambda: not list(runtime_dir.glob("image-*")))
    assert not list((tmp_path / "making").iterdir())
    assert not engine.ended.is_set()


async def test_nothing_is_left_of_an_image_when_the_launcher_is_killed(
    engine: Engine, bare: str, tmp_path: Path
) -> None:
    await _create(engine, bare)
    runtime_dir = engine._runtime_dir
    await _until(lambda: list(runtime_dir.glob("image-*")))
    (maker,) = runtime_dir.glob("image-*")
    os.kill(engine._link._process.pid, signal.SIGKILL)
    await _until(engine.ended.is_set)
    await _until(lambda: not engine.warm_starts.as_dict()["images_in_the_making"])
    assert not list((tmp_path / "making").iterdir())
    assert not _images(tmp_path)
    await engine.aclose()
    assert not [path for path, _, _ in os.walk("/sys/fs/cgroup") if path.endswith(maker.name)]
