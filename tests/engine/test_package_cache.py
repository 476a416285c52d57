"""The cache of package files on disk: its size, its digests, and a disk that is full."""

import hashlib
import os
import resource
from pathlib import Path

import pytest

from ringfence.engine.package_cache import PackageCache


def digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def keep(cache: PackageCache, content: bytes, name: str = "") -> bool:
    """Write a file down as the egress does; whether it is there afterwards."""
    descriptor, found = cache.open(1, name or digest(content))
    assert descriptor is not None
    assert not found
    os.write(descriptor, content)
    os.close(descriptor)
    cache.end(1, whole=True)
    descriptor, found = cache.open(2, name or digest(content))
    assert descriptor is not None
    os.close(descriptor)
    cache.end(2, whole=False)
    return found


def files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def test_what_has_its_digest_is_kept_and_nothing_else(tmp_path: Path) -> None:
    cache = PackageCache(tmp_path, 100)
    assert keep(cache, b"one")
    assert not keep(cache, b"two", digest(b"other"))
    assert [path.read_bytes() for path in files(tmp_path)] == [b"one"]


def test_room_is_made_before_it_is_needed(tmp_path: Path) -> None:
    cache = PackageCache(tmp_path, 100)
    for letter in (b"a", b"b", b"c"):
        assert keep(cache, letter * 60)
        assert [path.read_bytes() for path in files(tmp_path)] == [letter * 60]
    assert not keep(cache, b"d" * 101)
    assert [path.read_bytes() for path in files(tmp_path)] == [b"c" * 60], (
        "it makes no room for what has none"
    )


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    cache = PackageCache(tmp_path, 1 << 20)
    content = b"x" * 10_000
    descriptor, _ = cache.open(1, digest(content))
    assert descriptor is not None
    os.write(descriptor, content)
    os.close(descriptor)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, limits[1]))
    try:
        cache.end(1, whole=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files(tmp_path) == []
    assert keep(cache, content)


def test_what_is_being_stored_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a server that is killed in the middle leaves nothing."""
    cache = PackageCache(tmp_path, 1 << 20)
    descriptor, _ = cache.open(1, digest(b"one"))
    assert descriptor is not None
    os.write(descriptor, b"one")
    os.close(descriptor)
    seen: list[list[Path]] = []
    read = os.pread

    def watched(*arguments: int) -> bytes:
        seen.append(files(tmp_path))
        return read(*arguments)

    monkeypatch.setattr(os, "pread", watched)
    cache.end(1, whole=True)
    assert seen
    assert not any(seen)
    assert len(files(tmp_path)) == 1
