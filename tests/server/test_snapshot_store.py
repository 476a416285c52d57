"""The table of snapshots, and one that an earlier version made."""

import contextlib
import sqlite3
from pathlib import Path

from ringfence.server.snapshot_store import Snapshot, SnapshotStore

EARLIER = """CREATE TABLE snapshots (
    snapshot_id TEXT PRIMARY KEY, owner TEXT NOT NULL, template TEXT NOT NULL, template_id TEXT NOT NULL,
    parents TEXT NOT NULL, name TEXT, sandbox_id TEXT NOT NULL, created_at REAL NOT NULL,
    size INTEGER NOT NULL, hidden INTEGER NOT NULL
) STRICT"""


def test_what_is_put_is_found(tmp_path: Path) -> None:
    one = Snapshot("s1", "me", "base", "t", ("s0",), None, "b", 1.0, 7, hidden=True, isolation="gvisor")
    for _ in range(2):
        store = SnapshotStore(tmp_path / "db")
        store.put(one)
        assert store.all() == [one]
        store.close()


def test_snapshots_of_an_earlier_version_had_the_first_tier(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "db", isolation_level=None)) as database:
        database.execute(EARLIER)
        database.execute("INSERT INTO snapshots VALUES ('s', 'me', 'base', 't', '[]', NULL, 'b', 1.0, 7, 0)")
    store = SnapshotStore(tmp_path / "db")
    assert store.all() == [Snapshot("s", "me", "base", "t", (), None, "b", 1.0, 7)]
    store.close()
