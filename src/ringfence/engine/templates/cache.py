"""A directory of finished layers, safe to share between processes that build at the same time.

::

    <root>/<kind>/<key>/      a finished layer; it never changes afterwards
    <root>/building/          layers in progress, renamed to their place when they are complete
    <root>/locks/             one lock file per layer

A layer is either wholly there or not at all: it is built under another name and renamed. Whoever builds holds
a file lock, which the kernel drops when the builder dies: a directory in ``building`` whose lock is free is a
leftover.
"""

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ringfence.core.errors import TemplateError

Progress = Callable[[str], None]
"""Called with a sentence for a person, whenever there is something new to say."""

Build = Callable[[Path, int], None]
"""Fills the directory given; the integer is the descriptor of the held lock, for child processes to
inherit.
"""

_BUILDING = "building"
_LOCKS = "locks"


def digest(*parts: object) -> str:
    """A key of 40 hex digits for `parts`; equal parts give equal keys on every machine and in every
    process.
    """
    hasher = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        hasher.update(len(data).to_bytes(8, "big") + data)
    return hasher.hexdigest()[:40]


class LayerCache:
    """The cache at `root`, which is made, private to this user, when it is missing.

    Raises `TemplateError` when the directory belongs to somebody else: what lies in it is run.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        _private_directory(root)
        for name in (_BUILDING, _LOCKS):
            (root / name).mkdir(mode=0o700, exist_ok=True)

    def ensure(self, kind: str, key: str, build: Build, progress: Progress) -> Path:
        """The finished layer `key`, built by `build` if it is not there yet; waits for another process that
        builds it.
        """
        final = self.root / kind / key
        if final.is_dir():
            return final
        name = f"{kind}-{key}"
        with self._locked(name, progress) as lock:
            self._remove_leftovers(name)
            if not final.is_dir():
                self._build(name, final, build, lock)
        return final

    def sweep(self) -> None:
        """Remove what builders left behind that were killed."""
        for leftover in (self.root / _BUILDING).iterdir():
            name = leftover.name.partition(".")[0]
            with self._lock_file(name) as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                _remove_tree(leftover)

    def _build(self, name: str, final: Path, build: Build, lock: int) -> None:
        work = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=self.root / _BUILDING))
        try:
            build(work, lock)
            final.parent.mkdir(mode=0o700, exist_ok=True)
            work.rename(final)
        except BaseException:
            _remove_tree(work)
            raise

    def _remove_leftovers(self, name: str) -> None:
        for leftover in (self.root / _BUILDING).glob(f"{name}.*"):
            _remove_tree(leftover)

    @contextmanager
    def _lock_file(self, name: str) -> Iterator[int]:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        lock = os.open(self.root / _LOCKS / f"{name}.lock", flags, 0o600)
        try:
            yield lock
        finally:
            os.close(lock)

    @contextmanager
    def _locked(self, name: str, progress: Progress) -> Iterator[int]:
        with self._lock_file(name) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress("waiting for another process that is building the same template")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield lock


def _private_directory(path: Path) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.stat()
    if status.st_uid != os.geteuid():
        raise TemplateError(
            f"the template cache {path} belongs to uid {status.st_uid}, not to uid {os.geteuid()} "
            "that runs this; choose another directory"
        )
    if stat.S_IMODE(status.st_mode) != 0o700:
        path.chmod(0o700)


def _remove_tree(path: Path) -> None:
    """Remove `path`, also where a build left directories without write permission."""
    for directory, _, _ in os.walk(path):
        Path(directory).chmod(0o700)
    shutil.rmtree(path, ignore_errors=True)
