"""Copying a sandbox's upper layers to disk and removing such copies; it runs in short-lived children.

A hostile tree is copied as what it is: names are used relative to open directories, links are never followed,
and nothing of it is interpreted. Overlay's own marks (whiteouts, which are character devices 0:0, and
``user.overlay.*`` attributes) are kept, so the copy is a layer again.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SOURCE_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOATIME
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LINKS = ".links"
_CHUNK = 1 << 30


@dataclass
class TreeCopier:
    """Copies directories to below `target`, an open directory. `written` is bytes, `entries` inodes."""

    target: int
    written: int = 0
    entries: int = 0
    _links: set[tuple[int, int]] = field(default_factory=set)
    _links_fd: int = -1

    def copy(self, source: int, name: str) -> None:
        """Copy the open directory `source` to `name` below the target, with everything in it."""
        os.mkdir(_LINKS, 0o700, dir_fd=self.target)
        self._links_fd = os.open(_LINKS, _DIRECTORY, dir_fd=self.target)
        try:
            self._copy_all(os.dup(source), name)
        finally:
            for link in os.listdir(self._links_fd):
                os.unlink(link, dir_fd=self._links_fd)
            os.close(self._links_fd)
            os.rmdir(_LINKS, dir_fd=self.target)
            self._links.clear()

    def _copy_all(self, source: int, name: str) -> None:
        # Directories are open from their first entry to their last: their times are set when they are done.
        stack = [self._enter(source, name, self.target)]
        while stack:
            source, copy, rest = stack[-1]
            name_of_next = next(rest, None)
            if name_of_next is None:
                stack.pop()
                self._leave(source, copy)
                continue
            status = os.stat(name_of_next, dir_fd=source, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                below = os.open(name_of_next, _DIRECTORY, dir_fd=source)
                stack.append(self._enter(below, name_of_next, copy))
            else:
                self._copy_entry(source, copy, name_of_next, status)

    def _enter(self, source: int, name: str, parent: int) -> tuple[int, int, Iterator[str]]:
        self.entries += 1
        os.mkdir(name, 0o700, dir_fd=parent)
        return source, os.open(name, _DIRECTORY, dir_fd=parent), iter(os.listdir(source))

    @staticmethod
    def _leave(source: int, copy: int) -> None:
        _copy_attributes(source, copy, os.fstat(source))
        os.close(source)
        os.close(copy)

    def _copy_entry(self, source: int, copy: int, name: str, status: os.stat_result) -> None:
        self.entries += 1
        key = (status.st_dev, status.st_ino)
        if status.st_nlink > 1 and key in self._links:
            os.link(f"{key[1]}", name, src_dir_fd=self._links_fd, dst_dir_fd=copy, follow_symlinks=False)
            return
        if stat.S_ISREG(status.st_mode):
            self._copy_file(source, copy, name)
        else:
            _copy_special(source, copy, name, status)
        if status.st_nlink > 1:
            os.link(name, f"{key[1]}", src_dir_fd=copy, dst_dir_fd=self._links_fd, follow_symlinks=False)
            self._links.add(key)

    def _copy_file(self, source: int, copy: int, name: str) -> None:
        reader = os.open(name, _SOURCE_FILE, dir_fd=source)
        try:
            writer = os.open(name, _NEW_FILE, 0o600, dir_fd=copy)
            try:
                status = os.fstat(reader)
                self._copy_data(reader, writer, status.st_size)
                _copy_attributes(reader, writer, status)
            finally:
                os.close(writer)
        finally:
            os.close(reader)

    def _copy_data(self, reader: int, writer: int, size: int) -> None:
        """Copy what is there, and leave holes as holes: a sparse file may be larger than any disk."""
        os.ftruncate(writer, size)
        end = 0
        while end < size:
            try:
                start = os.lseek(reader, end, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return  # nothing but a hole is left
                raise
            end = os.lseek(reader, start, os.SEEK_HOLE)
            os.lseek(writer, start, os.SEEK_SET)
            while start < end:
                sent = os.sendfile(writer, reader, start, min(end - start, _CHUNK))
                if sent == 0:
                    return
                start += sent
                self.written += sent


def _copy_special(source: int, copy: int, name: str, status: os.stat_result) -> None:
    """A symbolic link, a pipe, a socket, or a whiteout."""
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=copy)
    else:
        if stat.S_ISBLK(status.st_mode) or (stat.S_ISCHR(status.st_mode) and status.st_rdev != 0):
            raise OSError(errno.EINVAL, "a device is in the layer")
        os.mknod(name, status.st_mode, status.st_rdev, dir_fd=copy)
    os.chown(name, status.st_uid, status.st_gid, dir_fd=copy, follow_symlinks=False)
    times = (status.st_atime_ns, status.st_mtime_ns)
    os.utime(name, ns=times, dir_fd=copy, follow_symlinks=False)


def _copy_attributes(source: int, copy: int, status: os.stat_result) -> None:
    for name in os.listxattr(source):
        with contextlib.suppress(FileNotFoundError):
            os.setxattr(copy, name, os.getxattr(source, name))
    os.fchown(copy, status.st_uid, status.st_gid)
    os.fchmod(copy, stat.S_IMODE(status.st_mode))
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))


def remove(path: str, dir_fd: int | None = None) -> None:
    """Remove a directory with everything in it, however deep it is; it may be gone already.

    `path` is relative to the open directory `dir_fd`, when there is one. Directories in it are first moved to
    the top, so that the depth costs neither stack nor descriptors.
    """
    try:
        top = os.open(path, _DIRECTORY, dir_fd=dir_fd)
    except FileNotFoundError:
        return
    number = 0
    try:
        pending = [name for name in os.listdir(top) if not _unlink(top, name)]
        while pending:
            name = pending.pop()
            os.chmod(name, 0o700, dir_fd=top)
            directory = os.open(name, _DIRECTORY, dir_fd=top)
            for entry in os.listdir(directory):
                if not _unlink(directory, entry):
                    number += 1
                    moved = f".removing-{number}"
                    os.chmod(entry, 0o700, dir_fd=directory)
                    os.rename(entry, moved, src_dir_fd=directory, dst_dir_fd=top)
                    pending.append(moved)
            os.close(directory)
            os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(path, dir_fd=dir_fd)


def _unlink(directory: int, name: str) -> bool:
    """Remove one entry; False when it is a directory."""
    try:
        os.unlink(name, dir_fd=directory)
    except (IsADirectoryError, PermissionError):
        return False
    return True
