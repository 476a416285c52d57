"""The table of secrets in the server's database."""

import dataclasses
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS secrets (
    secret_id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    sealed BLOB NOT NULL,
    metadata TEXT NOT NULL,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    UNIQUE (owner, name)
) STRICT;
"""


@dataclass(frozen=True)
class Secret:
    """A secret as it is kept. `sealed` is its encrypted value; `metadata` is JSON; times in epoch seconds."""

    secret_id: str
    owner: str
    name: str
    version: int
    sealed: bytes = field(repr=False)
    metadata: str
    created_at: float
    updated_at: float

    @property
    def belongs_to(self) -> str:
        """What its value is bound to."""
        return f"{self.owner}/{self.secret_id}/{self.version}"


_COLUMNS = ", ".join(one.name for one in dataclasses.fields(Secret))
_MARKS = ", ".join("?" for _ in dataclasses.fields(Secret))


class SecretStore:
    """The table. Calls are short and block: they are made from threads, one at a time."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, isolation_level=None, timeout=10, check_same_thread=False)
        self._database.execute("PRAGMA secure_delete = ON")
        self._database.executescript(_SCHEMA)

    def owned(self, owner: str) -> list[Secret]:
        """An owner's secrets, by name."""
        rows = self._database.execute(
            f"SELECT {_COLUMNS} FROM secrets WHERE owner = ? ORDER BY name",  # noqa: S608 - our own names
            (owner,),
        )
        return [Secret(*row) for row in rows]

    def all(self) -> list[Secret]:
        """The secrets of all owners."""
        rows = self._database.execute(f"SELECT {_COLUMNS} FROM secrets")  # noqa: S608 - our own names
        return [Secret(*row) for row in rows]

    def put(self, secret: Secret) -> None:
        """Keep a secret, instead of what is there under its id."""
        self._database.execute(
            f"INSERT OR REPLACE INTO secrets ({_COLUMNS}) VALUES ({_MARKS})",  # noqa: S608 - our own names
            tuple(getattr(secret, one.name) for one in dataclasses.fields(Secret)),
        )

    def remove(self, secret_id: str) -> None:
        """Delete a secret; its bytes are overwritten."""
        self._database.execute("DELETE FROM secrets WHERE secret_id = ?", (secret_id,))

    def close(self) -> None:
        """Close the file."""
        self._database.close()
