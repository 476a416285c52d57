"""Files of the host that tools may touch: below directories the user allowed, and nothing hidden.

The model names these paths, and what the model reads may come from anywhere. So: fail closed.
"""

import contextlib
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from mcp.server.mcpserver.exceptions import ToolError

MAX_UPLOAD = 2 * 1024**3


def default_roots() -> tuple[Path, ...]:
    """The working directory, unless it is so wide that it would give everything away (``/``, the home,
    above it), or one of them is not known.
    """
    try:
        cwd, home = Path.cwd().resolve(), Path.home().resolve()
    except (OSError, RuntimeError):
        return ()
    if cwd == cwd.parent or cwd == home or cwd in home.parents:
        return ()
    return (cwd,)


class HostFiles:
    """The allowed directories. Paths may be absolute, or relative to the first of them."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = tuple(root.resolve() for root in roots)

    def to_read(self, given: str) -> Path:
        """The real path of an existing file to read."""
        path = self._inside(given)
        if not path.is_file():
            raise ToolError(f"{given} is not a file on this computer.")
        if path.stat().st_size > MAX_UPLOAD:
            raise ToolError(f"{given} is larger than {MAX_UPLOAD // 1024**3} GiB.")
        return path

    def to_write(self, given: str, *, overwrite: bool) -> Path:
        """The real path of a file to write; its directory exists."""
        path = self._inside(given)
        if path.is_dir():
            raise ToolError(f"{given} is a directory; name a file in it.")
        if path.exists() and not overwrite:
            raise ToolError(f"{given} exists; give another name, or overwrite=true to replace it.")
        if not path.parent.is_dir():
            raise ToolError(f"The directory of {given} does not exist.")
        return path

    def _inside(self, given: str) -> Path:
        if not self.roots:
            raise ToolError(
                "No directory of this computer is open to tools. Set RINGFENCE_MCP_ROOTS for the "
                "server to the "
                "directories (separated by ':') that may be read and written."
            )
        path = self._resolved(given)
        inside = [path.relative_to(root).parts for root in self.roots if path.is_relative_to(root)]
        hidden = [[part for part in parts if part.startswith(".")] for parts in inside]
        if not all(hidden):
            return path
        if inside:
            raise ToolError(f"{given}: hidden files and directories ({hidden[0][0]}) are not open to tools.")
        allowed = ", ".join(str(root) for root in self.roots)
        raise ToolError(
            f"{given} is outside the directories open to tools ({allowed}); see RINGFENCE_MCP_ROOTS."
        )

    def _resolved(self, given: str) -> Path:
        try:
            return (self.roots[0] / Path(given).expanduser()).resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise ToolError(f"{given[:200]!r} is no path of a file on this computer: {error}") from error


@contextlib.contextmanager
def new_file(path: Path, *, overwrite: bool) -> Iterator[BinaryIO]:
    """A file that is put in place whole when the context ends well, and not at all otherwise.

    It never writes through a symbolic link. `FileExistsError` when `path` appeared meanwhile and is not to
    be replaced.
    """
    part = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}")
    try:
        with part.open("xb") as file:
            yield file
        if overwrite:
            part.replace(path)
        else:
            path.hardlink_to(part)
    finally:
        part.unlink(missing_ok=True)
