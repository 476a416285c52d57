"""The server's account of its volumes: one table in the server's database, one row for each."""

import dataclasses
import secrets
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SCHEMA = """
CREATE TABLE IF NOT EXISTS volumes (
    volume_id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    size_mb INTEGER NOT NULL,
    created_at REAL NOT NULL,
    hidden INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS volume_tokens (secret BLOB NOT NULL) STRICT;
"""


@dataclass(frozen=True)
class Volume:
    """A volume.

    volume_id: a UUID, also the name of its file. size_mb: its limit, in MiB; 0: none. hidden: not made yet,
    or deleted and kept only for the sandboxes that have it mounted.
    """

    volume_id: str
    owner: str
    name: str
    size_mb: int
    created_at: float
    hidden: bool = False


_COLUMNS = tuple(field.name for field in dataclasses.fields(Volume))


class VolumeStore:
    """The table. Calls are short and block: they are made from threads, one at a time."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, isolation_level=None, timeout=10, check_same_thread=False)
        self._database.executescript(_SCHEMA)

    def secret(self) -> bytes:
        """What volumes' tokens are made with, the same over restarts."""
        row = self._database.execute("SELECT secret FROM volume_tokens").fetchone()
        if row is None:
            row = (secrets.token_bytes(32),)
            self._database.execute("INSERT INTO volume_tokens VALUES (?)", row)
        return bytes(row[0])

    def all(self) -> list[Volume]:
        """Every volume, oldest first."""
        rows = self._database.execute(
            f"SELECT {', '.join(_COLUMNS)} FROM volumes ORDER BY created_at"  # noqa: S608 - our own names
        )
        return [_from_row(row) for row in rows]

    def put(self, volume: Volume) -> None:
        """Keep `volume`, in place of an earlier state of it."""
        values = [*dataclasses.astuple(volume)[:-1], int(volume.hidden)]
        self._database.execute("INSERT OR REPLACE INTO volumes VALUES (?, ?, ?, ?, ?, ?)", values)

    def remove(self, volume_id: str) -> None:
        """Forget a volume."""
        self._database.execute("DELETE FROM volumes WHERE volume_id = ?", (volume_id,))

    def close(self) -> None:
        """Close the file."""
        self._database.close()


def _from_row(row: tuple[Any, ...]) -> Volume:
    columns = dict(zip(_COLUMNS, row, strict=True))
    return Volume(**{**columns, "hidden": bool(columns["hidden"])})
