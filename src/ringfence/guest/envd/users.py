"""Users and groups of the sandbox, read from its own files.

The C library's lookups (`pwd`, `grp`) are not used: they load name-service plug-ins from the sandbox's file
system, which belongs to the sandbox's user, into PID 1.
"""

import base64
import binascii
import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from ringfence.guest.connect import ConnectError

_MAX_FILE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class User:
    """Who a process runs as and who owns what is created. `groups` are the supplementary ones and `gid`."""

    name: str
    uid: int
    gid: int
    home: str
    shell: str
    groups: tuple[int, ...] = ()


class Table:
    """One colon-separated file, parsed again when it changes on disk."""

    def __init__(self, path: Path) -> None:
        """Read `path` on demand; one that is missing or unreadable is empty."""
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._rows: list[list[str]] = []

    def rows(self) -> list[list[str]]:
        """The fields of each line."""
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp != self._stamp:
                lines = _read(self._path).decode("utf-8", "surrogateescape").split("\n")
                self._rows = [line.split(":") for line in lines if ":" in line and not line.startswith("#")]
                self._stamp = stamp
        except OSError:
            self._rows, self._stamp = [], None
        return self._rows


def _read(path: Path) -> bytes:
    """What is in `path`. It belongs to the sandbox, which may have put a pipe there that never ends."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return file.read(_MAX_FILE_BYTES)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else None


class UserDatabase:
    """The sandbox's users.

    With `single_id` (an engine without root) every user is the one id that exists: processes and files of
    ``root`` are then the current user's too.
    """

    def __init__(
        self,
        *,
        single_id: bool = False,
        passwd: Path = Path("/etc/passwd"),
        group: Path = Path("/etc/group"),
    ) -> None:
        """Read users from `passwd` and `group`, files in the usual format."""
        self._single_id = single_id
        self._passwd = Table(passwd)
        self._group = Table(group)

    @property
    def single_id(self) -> bool:
        """Whether there is only one id, so that switching to another user is not possible."""
        return self._single_id

    def find(self, name: str) -> User | None:
        """The user called `name`, or None."""
        for row in self._passwd.rows():
            if row[0] == name and len(row) >= 7:
                return self._user(row)
        return None

    def _user(self, row: list[str]) -> User | None:
        uid, gid = _number(row[2]), _number(row[3])
        if uid is None or gid is None:
            return None
        home, shell = row[5] or "/", row[6] or "/bin/sh"
        if self._single_id:
            return User(row[0], os.geteuid(), os.getegid(), home, shell)
        return User(row[0], uid, gid, home, shell, self._groups(row[0], gid))

    def _groups(self, name: str, gid: int) -> tuple[int, ...]:
        found = [gid]
        for row in self._group.rows():
            number = _number(row[2]) if len(row) >= 4 else None
            if number is not None and number != gid and name in row[3].split(","):
                found.append(number)
        return tuple(found)

    def group_id(self, name: str) -> int | None:
        """The number of the group called `name` (or ``#number``), or None."""
        if name.startswith("#"):
            return _number(name[1:])
        return next((_number(row[2]) for row in self._group.rows() if row[0] == name and len(row) > 2), None)

    def is_member(self, user: User, group: str) -> bool:
        """Whether `user` belongs to the group called `group`."""
        for row in self._group.rows():
            if row[0] == group and len(row) >= 4:
                return user.name in row[3].split(",") or _number(row[2]) == user.gid
        return False

    def user_name(self, uid: int) -> str:
        """The name of the user `uid`, or the number."""
        return self._name(self._passwd, uid)

    def group_name(self, gid: int) -> str:
        """The name of the group `gid`, or the number."""
        return self._name(self._group, gid)

    def _name(self, table: Table, number: int) -> str:
        wanted = str(number)
        return next((row[0] for row in table.rows() if len(row) > 2 and row[2] == wanted), wanted)


def basic_user(authorization: str | None) -> str | None:
    """The user named by an ``Authorization: Basic`` header (the password is not looked at), or None."""
    if authorization is None:
        return None
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        decoded = base64.b64decode(encoded.strip(), validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        return None
    name, colon, _ = decoded.partition(":")
    return name if colon else None


def call_user(users: UserDatabase, default: str, authorization: str | None) -> User:
    """The user an RPC acts for: the one of its Basic header, else `default`.

    Raises `ConnectError` with ``unauthenticated`` for a name that does not exist.
    """
    name = basic_user(authorization)
    user = users.find(default if name is None else name)
    if user is None:
        kind = "default user" if name is None else "username"
        raise ConnectError("unauthenticated", f"invalid {kind}: '{default if name is None else name}'")
    return user
