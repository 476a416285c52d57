"""A directory tree as a value: what is to be where, whose, and with which mode; written out in one go."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ringfence.engine.templates.cache import digest


@dataclass(frozen=True)
class Node:
    """One entry. `content` is a file's bytes, a link's target, or None for a directory. `owner` is uid,
    and gid unless `group` says otherwise.
    """

    kind: str
    mode: int
    owner: int
    content: bytes = b""
    group: int | None = None


class Plan:
    """Entries by absolute path inside; a parent that was not named becomes a directory of root's with mode
    755.
    """

    def __init__(self) -> None:
        self._nodes: dict[PurePosixPath, Node] = {PurePosixPath("/"): Node("directory", 0o755, 0)}

    def directory(self, path: str, mode: int = 0o755, owner: int = 0, group: int | None = None) -> None:
        """Plan a directory."""
        self._put(path, Node("directory", mode, owner, group=group))

    def file(self, path: str, content: bytes, mode: int = 0o644, owner: int = 0) -> None:
        """Plan a regular file."""
        self._put(path, Node("file", mode, owner, content))

    def link(self, path: str, target: str) -> None:
        """Plan a symbolic link; `target` is taken as it stands."""
        self._put(path, Node("link", 0o777, 0, os.fsencode(target)))

    def has(self, path: str) -> bool:
        """Whether something is planned at `path`."""
        return PurePosixPath(path) in self._nodes

    def key(self) -> str:
        """Equal for equal trees written by the same kind of user; only root can give files to others."""
        return digest(os.geteuid() == 0, *(f"{path} {self._nodes[path]}" for path in sorted(self._nodes)))

    def write(self, root: Path) -> None:
        """Write the tree to `root`, which must not exist."""
        for path in sorted(self._nodes):
            node = self._nodes[path]
            place = root / path.relative_to("/")
            _WRITERS[node.kind](place, node)
            if os.geteuid() == 0:
                group = node.owner if node.group is None else node.group
                os.chown(place, node.owner, group, follow_symlinks=False)

    def _put(self, path: str, node: Node) -> None:
        place = PurePosixPath(path)
        for parent in place.parents:
            self._nodes.setdefault(parent, Node("directory", 0o755, 0))
        self._nodes[place] = node


def _write_directory(path: Path, node: Node) -> None:
    path.mkdir()
    path.chmod(node.mode)


def _write_file(path: Path, node: Node) -> None:
    path.write_bytes(node.content)
    path.chmod(node.mode)


def _write_link(path: Path, node: Node) -> None:
    path.symlink_to(os.fsdecode(node.content))


_WRITERS: dict[str, Callable[[Path, Node], None]] = {
    "directory": _write_directory,
    "file": _write_file,
    "link": _write_link,
}
