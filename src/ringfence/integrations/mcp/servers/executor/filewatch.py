"""Which files a call created or changed: the home directory's listing before and after."""

import asyncio
from dataclasses import dataclass, field
from datetime import datetime

import httpx
from e2b import SandboxException
from e2b.sandbox.filesystem.filesystem import EntryInfo, FileType
from e2b_code_interpreter import AsyncSandbox

HOME = "/home/user"
_TOO_MANY = 4000
_NAMED = 30


@dataclass
class Changes:
    """Paths (relative to the home directory) and sizes in bytes; `more` counts those that are not named."""

    created: dict[str, int] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)
    more: int = 0

    def as_dict(self) -> dict[str, object]:
        """For structured results; empty parts left out."""
        parts = {"created": self.created, "changed": self.changed, "deleted": self.deleted, "more": self.more}
        return {name: part for name, part in parts.items() if part}


class FileWatch:
    """Remembers a sandbox's home directory from call to call. Gives up where there are too many files to
    list.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, datetime]] | None = None
        self._depth = 3

    async def look(self, sandbox: AsyncSandbox) -> Changes:
        """What changed since the last look; nothing at the first."""
        current = await self._list(sandbox)
        known, self._known = self._known, current
        if current is None or known is None:
            return Changes()
        changes = Changes()
        for path, (size, modified) in current.items():
            if path not in known:
                changes.created[path] = size
            elif known[path] != (size, modified):
                changes.changed[path] = size
        changes.deleted = [path for path in known if path not in current]
        return _bounded(changes)

    async def _list(self, sandbox: AsyncSandbox) -> dict[str, tuple[int, datetime]] | None:
        if self._depth == 0:
            return None
        entries: list[EntryInfo] | None
        try:
            async with asyncio.timeout(5):
                entries = await sandbox.files.list(HOME, depth=self._depth)
        except TimeoutError:
            entries = None
        except (SandboxException, httpx.HTTPError):
            return None
        if entries is None or len(entries) > _TOO_MANY:
            # From now on look less deep; what was seen at another depth cannot be compared.
            self._depth -= 1
            return None
        files: dict[str, tuple[int, datetime]] = {}
        for entry in entries:
            name = entry.path.removeprefix(f"{HOME}/")
            hidden = any(part.startswith((".", "__pycache__")) for part in name.split("/"))
            if entry.type == FileType.FILE and not hidden:
                files[name] = (entry.size, entry.modified_time)
        return files


def _bounded(changes: Changes) -> Changes:
    room = _NAMED
    for part in (changes.created, changes.changed):
        for path in list(part)[room:]:
            del part[path]
            changes.more += 1
        room -= len(part)
    changes.more += len(changes.deleted[room:])
    del changes.deleted[room:]
    return changes
