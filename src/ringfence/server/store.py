"""What the server keeps on disk: one SQLite file in the data directory, readable by its owner only."""

import os
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from ringfence.core.errors import ConfigurationError

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE api_keys (
    digest TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    created_at REAL NOT NULL
) STRICT;
"""


@dataclass(frozen=True)
class StoredKey:
    """An API key as it is kept: never the key, only its SHA-256 in hex, and whose it is."""

    digest: str
    owner: str
    name: str
    created_at: float


class Store:
    """The server's database. Calls are short and block; use them at start-up and from threads only."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Made by hand first, so that the file is private from its first moment.
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        self._database = sqlite3.connect(path, isolation_level=None, timeout=10)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._migrate(path)

    def _migrate(self, path: Path) -> None:
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version > _SCHEMA_VERSION:
            raise ConfigurationError(
                f"{path} was written by a newer Ringfence (schema {version}, known is {_SCHEMA_VERSION}); "
                "upgrade Ringfence or choose another data directory"
            )
        if version == 0:
            self._database.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;")

    def add_key(self, digest: str, owner: str, name: str) -> None:
        """Keep a key's digest. A digest that is already there stays as it is."""
        self._database.execute(
            "INSERT OR IGNORE INTO api_keys (digest, owner, name, created_at) VALUES (?, ?, ?, ?)",
            (digest, owner, name, time.time()),
        )

    def keys(self) -> list[StoredKey]:
        """Every key, oldest first."""
        rows = self._database.execute(
            "SELECT digest, owner, name, created_at FROM api_keys ORDER BY created_at"
        )
        return [StoredKey(*row) for row in rows]

    def close(self) -> None:
        """Close the file. Nothing is lost without it."""
        self._database.close()
