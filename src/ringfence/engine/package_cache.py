"""Files of packages, kept by their digest and shared by all sandboxes of this user's servers.

Nothing is kept that does not have the digest it is asked for by: what the egress has written is copied, and
the copy is what is hashed, so that nobody can change it afterwards. The directory is this user's own; the
egress gets descriptors, to read what is there and to write what is not, and no names.
"""

import contextlib
import hashlib
import logging
import os
import re
import tempfile
import threading
from pathlib import Path

logger = logging.getLogger(__name__)

_DIGEST = re.compile(r"(sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})")
_BLOCK = 1 << 20
_MOST_OPEN = 256


class PackageCache:
    """The files in `directory` (None: nothing is kept), `most` bytes together. Calls block; any thread."""

    def __init__(self, directory: Path | None, most: int) -> None:
        self._directory = directory if most else None
        self._most = most
        self._lock = threading.Lock()
        self._written: dict[int, tuple[str, int]] = {}

    def open(self, number: int, digest: str) -> tuple[int | None, bool]:
        """The file with a digest, to read from, and True; or an unnamed one to write to, and False.

        `number` stands for the latter until `end`. The caller closes the descriptor.
        """
        path = self._path(digest)
        if path is None:
            return None, False
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            with contextlib.suppress(OSError):
                os.utime(path)  # it was used now: others are older, and leave first
            return descriptor, True
        try:
            return self._begin(number, digest), False
        except OSError as error:
            logger.warning("packages are not cached: %s", error)
            return None, False

    def end(self, number: int, *, whole: bool) -> None:
        """What was to be written under a number is `whole`, or never will be."""
        with self._lock:
            digest, descriptor = self._written.pop(number, ("", -1))
        if descriptor < 0:
            return
        try:
            if whole:
                self._store(digest, descriptor)
        except OSError as error:
            logger.warning("a package was not cached: %s", error)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Forget what is being written."""
        for number in list(self._written):
            self.end(number, whole=False)

    def _path(self, digest: str) -> Path | None:
        if self._directory is None or not _DIGEST.fullmatch(digest):
            return None
        algorithm, _, value = digest.partition(":")
        return self._directory / algorithm / value[:2] / value[2:]

    def _begin(self, number: int, digest: str) -> int | None:
        with self._lock:
            if self._directory is None or len(self._written) >= _MOST_OPEN:
                return None
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
            self._written[number] = (digest, descriptor)
            return os.dup(descriptor)

    def _store(self, digest: str, descriptor: int) -> None:
        path = self._path(digest)
        if path is None or self._directory is None or os.fstat(descriptor).st_size > self._most:
            return
        with tempfile.NamedTemporaryFile(dir=self._directory, prefix=".new-", delete=False) as copy:
            try:
                if _copy(descriptor, copy.fileno(), digest.partition(":")[0]) != digest.partition(":")[2]:
                    logger.warning("a package does not have the digest that its index says: %s", digest)
                    return
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                Path(copy.name).rename(path)
            finally:
                Path(copy.name).unlink(missing_ok=True)
        self._evict()

    def _evict(self) -> None:
        """Remove what was not used for longest, until the rest is small enough."""
        if self._directory is None:
            return
        files = []
        for path in self._directory.glob("sha*/*/*"):
            with contextlib.suppress(OSError):
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        over = sum(size for _, size, _ in files) - self._most
        for _, size, path in sorted(files):
            if over <= 0:
                return
            path.unlink(missing_ok=True)
            over -= size


def _copy(source: int, target: int, algorithm: str) -> str:
    """Copy a whole file, and the digest of what was copied."""
    digest = hashlib.new(algorithm)
    at = 0
    while block := os.pread(source, _BLOCK, at):
        at += len(block)
        digest.update(block)
        view = memoryview(block)
        while view:
            view = view[os.write(target, view) :]
    return digest.hexdigest()
