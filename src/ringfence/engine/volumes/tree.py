"""The files of one volume, which strangers' programs may change at any moment.

Every path is resolved by the kernel within the volume (openat2(2), ``RESOLVE_IN_ROOT``), so neither a link
nor a race leads out of it; what is then done is done relative to the open directory. Only regular files are
opened for reading, and none is waited for.
"""

import contextlib
import errno
import itertools
import os
import posixpath
import secrets
import stat
from collections.abc import Iterator
from typing import Any

from ringfence.core.errors import VolumeError
from ringfence.engine.isolation import linux
from ringfence.engine.launcher import treecopy

Entry = dict[str, Any]
DEFAULT_ID = 1000
"""Whose new entries are, when it is not said: the id of ``user`` in every template."""
DEFAULT_FILE_MODE, DEFAULT_DIRECTORY_MODE = 0o666, 0o777
MAX_DEPTH = 10
MAX_LISTED = 100_000
"""Entries that one listing may have."""

_RESOLVE = linux.RESOLVE_IN_ROOT | linux.RESOLVE_NO_MAGICLINKS | linux.RESOLVE_NO_XDEV
_DIRECTORY = os.O_PATH | os.O_DIRECTORY
_LOOK = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_LINKS, _TRIES = 40, 16
_LONGEST_PATH = 4095
_LARGEST_ID = 65535
_KINDS = {
    errno.ENOENT: "missing",
    errno.EEXIST: "exists",
    errno.ENOSPC: "full",
    errno.EDQUOT: "full",
    errno.EACCES: "denied",
    errno.EPERM: "denied",
    errno.EAGAIN: "busy",
    errno.EMFILE: "busy",
    errno.ENFILE: "busy",
    errno.EIO: "broken",
    errno.EROFS: "broken",
}


@contextlib.contextmanager
def explained(path: str) -> Iterator[None]:
    """Turn errors of the system into `VolumeError`s that name `path` as the client has given it."""
    try:
        yield
    except OSError as error:
        # What is left are things of the wrong kind: a file for a directory, a loop of links, a socket.
        kind = _KINDS.get(error.errno or 0, "invalid")
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise VolumeError(f"{path[:200]}: {reason}", kind) from None


