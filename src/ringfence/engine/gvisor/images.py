"""Where images of warmed gVisor sandboxes are kept: in the cache directory, by template and by what they
depend on.

::

    <root>/<template>/<key>.<time>/   an image; it never changes; of several the latest is used
    <root>/making/<random>/           one that is being written, by whoever holds a lock on the directory

An image is either wholly there or not at all: it is renamed when it is complete. Nothing here looks into
one: it comes out of a sandbox, and goes into others of the same template only.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from ringfence.engine.templates.cache import digest

ROOM = 1 << 30
"""Bytes that one image may have."""
_MOST = 4 << 30
_MOST_EACH = 4
"""Images of one template: servers of several versions may share the directory."""
_MAKING = "making"


class Images:
    """The images below `root`, which is made, for this user alone, with the first. most: bytes in all."""

    def __init__(self, root: Path, most: int = _MOST) -> None:
        self._root = root
        self._most = most

    def find(self, template: str, key: str) -> Path | None:
        """The image `key` of a template, which counts as used now; None: there is none."""
        found = self._of(template, key)
        if not found:
            return None
        with contextlib.suppress(OSError):
            os.utime(found[-1])
        return found[-1]

    @staticmethod
    def age(image: Path) -> float:
        """Seconds since an image was made."""
        return (time.time_ns() - int(image.suffix[1:])) / 1e9

    @contextlib.contextmanager
    def making(self, template: str, key: str) -> Iterator[Path]:
        """An empty directory, which becomes the image `key` in the place of what there was, unless there is
        an exception. Raises OSError.
        """
        made = self._root / _MAKING / secrets.token_hex(8)
        for directory in (self._root, made.parent, made):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(made, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield made
            place = self._place(template)
            place.mkdir(mode=0o700, exist_ok=True)
            made.rename(place / f"{key}.{time.time_ns():020}")
        finally:
            shutil.rmtree(made, ignore_errors=True)
            os.close(lock)
        for old in self._of(template, key)[:-1]:
            self._remove(old)
        self._evict(place)

    def discard(self, template: str, key: str) -> None:
        """Throw an image away. A sandbox that is being restored from it has it open already, or fails."""
        for path in self._of(template, key):
            self._remove(path)

    def forget(self, template: str) -> None:
        """Throw all images of a template away."""
        self._remove(self._place(template))

    def sweep(self) -> None:
        """Remove what was being written by processes that were killed."""
        for left in self._listed(self._root / _MAKING):
            with contextlib.suppress(OSError):
                lock = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left, ignore_errors=True)
                finally:
                    os.close(lock)

    def _place(self, template: str) -> Path:
        return self._root / digest(template)

    def _of(self, template: str, key: str) -> list[Path]:
        """The latest comes last."""
        return sorted(path for path in self._listed(self._place(template)) if path.stem == key)

    def _remove(self, path: Path) -> None:
        """Out of sight first, so that nobody finds half of it."""
        grave = self._root / _MAKING / secrets.token_hex(8)
        with contextlib.suppress(OSError):
            grave.parent.mkdir(mode=0o700, exist_ok=True)
            path.rename(grave)
            shutil.rmtree(grave, ignore_errors=True)

    def _evict(self, place: Path) -> None:
        """Remove what was not used for longest, of one template and of all."""
        for old in self._by_age([place])[:-_MOST_EACH]:
            self._remove(old)
        places = [path for path in self._listed(self._root) if path.name != _MAKING]
        kept = self._by_age(places)
        sizes = {path: sum(file.stat().st_size for file in self._listed(path)) for path in kept}
        over = sum(sizes.values()) - self._most
        for path in kept:
            if over <= 0:
                return
            self._remove(path)
            over -= sizes[path]

    def _by_age(self, places: list[Path]) -> list[Path]:
        found = []
        for path in (path for place in places for path in self._listed(place)):
            with contextlib.suppress(OSError):
                found.append((path.stat().st_mtime, path))
        return [path for _, path in sorted(found)]

    @staticmethod
    def _listed(directory: Path) -> list[Path]:
        try:
            return list(directory.iterdir())
        except OSError:
            return []
