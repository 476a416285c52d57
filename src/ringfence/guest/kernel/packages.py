"""Which of the preloaded packages were changed on disk since, so that a fork would run the old ones."""

import importlib.metadata
import os
import sys
from collections.abc import Mapping
from types import ModuleType


class Packages:
    """A picture of the files behind the packages that were imported before the fork."""

    def __init__(self) -> None:
        self._stamps: dict[str, tuple[str, tuple[int, int] | None]] = {}
        self._versions: dict[str, str] = {}
        self._told: set[str] = set()

    def record(self) -> None:
        """Take the picture: every top-level package that is loaded now, from outside the standard library."""
        owners = importlib.metadata.packages_distributions()
        for name, module in list(sys.modules.items()):
            path = _file(module)
            if "." in name or path is None or name not in owners:
                continue
            self._stamps[name] = (path, _stamp(path))
            self._versions[name] = _version(owners[name][0])

    def changed(self) -> list[str]:
        """Names of the packages whose files are no longer those that were imported."""
        return [name for name, (path, stamp) in self._stamps.items() if _stamp(path) != stamp]

    def changes(self) -> list[str]:
        """A sentence for each change that was not told before: what was loaded, what is there now."""
        fresh = [name for name in self.changed() if name not in self._told]
        self._told.update(fresh)
        if not fresh:
            return []
        owners = importlib.metadata.packages_distributions()
        return [self._sentence(name, owners) for name in fresh]

    def _sentence(self, name: str, owners: Mapping[str, list[str]]) -> str:
        now = _version(owners[name][0]) if name in owners else None
        was = self._versions.get(name, "?")
        return f"{name} {was} was removed" if now is None else f"{name} was changed from {was} to {now}"


def _file(module: ModuleType) -> str | None:
    path = getattr(module, "__file__", None)
    return path if isinstance(path, str) else None


def _stamp(path: str) -> tuple[int, int] | None:
    """Time of change and size. Not the inode: an overlay may number the same file differently in another
    mount.
    """
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "?"