class VolumeTree:
    """What the content API does. `root`: the volume's files; `staging`: a directory of ours beside them, on
    the same mount, which no sandbox sees. Both are open directories. All methods raise `VolumeError`.
    """

    def __init__(self, root: int, staging: int) -> None:
        self._root = root
        self._staging = staging

    def stat(self, path: str) -> Entry:
        """One entry; a link is not followed."""
        path = cleaned(path)
        with explained(path):
            if path == "/":
                return _entry(path, os.fstat(self._root), None)
            with self._parent(path) as parent:
                return self._look(parent, path)

    def list(self, path: str, depth: int) -> Iterator[Entry]:
        """What is in a directory, to `depth` levels, sorted; each directory comes before what is in it."""
        path = cleaned(path)
        if not 1 <= depth <= MAX_DEPTH:
            raise VolumeError(f"depth must be between 1 and {MAX_DEPTH}", "invalid")
        with explained(path):
            top = self._open(path, _LOOK | os.O_DIRECTORY)
        room = itertools.count(MAX_LISTED, -1)
        return self._walk(top, path, depth, room)

    def _walk(self, directory: int, path: str, depth: int, room: Iterator[int]) -> Iterator[Entry]:
        try:
            for name in _names(directory, room):
                below = posixpath.join(path, name)
                try:
                    entry = self._look(directory, below)
                    inner = -1
                    if entry["type"] == "directory" and depth > 1:
                        inner = os.open(name, _LOOK | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
                except OSError:
                    continue  # it went while we looked
                yield entry
                if inner >= 0:
                    yield from self._walk(inner, below, depth - 1, room)
        finally:
            os.close(directory)

    def make_directory(self, path: str, uid: int, gid: int, mode: int, *, parents: bool) -> Entry:
        """Make a directory; with `parents` also those on the way, and it may be there already."""
        path = cleaned(path)
        _check_attributes(uid, gid, mode)
        with explained(path):
            if path == "/":
                if parents:
                    return self.stat(path)
                raise FileExistsError(errno.EEXIST, "")
            if parents:
                self._make_parents(path, uid, gid)
            with self._parent(path) as parent:
                try:
                    self._make_one(parent, posixpath.basename(path), uid, gid, mode)
                except FileExistsError:
                    entry = self._look(parent, path)
                    if not parents or entry["type"] != "directory":
                        raise
                    return entry
                return self._look(parent, path)

    def change(self, path: str, uid: int | None, gid: int | None, mode: int | None) -> Entry:
        """Change the owner, the group or the mode of a file or directory; a link is followed."""
        path = cleaned(path)
        _check_attributes(uid, gid, mode)
        with explained(path):
            descriptor = self._open(path, _LOOK)
            try:
                # In this order: a change of the owner takes set-id bits away.
                if uid is not None or gid is not None:
                    os.fchown(descriptor, -1 if uid is None else uid, -1 if gid is None else gid)
                if mode is not None:
                    os.fchmod(descriptor, mode)
                return _entry(path, os.fstat(descriptor), None)
            finally:
                os.close(descriptor)

    def remove(self, path: str) -> None:
        """Remove an entry, a directory with everything in it; it is out of sight at once."""
        path = cleaned(path)
        if path == "/":
            raise VolumeError("the root of a volume cannot be removed", "invalid")
        name = _new_name()
        with explained(path), self._parent(path) as parent:
            os.rename(posixpath.basename(path), name, src_dir_fd=parent, dst_dir_fd=self._staging)
            if not stat.S_ISDIR(os.stat(name, dir_fd=self._staging, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=self._staging)
                return
        # A process that is in there may go on writing. What is left then goes with the next agent.
        for _ in range(_TRIES):
            with contextlib.suppress(OSError):
                treecopy.remove(name, dir_fd=self._staging)
                return

    def open_file(self, path: str) -> tuple[int, Entry]:
        """A regular file for reading, and what it is like. A link is followed."""
        path = cleaned(path)
        with explained(path):
            descriptor = self._open(path, _LOOK)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise VolumeError(f"{path[:200]}: not a regular file", "invalid")
        return descriptor, _entry(path, status, None)

    def stage(self) -> tuple[int, str]:
        """A new file that nobody sees: its descriptor, for writing, and its name, for `publish`."""
        name = _new_name()
        with explained("/"):
            return os.open(name, _NEW_FILE, 0o600, dir_fd=self._staging), name

    def discard(self, name: str) -> None:
        """Remove a staged file."""
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self._staging)

    def publish(
        self, name: str, path: str, uid: int, gid: int, mode: int, *, overwrite: bool, parents: bool
    ) -> Entry:
        """Put a staged file, which is complete, where it belongs: at once, or not at all."""
        path = cleaned(path)
        _check_attributes(uid, gid, mode)
        with explained(path):
            if path == "/":
                raise IsADirectoryError(errno.EISDIR, "")
            descriptor = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._staging)
            try:
                os.fchown(descriptor, uid, gid)
                os.fchmod(descriptor, mode)
                os.fsync(descriptor)
                if parents:
                    self._make_parents(path, uid, gid)
                self._move(name, path, overwrite=overwrite)
                return _entry(path, os.fstat(descriptor), None)
            finally:
                os.close(descriptor)

    def _move(self, name: str, path: str, *, overwrite: bool) -> None:
        if not overwrite:
            with self._parent(path) as parent:
                os.link(name, posixpath.basename(path), src_dir_fd=self._staging, dst_dir_fd=parent)
            os.unlink(name, dir_fd=self._staging)
            return
        # Not through a link, but over what it leads to, as a write would.
        for _ in range(_MOST_LINKS):
            with self._parent(path) as parent:
                last = posixpath.basename(path)
                try:
                    leads_to = os.readlink(last, dir_fd=parent)
                except OSError:  # no link, or nothing
                    os.rename(name, last, src_dir_fd=self._staging, dst_dir_fd=parent)
                    return
            # Not cleaned: what ".." is behind a link only the kernel knows.
            path = leads_to if leads_to.startswith("/") else f"{posixpath.dirname(path)}/{leads_to}"
            if posixpath.basename(path) in ("", ".", ".."):
                raise IsADirectoryError(errno.EISDIR, "")
        raise OSError(errno.ELOOP, "")

    def _open(self, path: str, flags: int) -> int:
        for _ in range(_TRIES):
            try:
                return linux.openat2(self._root, path.lstrip("/") or ".", flags, resolve=_RESOLVE)
            except BlockingIOError:  # something was renamed meanwhile
                continue
        raise BlockingIOError(errno.EAGAIN, "")

    @contextlib.contextmanager
    def _parent(self, path: str) -> Iterator[int]:
        descriptor = self._open(posixpath.dirname(path), _DIRECTORY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    @staticmethod
    def _look(parent: int, path: str) -> Entry:
        name = posixpath.basename(path)
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        target = os.readlink(name, dir_fd=parent) if stat.S_ISLNK(status.st_mode) else None
        return _entry(path, status, target)

    def _make_parents(self, path: str, uid: int, gid: int) -> None:
        parts = path.strip("/").split("/")[:-1]
        for count in range(1, len(parts) + 1):
            below = "/" + "/".join(parts[:count])
            try:
                os.close(self._open(below, _DIRECTORY))
            except FileNotFoundError:
                with self._parent(below) as parent, contextlib.suppress(FileExistsError):
                    self._make_one(parent, parts[count - 1], uid, gid, DEFAULT_DIRECTORY_MODE)

    @staticmethod
    def _make_one(parent: int, name: str, uid: int, gid: int, mode: int) -> None:
        os.mkdir(name, 0o700, dir_fd=parent)
        made = os.open(name, _LOOK | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
        try:
            os.fchown(made, uid, gid)
            os.fchmod(made, mode)
        finally:
            os.close(made)


def cleaned(path: str) -> str:
    """An absolute path within a volume, without ``.``, ``..`` and what they take away."""
    if "\0" in path:
        raise VolumeError("a path cannot hold a NUL", "invalid")
    try:
        length = len(os.fsencode(path))
    except UnicodeEncodeError:
        raise VolumeError("a path must be valid Unicode", "invalid") from None
    if length > _LONGEST_PATH:
        raise VolumeError(f"a path has more than {_LONGEST_PATH} bytes", "invalid")
    return posixpath.normpath("/" + path.lstrip("/"))


def _check_attributes(uid: int | None, gid: int | None, mode: int | None) -> None:
    for name, number, most in (("uid", uid, _LARGEST_ID), ("gid", gid, _LARGEST_ID), ("mode", mode, 0o7777)):
        if number is not None and not 0 <= number <= most:
            raise VolumeError(f"{name} must be from 0 to {most}", "invalid")


def _names(directory: int, room: Iterator[int]) -> list[str]:
    names = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if next(room) <= 0:
                raise VolumeError(f"more than {MAX_LISTED} entries; list a part, or less deep", "invalid")
            names.append(entry.name)
    return sorted(names)


def _entry(path: str, status: os.stat_result, target: str | None) -> Entry:
    kinds = {stat.S_IFDIR: "directory", stat.S_IFREG: "file", stat.S_IFLNK: "symlink"}
    entry = {
        "name": posixpath.basename(path) or "/",
        "type": kinds.get(stat.S_IFMT(status.st_mode), "unknown"),
        "path": path,
        "size": status.st_size,
        "mode": stat.S_IMODE(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
        "atime": status.st_atime,
        "mtime": status.st_mtime,
        "ctime": status.st_ctime,
    }
    return entry if target is None else {**entry, "target": target}


def _new_name() -> str:
    return secrets.token_hex(16)
