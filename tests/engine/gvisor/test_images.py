"""Where images are kept: whole or not at all, for one template alone, and not too many."""

import fcntl
import os
import stat
from pathlib import Path

import pytest

from ringfence.engine.gvisor.images import Images


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return Images(tmp_path / "images", most=1000)


def _make(images: Images, template: str, key: str, size: int = 10, at: int = 0) -> Path:
    with images.making(template, key) as place:
        (place / "checkpoint.img").write_bytes(b"x" * size)
    found = images.find(template, key)
    assert found is not None
    if at:
        os.utime(found, (at, at))
    return found


def test_an_image_is_found_by_template_and_key(images: Images) -> None:
    made = _make(images, "base", "one")
    assert (made / "checkpoint.img").read_bytes() == b"x" * 10
    assert images.find("base", "two") is None
    assert images.find("other", "one") is None


def test_nobody_else_may_look(images: Images, tmp_path: Path) -> None:
    made = _make(images, "base", "one")
    for path in (tmp_path / "images", made.parent, made):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_one_that_is_not_finished_is_not_there(images: Images, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it broke"), images.making("base", "one") as place:
        (place / "checkpoint.img").write_bytes(b"half")
        assert images.find("base", "one") is None
        raise ValueError("it broke")
    assert images.find("base", "one") is None
    assert not list((tmp_path / "images" / "making").iterdir())


def test_the_latest_is_used_and_the_others_go(images: Images) -> None:
    with images.making("base", "one") as place:
        (place / "checkpoint.img").write_bytes(b"made last")
        _make(images, "base", "one", size=3)
    found = images.find("base", "one")
    assert found is not None
    assert (found / "checkpoint.img").read_bytes() == b"made last"
    assert list(found.parent.iterdir()) == [found]


def test_an_image_has_an_age(images: Images) -> None:
    made = _make(images, "base", "one", at=1000)
    assert 0 <= images.age(made) < 60


def test_the_name_of_a_template_leads_nowhere_else(images: Images, tmp_path: Path) -> None:
    made = _make(images, "../../elsewhere", "one")
    assert made.is_relative_to(tmp_path / "images")
    assert ".." not in made.parts


def test_what_was_not_used_for_longest_goes_first(images: Images) -> None:
    for number in range(3):
        _make(images, f"template-{number}", "key", size=400, at=1000 + number)
    assert images.find("template-0", "key") is None
    assert images.find("template-1", "key") is not None
    assert images.find("template-2", "key") is not None


def test_what_is_used_stays(images: Images) -> None:
    _make(images, "template-0", "key", size=400, at=1000)
    _make(images, "template-1", "key", size=400, at=1001)
    images.find("template-0", "key")
    _make(images, "template-2", "key", size=400)
    assert images.find("template-0", "key") is not None
    assert images.find("template-1", "key") is None


def test_a_template_has_a_few(images: Images) -> None:
    for number in range(6):
        _make(images, "base", f"key-{number}", at=1000 + number)
    kept = [number for number in range(6) if images.find("base", f"key-{number}")]
    assert kept == [2, 3, 4, 5]


def test_images_are_thrown_away(images: Images) -> None:
    for template, key in (("base", "one"), ("base", "two"), ("other", "one")):
        _make(images, template, key)
    images.discard("base", "one")
    assert images.find("base", "one") is None
    assert images.find("base", "two") is not None
    images.forget("base")
    assert images.find("base", "two") is None
    assert images.find("other", "one") is not None
    images.discard("base", "never there")


def test_what_a_killed_process_was_writing_is_removed(images: Images, tmp_path: Path) -> None:
    left = tmp_path / "images" / "making" / "left"
    left.mkdir(parents=True)
    (left / "checkpoint.img").write_bytes(b"half")
    with images.making("base", "one") as place:
        images.sweep()
        assert place.is_dir()
    assert not left.exists()


def test_a_directory_that_is_held_is_somebodys(images: Images, tmp_path: Path) -> None:
    held = tmp_path / "images" / "making" / "held"
    held.mkdir(parents=True)
    lock = os.open(held, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    images.sweep()
    assert held.exists()
    os.close(lock)
    images.sweep()
    assert not held.exists()
