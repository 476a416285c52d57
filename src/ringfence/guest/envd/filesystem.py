"""``filesystem.Filesystem`` without the watching: files and directories, over Connect.

The work is done as the sandbox's root, and what is created is handed over to the user, as E2B does.
"""

import asyncio
import errno
import os
import posixpath
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from starlette.routing import Route

from ringfence.guest.apart import run_apart
from ringfence.guest.config import GuestConfig
from ringfence.guest.connect import Call, ConnectError, Message, UnaryEndpoint
from ringfence.guest.envd import fields
from ringfence.guest.envd.entries import Entries
from ringfence.guest.envd.paths import PathError, ensure_dirs, printable, resolve
from ringfence.guest.envd.removal import remove_tree
from ringfence.guest.envd.users import User, UserDatabase, call_user

MAX_ENTRIES = 50_000
"""The most entries of one listing; a deeper look must go through the directories one by one."""

_SLICE = 200  # entries between two chances for other requests


@contextmanager
def os_errors(doing: str) -> Iterator[None]:
    """Turn `OSError` and `PathError` into the `ConnectError` that fits; `doing` says what failed."""
    try:
        yield
    except PathError as error:
        raise ConnectError("invalid_argument", str(error)) from None
    except FileNotFoundError as error:
        raise ConnectError("not_found", f"{doing}: {_reason(error)}") from None
    except NotADirectoryError as error:
        raise ConnectError("invalid_argument", f"{doing}: {_reason(error)}") from None
    except OSError as error:
        code = "internal"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            code = "resource_exhausted"
        elif error.errno == errno.ELOOP:
            code = "failed_precondition"
        elif error.errno == errno.ENAMETOOLONG:
            code = "invalid_argument"
        raise ConnectError(code, f"{doing}: {_reason(error)}") from None


def _reason(error: OSError) -> str:
    if error.strerror is None:
        return str(error)
    name = "" if error.filename is None else printable(os.fsdecode(error.filename)) + ": "
    return name + error.strerror.lower()


class FilesystemService:
    """Files and directories."""

    def __init__(self, config: GuestConfig, users: UserDatabase, entries: Entries) -> None:
        """Act for the users in `users`."""
        self._config = config
        self._users = users
        self._entries = entries

    def routes(self) -> list[Route]:
        """The service's methods as routes."""
        methods = {
            "Stat": self.stat,
            "ListDir": self.list_dir,
            "MakeDir": self.make_dir,
            "Remove": self.remove,
            "Move": self.move,
        }
        prefix = "/filesystem.Filesystem/"
        return [Route(prefix + name, UnaryEndpoint(handler)) for name, handler in methods.items()]

    def _user(self, call: Call) -> User:
        return call_user(self._users, self._config.default_user, call.headers.get("authorization"))

    def _path(self, request: Message, name: str, user: User) -> str:
        with os_errors("resolving the path"):
            return resolve(fields.text(request, name), user, self._config.default_workdir)

    async def stat(self, request: Message, call: Call) -> Message:
        """Describe one file, directory or link."""
        path = self._path(request, "path", self._user(call))
        with os_errors("file not found"):
            try:
                return {"entry": self._entries.describe(path)}
            except NotADirectoryError as error:  # something above it is a file: then it does not exist
                raise FileNotFoundError(error.errno, error.strerror, path) from None

    async def make_dir(self, request: Message, call: Call) -> Message:
        """Make a directory and its parents."""
        user = self._user(call)
        path = self._path(request, "path", user)
        with os_errors("error creating directory"):
            _require_absent(path)
            ensure_dirs(path, user)
            return {"entry": self._entries.describe(path)}

    async def remove(self, request: Message, call: Call) -> Message:
        """Remove a file, or a directory with everything in it; nothing there is success."""
        path = self._path(request, "path", self._user(call))
        with os_errors("error removing file or directory"), suppress(FileNotFoundError):
            if stat.S_ISDIR(os.lstat(path).st_mode):
                await run_apart(partial(remove_tree, path))
            else:
                os.unlink(path)  # noqa: PTH108
        return {}

    async def move(self, request: Message, call: Call) -> Message:
        """Rename, making the destination's parents."""
        user = self._user(call)
        source = self._path(request, "source", user)
        destination = self._path(request, "destination", user)
        with os_errors("error renaming"):
            os.lstat(source)
            ensure_dirs(posixpath.dirname(destination), user)
            try:
                os.rename(source, destination)  # noqa: PTH104
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                await run_apart(partial(_move, source, destination))
            return {"entry": self._entries.describe(destination)}

    async def list_dir(self, request: Message, call: Call) -> Message:
        """List a directory to a depth: sorted by name, what is in a directory right after it."""
        path = self._path(request, "path", self._user(call))
        depth = fields.integer(request, "depth") or 1
        with os_errors("directory not found"):
            _require_directory(path)
            return {"entries": await self._list(path, depth)}

    async def _list(self, path: str, depth: int) -> list[Message]:
        found: list[Message] = []
        for child in _walk(path, depth):
            with suppress(OSError):  # removed while we looked, or below what a path can name
                found.append(self._entries.describe(child))
            if len(found) > MAX_ENTRIES:
                message = f"more than {MAX_ENTRIES} entries in {printable(path)}: list with less depth"
                raise ConnectError("resource_exhausted", message)
            if len(found) % _SLICE == 0:
                await asyncio.sleep(0)
        return found


def _move(source: str, destination: str) -> None:
    shutil.move(source, destination)


def _require_absent(path: str) -> None:
    if Path(path).is_dir():
        raise ConnectError("already_exists", f"directory already exists: {printable(path)}")
    if os.path.lexists(path):
        message = f"path already exists but it is not a directory: {printable(path)}"
        raise ConnectError("invalid_argument", message)


def _require_directory(path: str) -> None:
    os.path.realpath(path, strict=True)  # tells a loop from a missing target
    if not Path(path).is_dir():
        raise ConnectError("invalid_argument", f"path is not a directory: {printable(path)}")


def _walk(path: str, depth: int) -> Iterator[str]:
    """The paths below `path`, to `depth`. Links are not followed. Raises `OSError` for `path` itself only."""
    stack = [iter(_children(path))]
    while stack:
        child = next(stack[-1], None)
        if child is None:
            stack.pop()
            continue
        yield child[0]
        if child[1] and len(stack) < depth:
            with suppress(OSError):  # not readable, or gone meanwhile
                stack.append(iter(_children(child[0])))


def _children(path: str) -> list[tuple[str, bool]]:
    with os.scandir(path) as found:
        entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
    return [(posixpath.join(path, name), is_dir) for name, is_dir in sorted(entries)]
