"""The directory of an engine's sockets: short, private, and swept when an engine died without cleaning up."""

import os
import re
import shutil
import tempfile
from pathlib import Path

from ringfence.engine.isolation.cgroup_base import dead_engines, engine_group_name, is_alive

_ENGINES_DIRECTORY = re.compile(r"ringfence-\d+-\d+")
_LONGEST_PARENT = 40
"""Bytes that leave room for a socket's name: a Unix socket's path has 107 at most (unix(7))."""


def make_runtime_dir(path: Path | None) -> Path:
    """Make the runtime directory: `path`, or one of our own in a short place.

    Our own ones are named after their engine's process, as its cgroups are; those of dead engines are removed
    first.
    """
    if path is not None:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path
    parent = _parent()
    for name in dead_engines(str(parent), is_alive):
        shutil.rmtree(parent / name, ignore_errors=True)
    base = parent / engine_group_name()
    base.mkdir(mode=0o700, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="", dir=base))


def remove_runtime_dir(path: Path) -> None:
    """Remove a runtime directory, and the engine's own directory around it when nothing else is in it."""
    shutil.rmtree(path, ignore_errors=True)
    if _ENGINES_DIRECTORY.fullmatch(path.parent.name):
        try:
            path.parent.rmdir()
        except OSError:  # another engine of this process still uses it
            return


def _parent() -> Path:
    candidates = ["/run"] if os.geteuid() == 0 else [os.environ.get("XDG_RUNTIME_DIR", "")]
    for candidate in candidates:
        if candidate and len(candidate) <= _LONGEST_PARENT:
            directory = Path(candidate)
            if directory.is_dir() and os.access(directory, os.W_OK):
                return directory
    return Path("/tmp")  # noqa: S108 - the directory made in it is private
