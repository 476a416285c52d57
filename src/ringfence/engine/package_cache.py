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
import threading
from pathlib import Path

logger = logging.getLogger(__name__)

_DIGEST = re.compile(r"(sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})")
_BLOCK = 1 << 20
_MOST_OPEN = 256
_UNNAMED = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC


class PackageCache:
    """The files in `directory` (None: nothing is kept), `most` bytes together. Calls block; any thread.

    What is being written takes room beside that, which the egress bounds (`mirror.blobs`).
    """

    def __init__(self, directory: Path | None, most: int) -> None:
        self._directory = directory if most else None
        self._most = most
        self._lock = threading.Lock()
        self._storing = threading.Lock()
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
            descriptor = os.open(self._directory, _UNNAMED, 0o600)
            self._written[number] = (digest, descriptor)
            return os.dup(descriptor)

    def _store(self, digest: str, descriptor: int) -> None:
        """Keep a copy under its digest. It has no name before it is whole: nothing is left of others.

        Raises OSError.
        """
        path = self._path(digest)
        size = os.fstat(descriptor).st_size
        if path is None or self._directory is None or size > self._most:
            return
        algorithm, _, expected = digest.partition(":")
        with self._storing:
            self._make_room(size)
            copy = os.open(self._directory, _UNNAMED, 0o600)
            try:
                if _copy(descriptor, copy, size, algorithm) != expected:
                    logger.warning("a package does not have the digest that its index says: %s", digest)
                    return
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                with contextlib.suppress(FileExistsError):
                    os.link(f"/proc/self/fd/{copy}", path, src_dir_fd=copy)  # open(2), O_TMPFILE
            finally:
                os.close(copy)

    def _make_room(self, size: int) -> None:
        """Remove what was not used for longest, until there is room for `size` bytes."""
        if self._directory is None:
            return
        files = []
        for path in self._directory.glob("sha*/*/*"):
            with contextlib.suppress(OSError):
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        over = sum(size for _, size, _ in files) + size - self._most
        for _, freed, path in sorted(files):
            if over <= 0:
                return
            path.unlink(missing_ok=True)
            over -= freed


def _copy(source: int, target: int, size: int, algorithm: str) -> str:
    """Copy `size` bytes, and the digest of what was copied."""
    digest = hashlib.new(algorithm)
    at = 0
    while block := os.pread(source, min(_BLOCK, size - at), at):
        at += len(block)
        digest.update(block)
        view = memoryview(block)
        while view:
            view = view[os.write(target, view) :]
    return digest.hexdigest()
