"""Restoring is a matter of speed: whatever is wrong with an image, the sandbox starts."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from ringfence.core.errors import SandboxStartError
from ringfence.engine.gvisor.images import Images
from ringfence.engine.gvisor.warmstarts import Kind, WarmStarts

GVISOR = {"path": "/bin/true", "platform": "ptrace", "flags": [], "image": None, "room": 0}
KIND = Kind(
    "base",
    {"layers": [], "preload": []},
    {"template": "base", "limits": {"disk_mb": 1, "cpus": 2.0}, "hostname": "sandbox", "snapshots": []},
)


class _Launcher:
    """Writes an image down as the real one does, or fails."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.works = True
        self.may = asyncio.Event()
        self.may.set()

    async def call(self, verb: str, *fds: int, **request: Any) -> dict[str, Any]:
        if verb == "kill":
            return {"existed": True}
        assert verb == "image"
        self.requests.append(request)
        await self.may.wait()
        if not self.works:
            raise SandboxStartError("runsc checkpoint ended with status 1")
        Path(request["image_place"], "checkpoint.img").write_bytes(b"image")
        return {"bytes": 5}


class _Start:
    """An attempt to start a sandbox; restores fail when `broken`."""

    def __init__(self, *, broken: bool = False, hopeless: bool = False) -> None:
        self.images: list[str | None] = []
        self._broken, self._hopeless = broken, hopeless

    async def __call__(self, gvisor: dict[str, Any]) -> dict[str, Any]:
        self.images.append(gvisor["image"])
        if self._hopeless or (self._broken and gvisor["image"]):
            raise SandboxStartError("it does not start")
        return {"pid": 7}


@pytest.fixture
def launcher() -> _Launcher:
    return _Launcher()


@pytest.fixture
def starts(tmp_path: Path, launcher: _Launcher) -> WarmStarts:
    return WarmStarts(Images(tmp_path), launcher)  # type: ignore[arg-type]


async def _settled(starts: WarmStarts) -> None:
    while starts.as_dict()["images_in_the_making"]:
        await asyncio.sleep(0)


async def test_the_first_is_cold_and_the_second_restored(starts: WarmStarts) -> None:
    start = _Start()
    assert await starts.start(GVISOR, KIND, start) == ({"pid": 7}, False)
    await _settled(starts)
    assert await starts.start(GVISOR, KIND, start) == ({"pid": 7}, True)
    assert start.images[0] is None
    assert Path(str(start.images[1]), "checkpoint.img").read_bytes() == b"image"
    assert starts.as_dict() == {"restored": 1, "cold": 1, "images_in_the_making": 0}


async def test_the_first_does_not_wait_for_the_image(starts: WarmStarts, launcher: _Launcher) -> None:
    launcher.may.clear()
    for _ in range(2):
        assert not (await starts.start(GVISOR, KIND, _Start()))[1]
    await asyncio.sleep(0)
    assert len(launcher.requests) == 1
    await starts.aclose()


async def test_an_image_has_nothing_of_any_sandbox(starts: WarmStarts, launcher: _Launcher) -> None:
    await starts.start(GVISOR, KIND, _Start())
    await _settled(starts)
    (request,) = launcher.requests
    assert request["guest"] == {}
    assert request["volumes"] == []
    assert request["gvisor"]["room"] > 0
    assert request["gvisor"]["image"] is None


async def test_one_that_cannot_be_restored_is_thrown_away(
    starts: WarmStarts, caplog: pytest.LogCaptureFixture
) -> None:
    await starts.start(GVISOR, KIND, _Start())
    await _settled(starts)
    start = _Start(broken=True)
    with caplog.at_level(logging.WARNING):
        assert await starts.start(GVISOR, KIND, start) == ({"pid": 7}, False)
    assert start.images[0] is not None
    assert start.images[1] is None
    assert not Path(str(start.images[0])).exists()
    assert "it does not start" in caplog.text
    await _settled(starts)  # it has been made again
    assert (await starts.start(GVISOR, KIND, _Start()))[1]


async def test_after_some_failures_no_more_are_made(starts: WarmStarts, launcher: _Launcher) -> None:
    launcher.works = False
    for _ in range(5):
        assert not (await starts.start(GVISOR, KIND, _Start()))[1]
        await _settled(starts)
    assert len(launcher.requests) == 3


async def test_a_sandbox_that_does_not_start_at_all_is_not_the_images_fault(starts: WarmStarts) -> None:
    await starts.start(GVISOR, KIND, _Start())
    await _settled(starts)
    with pytest.raises(SandboxStartError):
        await starts.start(GVISOR, KIND, _Start(hopeless=True))
    assert (await starts.start(GVISOR, KIND, _Start()))[1]


async def test_one_with_files_of_its_own_is_cold(starts: WarmStarts) -> None:
    await starts.start(GVISOR, KIND, _Start())
    await _settled(starts)
    start = _Start()
    assert await starts.start_cold(GVISOR, start) == ({"pid": 7}, False)
    assert start.images == [None]


async def test_an_image_is_made_anew_when_it_has_served(tmp_path: Path, launcher: _Launcher) -> None:
    starts = WarmStarts(Images(tmp_path), launcher, rotate_after=2)  # type: ignore[arg-type]
    start = _Start()
    for _ in range(6):
        await starts.start(GVISOR, KIND, start)
        await _settled(starts)
    first, second, third, fourth, fifth = start.images[1:]
    assert first == second != third == fourth != fifth
    assert len(launcher.requests) == 3


async def test_an_image_is_made_anew_when_it_is_old(tmp_path: Path, launcher: _Launcher) -> None:
    starts = WarmStarts(Images(tmp_path), launcher, rotate_seconds=1e-9)  # type: ignore[arg-type]
    start = _Start()
    for _ in range(3):
        await starts.start(GVISOR, KIND, start)
        await _settled(starts)
    assert start.images[1] != start.images[2]


async def test_the_images_of_a_template_go_with_it(starts: WarmStarts, launcher: _Launcher) -> None:
    await starts.start(GVISOR, KIND, _Start())
    await _settled(starts)
    starts.forget("base")
    launcher.may.clear()
    assert not (await starts.start(GVISOR, KIND, _Start()))[1]
    await asyncio.sleep(0)
    starts.forget("base")  # one that is being made too
    await _settled(starts)
    launcher.may.set()
    assert not (await starts.start(GVISOR, KIND, _Start()))[1]
    await starts.aclose()
