"""The server's account of its snapshots: one table in the server's database, one row for each."""

import dataclasses
import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ringfence.engine.model import Isolation

_SCHEMA = """
CREATE TABLE IF NOT EXISTS snapshots (
    snapshot_id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    template TEXT NOT NULL,
    template_id TEXT NOT NULL,
    parents TEXT NOT NULL,
    name TEXT,
    sandbox_id TEXT NOT NULL,
    created_at REAL NOT NULL,
    size INTEGER NOT NULL,
    hidden INTEGER NOT NULL,
    isolation TEXT NOT NULL DEFAULT 'process'
) STRICT;
"""


@dataclass(frozen=True)
class Snapshot:
    """A copy of what a sandbox had written.

    snapshot_id: also the name of its directory. template, template_id: what it is to be laid upon.
    parents: the snapshots below it, topmost first. name: ``name:tag``, when it was given one.
    size: bytes on disk, of its own layer only. hidden: not to be listed or started from (any more), and kept
    only for those that lie on it. isolation: the tier that its sandbox had, and that those it is started as
    have at least.
    """

    snapshot_id: str
    owner: str
    template: str
    template_id: str
    parents: tuple[str, ...]
    name: str | None
    sandbox_id: str
    created_at: float
    size: int
    hidden: bool = False
    isolation: Isolation = "process"

    @property
    def chain(self) -> tuple[str, ...]:
        """Itself and the snapshots below it, topmost first."""
        return (self.snapshot_id, *self.parents)

    @property
    def wire_id(self) -> str:
        """The id that clients see."""
        return self.name or f"{self.snapshot_id}:default"

    def described(self) -> dict[str, object]:
        """How it is shown on the wire (``SnapshotInfo``)."""
        return {"snapshotID": self.wire_id, "names": [self.name] if self.name else []}


_COLUMNS = tuple(field.name for field in dataclasses.fields(Snapshot))


class SnapshotStore:
    """The table. Calls are short and block: they are made from threads, one at a time."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, isolation_level=None, timeout=10, check_same_thread=False)
        self._database.executescript(_SCHEMA)
        columns = {row[1] for row in self._database.execute("PRAGMA table_info(snapshots)")}
        if "isolation" not in columns:  # of an earlier version
            self._database.execute(
                "ALTER TABLE snapshots ADD COLUMN isolation TEXT NOT NULL DEFAULT 'process'"
            )

    def all(self) -> list[Snapshot]:
        """Every snapshot, oldest first."""
        rows = self._database.execute(
            f"SELECT {', '.join(_COLUMNS)} FROM snapshots ORDER BY created_at"  # noqa: S608 - our own names
        )
        return [_from_row(row) for row in rows]

    def put(self, snapshot: Snapshot) -> None:
        """Keep `snapshot`, in place of an earlier state of it."""
        self._database.execute(
            "INSERT OR REPLACE INTO snapshots VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                snapshot.snapshot_id, snapshot.owner, snapshot.template, snapshot.template_id,
                json.dumps(snapshot.parents), snapshot.name, snapshot.sandbox_id, snapshot.created_at,
                snapshot.size, int(snapshot.hidden), snapshot.isolation,
            ),
        )  # fmt: skip

    def remove(self, snapshot_id: str) -> None:
        """Forget a snapshot."""
        self._database.execute("DELETE FROM snapshots WHERE snapshot_id = ?", (snapshot_id,))

    def close(self) -> None:
        """Close the file."""
        self._database.close()


def _from_row(row: tuple[Any, ...]) -> Snapshot:
    columns = dict(zip(_COLUMNS, row, strict=True))
    return Snapshot(**{**columns, "parents": tuple(json.loads(row[4])), "hidden": bool(row[9])})
