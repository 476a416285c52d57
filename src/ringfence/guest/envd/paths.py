"""What a path in a request means, and making directories that belong to the user.

Nothing here confines a path: the guest lives inside the sandbox, so a hostile one can only hurt its owner.
"""

import os
import posixpath
from pathlib import Path

from ringfence.guest.envd.users import User


class PathError(ValueError):
    """A path that cannot be meant: ``~name``, or one with a NUL in it."""


def resolve(path: str, user: User, workdir: str | None) -> str:
    """The absolute form of `path` for `user`.

    Empty is `workdir` (or home), ``~`` is home, relative paths start at home, absolute ones are kept.
    Symbolic links are not followed. Raises `PathError`.
    """
    if "\0" in path:
        raise PathError("path contains a NUL character")
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise PathError("path is not valid Unicode") from None
    path = path or workdir or ""
    if path.startswith("~"):
        if path[1:2] not in ("", "/"):
            raise PathError(f"failed to expand path '{path}': cannot expand user-specific home dir")
        path = posixpath.join(user.home, path[1:].lstrip("/"))
    elif path.startswith("/"):
        return path
    return posixpath.normpath(posixpath.join("/", user.home, path))


def printable(path: str) -> str:
    """`path` for a JSON answer: bytes that are not UTF-8 become U+FFFD (protobuf strings must be valid)."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def ensure_dirs(path: str, user: User) -> None:
    """Make `path` and its missing parents, mode 0755, owned by `user`.

    Raises `NotADirectoryError` when something on the way is no directory, `OSError` otherwise.
    """
    missing: list[str] = []
    current = path
    while not Path(current).is_dir():
        if Path(current).exists():
            raise NotADirectoryError(f"path is a file: {current}")
        missing.append(current)
        parent = posixpath.dirname(current)
        if parent == current:
            break
        current = parent
    for directory in reversed(missing):
        try:
            Path(directory).mkdir(mode=0o755)
        except FileExistsError:
            continue  # made by somebody else in between; then it is theirs
        os.chown(directory, user.uid, user.gid)
