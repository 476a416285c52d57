"""What is told about a file: type, size, mode, owner, and the metadata kept in its extended attributes."""

import errno
import os
import posixpath
import stat
import time
from collections.abc import Mapping

from ringfence.guest.connect import Message
from ringfence.guest.envd.paths import printable
from ringfence.guest.envd.users import UserDatabase

METADATA_PREFIX = "user.e2b."
_MAX_METADATA_KEYS = 256
_UNSUPPORTED = {errno.ENOTSUP, errno.EPERM, errno.ENODATA}

# The letters of Go's ``os.FileMode.String``, which E2B's clients expect, in Go's order.
_TYPE_LETTERS = {
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "L",
    stat.S_IFBLK: "D",
    stat.S_IFCHR: "Dc",
    stat.S_IFIFO: "p",
    stat.S_IFSOCK: "S",
}


def permissions(mode: int) -> str:
    """`mode` as Go writes it: ``-rw-r--r--``, ``drwxr-xr-x``, ``dtrwxrwxrwx`` for /tmp."""
    letters = _TYPE_LETTERS.get(stat.S_IFMT(mode), "")
    letters = letters[:1] + ("u" if mode & stat.S_ISUID else "") + ("g" if mode & stat.S_ISGID else "")
    letters += "c" if stat.S_ISCHR(mode) else ""
    letters += "t" if mode & stat.S_ISVTX else ""
    bits = "".join(letter if mode & (0o400 >> place) else "-" for place, letter in enumerate("rwxrwxrwx"))
    return (letters or "-") + bits


def file_type(mode: int) -> str:
    """The protocol's name for the type in `mode`."""
    if stat.S_ISREG(mode):
        return "FILE_TYPE_FILE"
    return "FILE_TYPE_DIRECTORY" if stat.S_ISDIR(mode) else "FILE_TYPE_UNSPECIFIED"


def timestamp(nanoseconds: int) -> str:
    """Nanoseconds since the epoch in RFC 3339, UTC."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest:09d}Z"


def read_metadata(path: str) -> dict[str, str]:
    """The metadata of a file; empty where there is none or the file system has no attributes."""
    found: dict[str, str] = {}
    try:
        names = [name for name in os.listxattr(path) if name.startswith(METADATA_PREFIX)]
        for name in names[:_MAX_METADATA_KEYS]:
            key = printable(name.removeprefix(METADATA_PREFIX))
            found[key] = os.getxattr(path, name).decode("utf-8", "replace")
    except OSError:
        pass  # gone meanwhile, not permitted, not supported: then nothing is known
    return found


def write_metadata(fd: int, metadata: Mapping[str, str]) -> None:
    """Make `metadata` the whole metadata of the open file. Raises `OSError` where it cannot be kept."""
    try:
        old = [name for name in os.listxattr(fd) if name.startswith(METADATA_PREFIX)]
    except OSError as error:
        if error.errno not in _UNSUPPORTED or metadata:
            raise
        return
    for name in old:
        if name.removeprefix(METADATA_PREFIX) not in metadata:
            os.removexattr(fd, name)
    for key, value in metadata.items():
        os.setxattr(fd, METADATA_PREFIX + key, value.encode())


class Entries:
    """Describes files in the protocol's terms."""

    def __init__(self, users: UserDatabase) -> None:
        """Name owners from `users`."""
        self._users = users

    def describe(self, path: str) -> Message:
        """The ``EntryInfo`` of `path`. Raises `OSError`.

        Of a symbolic link, type and mode are the target's, all else is the link's own.
        """
        status = os.lstat(path)
        kind, mode = file_type(status.st_mode), status.st_mode & 0o777
        entry: Message = {}
        if stat.S_ISLNK(status.st_mode):
            entry["isSymlink"] = True
            target = _target(path)
            if target is not None:
                entry["symlinkTarget"] = printable(target[0])
                kind, mode = file_type(target[1]), target[1] & 0o777
        elif stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
            entry["metadata"] = read_metadata(path)
        return entry | {
            "name": printable(posixpath.basename(path.rstrip("/")) or "/"),
            "type": kind,
            "path": printable(path),
            "size": str(status.st_size),
            "mode": mode,
            "permissions": permissions(status.st_mode),
            "owner": self._users.user_name(status.st_uid),
            "group": self._users.group_name(status.st_gid),
            "modifiedTime": timestamp(status.st_mtime_ns),
        }


def _target(path: str) -> tuple[str, int] | None:
    """Where a link leads and the mode there; None when it leads nowhere."""
    try:
        resolved = os.path.realpath(path, strict=True)
        return resolved, os.lstat(resolved).st_mode
    except OSError:
        return None
