"""The cache of layers: built once, by one process, wholly or not at all."""

import multiprocessing
import os
import signal
import stat
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from ringfence.core.errors import TemplateError
from ringfence.engine.templates.cache import LayerCache, digest

FORK = multiprocessing.get_context("fork")


def silent(_: str) -> None:
    pass


def write_mark(work: Path, _: int) -> None:
    (work / "mark").write_text("done")


def never(_work: Path, _lock: int) -> None:
    raise AssertionError("built again")


def test_a_layer_is_built_once(tmp_path: Path) -> None:
    cache = LayerCache(tmp_path / "cache")

    first = cache.ensure("kind", "key", write_mark, silent)
    second = LayerCache(tmp_path / "cache").ensure("kind", "key", never, silent)

    assert first == second == tmp_path / "cache" / "kind" / "key"
    assert (first / "mark").read_text() == "done"
    assert list((tmp_path / "cache" / "building").iterdir()) == []


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    cache = LayerCache(tmp_path / "cache")

    def fail(work: Path, _: int) -> None:
        (work / "half").mkdir(mode=0o500)
        raise TemplateError("no network")

    with pytest.raises(TemplateError, match="no network"):
        cache.ensure("kind", "key", fail, silent)

    assert not (tmp_path / "cache" / "kind").exists()
    assert list((tmp_path / "cache" / "building").iterdir()) == []
    assert cache.ensure("kind", "key", write_mark, silent).is_dir()


def test_the_directory_is_private(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o755)

    LayerCache(tmp_path / "cache")

    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    os.chown(tmp_path / "cache", 12345, 12345)

    with pytest.raises(TemplateError, match="uid 12345"):
        LayerCache(tmp_path / "cache")


def _build_slowly(root: Path, started: Event, proceed: Event) -> None:
    def build(work: Path, _: int) -> None:
        (work / "mark").write_text("first")
        started.set()
        proceed.wait()

    LayerCache(root).ensure("kind", "key", build, silent)


def test_a_second_builder_waits_and_uses_what_the_first_made(tmp_path: Path) -> None:
    root, started, proceed = tmp_path / "cache", FORK.Event(), FORK.Event()
    other = FORK.Process(target=_build_slowly, args=(root, started, proceed))
    other.start()
    started.wait()
    said: list[str] = []

    def progress(message: str) -> None:
        said.append(message)
        proceed.set()  # the other can only go on once this one waits

    layer = LayerCache(root).ensure("kind", "key", never, progress)

    other.join()
    assert other.exitcode == 0
    assert said == ["waiting for another process that is building the same template"]
    assert (layer / "mark").read_text() == "first"


def test_what_a_killed_builder_left_is_never_used_and_is_swept(tmp_path: Path) -> None:
    root, started, proceed = tmp_path / "cache", FORK.Event(), FORK.Event()
    victim = FORK.Process(target=_build_slowly, args=(root, started, proceed))
    victim.start()
    started.wait()
    cache = LayerCache(root)
    cache.sweep()
    assert len(list((root / "building").iterdir())) == 1, "a live builder's work was swept"

    os.kill(victim.pid or 0, signal.SIGKILL)
    victim.join()

    assert not (root / "kind").exists()
    cache.sweep()
    assert list((root / "building").iterdir()) == []
    assert cache.ensure("kind", "key", write_mark, silent).is_dir()


def test_digest_depends_on_every_part_and_its_bounds() -> None:
    assert digest("a", "b") == digest("a", "b")
    assert digest("ab", "") != digest("a", "b")
    assert digest("a", 1) != digest("a", 2)
