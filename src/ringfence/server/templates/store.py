"""What the server keeps of templates, in the same SQLite file as the rest, in tables of its own."""

import json
import sqlite3
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SCHEMA = """
CREATE TABLE IF NOT EXISTS templates (
    template_id TEXT PRIMARY KEY, owner TEXT NOT NULL, name TEXT NOT NULL,
    created_at REAL NOT NULL, updated_at REAL NOT NULL, public INTEGER NOT NULL DEFAULT 0,
    UNIQUE (owner, name)
) STRICT;
CREATE TABLE IF NOT EXISTS template_builds (
    build_id TEXT PRIMARY KEY, template_id TEXT NOT NULL REFERENCES templates ON DELETE CASCADE,
    status TEXT NOT NULL, request TEXT NOT NULL, created_at REAL NOT NULL, finished_at REAL,
    reason TEXT, result TEXT
) STRICT;
CREATE TABLE IF NOT EXISTS template_tags (
    template_id TEXT NOT NULL REFERENCES templates ON DELETE CASCADE, tag TEXT NOT NULL,
    build_id TEXT NOT NULL, created_at REAL NOT NULL, PRIMARY KEY (template_id, tag)
) STRICT;
CREATE TABLE IF NOT EXISTS template_layers (
    snapshot TEXT PRIMARY KEY, key TEXT, created_at REAL NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS template_layers_by_key ON template_layers (key);
CREATE TABLE IF NOT EXISTS template_tag_assignments (
    assignment_id TEXT PRIMARY KEY, template_id TEXT NOT NULL REFERENCES templates ON DELETE CASCADE,
    tag TEXT NOT NULL, build_id TEXT NOT NULL REFERENCES template_builds ON DELETE CASCADE,
    assigned_at REAL NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS template_tag_assignments_by_tag ON template_tag_assignments (template_id, tag);
"""
_TEMPLATE = "template_id, owner, name, created_at, updated_at, public"


@dataclass(frozen=True)
class TemplateRow:
    """A template's identity. Times are seconds since the epoch."""

    template_id: str
    owner: str
    name: str
    created_at: float
    updated_at: float
    public: bool = False


@dataclass(frozen=True)
class BuildRow:
    """One build. status: ``waiting``, ``building``, ``ready`` or ``error``.

    request: what was asked for with the build's registration. reason: ``message`` and ``step`` of a failure.
    result: the template that came out, as `catalog.dump` writes it.
    """

    build_id: str
    template_id: str
    status: str
    request: dict[str, Any]
    created_at: float
    finished_at: float | None
    reason: dict[str, Any] | None
    result: dict[str, Any] | None


@dataclass(frozen=True)
class TagRow:
    """A name for one build of a template."""

    tag: str
    build_id: str
    created_at: float


@dataclass(frozen=True)
class AssignmentRow:
    """When a tag was given to a build that can be used; times in seconds since the epoch."""

    assignment_id: str
    tag: str
    build_id: str
    assigned_at: float
    build_created_at: float
    build_finished_at: float | None


_BUILD = "build_id, template_id, status, request, created_at, finished_at, reason, result"


class TemplateStore:
    """The tables of templates. Calls are short; all come from the thread that made it."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, isolation_level=None, timeout=10)
        self._database.execute("PRAGMA foreign_keys = ON")
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.executescript(_SCHEMA)
        self._migrate()

    def _migrate(self) -> None:
        """Bring the tables of an earlier version up to date."""
        columns = {row[1] for row in self._database.execute("PRAGMA table_info(templates)")}
        if "public" not in columns:
            self._database.execute("ALTER TABLE templates ADD COLUMN public INTEGER NOT NULL DEFAULT 0")
        unknown = self._database.execute(
            "SELECT template_id, tag, build_id, created_at FROM template_tags AS t WHERE NOT EXISTS "
            "(SELECT 1 FROM template_tag_assignments AS a WHERE a.template_id = t.template_id "
            "AND a.tag = t.tag) AND build_id IN (SELECT build_id FROM template_builds)"
        ).fetchall()
        for row in unknown:
            self._note_assignment(*row)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    # --- templates

    def add_template(self, template_id: str, owner: str, name: str) -> TemplateRow:
        """Keep a new template."""
        row = TemplateRow(template_id, owner, name, now := time.time(), now)
        self._database.execute(
            "INSERT INTO templates (template_id, owner, name, created_at, updated_at) VALUES (?, ?, ?, ?, ?)",
            (template_id, owner, name, now, now),
        )
        return row

    def templates(self, owner: str) -> list[TemplateRow]:
        """The owner's templates, oldest first."""
        return self._templates("WHERE owner = ? ORDER BY created_at", owner)

    def template(self, owner: str, name_or_id: str) -> TemplateRow | None:
        """The owner's template with this name or id."""
        found = self._templates(
            "WHERE owner = ? AND (name = ? OR template_id = ?) ORDER BY name = ? DESC",
            *(owner, name_or_id, name_or_id, name_or_id),
        )
        return next(iter(found), None)

    def by_id(self, template_id: str) -> TemplateRow | None:
        """The template with this id, whosever it is."""
        return next(iter(self._templates("WHERE template_id = ?", template_id)), None)

    def set_public(self, template_id: str, public: bool) -> None:
        """Let every owner use a template, by its id, or its own one only."""
        self._database.execute(
            "UPDATE templates SET public = ? WHERE template_id = ?", (int(public), template_id)
        )

    def _templates(self, condition: str, *values: object) -> list[TemplateRow]:
        rows = self._database.execute(f"SELECT {_TEMPLATE} FROM templates {condition}", values)  # noqa: S608
        return [
            TemplateRow(template_id, owner, name, created_at, updated_at, bool(public))
            for template_id, owner, name, created_at, updated_at, public in rows
        ]

    def touch(self, template_id: str) -> None:
        """Note that a template has changed."""
        self._database.execute(
            "UPDATE templates SET updated_at = ? WHERE template_id = ?", (time.time(), template_id)
        )

    def remove_template(self, template_id: str) -> None:
        """Forget a template with its builds and tags."""
        self._database.execute("DELETE FROM templates WHERE template_id = ?", (template_id,))

    # --- builds

    def add_build(self, build_id: str, template_id: str, request: dict[str, Any]) -> None:
        """Keep a build that waits to be started."""
        self._database.execute(
            "INSERT INTO template_builds VALUES (?, ?, 'waiting', ?, ?, NULL, NULL, NULL)",
            (build_id, template_id, json.dumps(request), time.time()),
        )

    def build(self, build_id: str) -> BuildRow | None:
        """The build with this id."""
        return next(iter(self._builds("WHERE build_id = ?", build_id)), None)

    def builds(self, template_id: str) -> list[BuildRow]:
        """A template's builds, oldest first."""
        return self._builds("WHERE template_id = ? ORDER BY created_at", template_id)

    def ready_builds(self) -> list[BuildRow]:
        """Every build that can be used."""
        return self._builds("WHERE status = 'ready' ORDER BY created_at")

    def _builds(self, condition: str, *values: object) -> list[BuildRow]:
        rows = self._database.execute(f"SELECT {_BUILD} FROM template_builds {condition}", values)  # noqa: S608
        return [_build_row(*row) for row in rows]

    def set_building(self, build_id: str) -> None:
        """Note that a build has been started."""
        self._database.execute(
            "UPDATE template_builds SET status = 'building' WHERE build_id = ?", (build_id,)
        )

    def finish(
        self, build_id: str, *, result: dict[str, Any] | None = None, reason: dict[str, Any] | None = None
    ) -> None:
        """Note how a build ended: with a `result`, or for a `reason` without one."""
        self._database.execute(
            "UPDATE template_builds SET status = ?, finished_at = ?, result = ?, reason = ? "
            "WHERE build_id = ?",
            (
                "ready" if result is not None else "error",
                time.time(),
                json.dumps(result) if result is not None else None,
                json.dumps(reason) if reason is not None else None,
                build_id,
            ),
        )

    def remove_build(self, build_id: str) -> None:
        """Forget a build."""
        self._database.execute("DELETE FROM template_builds WHERE build_id = ?", (build_id,))

    def end_interrupted(self) -> None:
        """Fail what an earlier run of the server left unfinished."""
        reason = json.dumps({"message": "the server stopped while the template was built"})
        self._database.execute(
            "UPDATE template_builds SET status = 'error', finished_at = ?, reason = ? "
            "WHERE status IN ('building', 'waiting')",
            (time.time(), reason),
        )

    # --- tags

    def set_tag(self, template_id: str, tag: str, build_id: str) -> None:
        """Let `tag` name a build, whatever it named before."""
        now = time.time()
        self._database.execute(
            "INSERT OR REPLACE INTO template_tags VALUES (?, ?, ?, ?)", (template_id, tag, build_id, now)
        )
        self._note_assignment(template_id, tag, build_id, now)

    def _note_assignment(self, template_id: str, tag: str, build_id: str, moment: float) -> None:
        self._database.execute(
            "INSERT INTO template_tag_assignments VALUES (?, ?, ?, ?, ?)",
            (str(uuid.uuid4()), template_id, tag, build_id, moment),
        )

    def assignments(self, template_id: str) -> list[AssignmentRow]:
        """When tags that there are were given to builds that there are, newest first."""
        rows = self._database.execute(
            "SELECT a.assignment_id, a.tag, a.build_id, a.assigned_at, b.created_at, b.finished_at "
            "FROM template_tag_assignments AS a JOIN template_builds AS b USING (build_id) "
            "WHERE a.template_id = ? AND b.status = 'ready' ORDER BY a.assigned_at DESC, a.rowid DESC",
            (template_id,),
        )
        return [AssignmentRow(*row) for row in rows]

    def tags(self, template_id: str) -> list[TagRow]:
        """A template's tags, oldest first."""
        rows = self._database.execute(
            "SELECT tag, build_id, created_at FROM template_tags WHERE template_id = ? "
            "ORDER BY created_at, tag",
            (template_id,),
        )
        return [TagRow(*row) for row in rows]

    def remove_tag(self, template_id: str, tag: str) -> bool:
        """Forget a tag; whether there was one."""
        cursor = self._database.execute(
            "DELETE FROM template_tags WHERE template_id = ? AND tag = ?", (template_id, tag)
        )
        self._database.execute(
            "DELETE FROM template_tag_assignments WHERE template_id = ? AND tag = ?", (template_id, tag)
        )
        return cursor.rowcount > 0

    # --- layers

    def find(self, key: str) -> str | None:
        """The snapshot of the build step with this key."""
        row = self._database.execute(
            "SELECT snapshot FROM template_layers WHERE key = ? ORDER BY created_at DESC", (key,)
        ).fetchone()
        return None if row is None else str(row[0])

    def begin(self, snapshot: str) -> None:
        """Note a snapshot before it is made, as one that no build will use and that can be erased."""
        self._database.execute("INSERT INTO template_layers VALUES (?, NULL, ?)", (snapshot, time.time()))

    def add(self, key: str, snapshot: str) -> None:
        """Let builds find a begun snapshot by its step's key; an older one of the same step is not found any
        more.
        """
        self._database.execute("UPDATE template_layers SET key = NULL WHERE key = ?", (key,))
        self._database.execute("UPDATE template_layers SET key = ? WHERE snapshot = ?", (key, snapshot))

    def hide_layers(self, snapshots: list[str]) -> None:
        """Let no later build use these."""
        self._database.executemany(
            "UPDATE template_layers SET key = NULL WHERE snapshot = ?", [(name,) for name in snapshots]
        )

    def hide_old_layers(self, before: float) -> None:
        """Let no later build use what was made before `before`, in seconds since the epoch."""
        self._database.execute("UPDATE template_layers SET key = NULL WHERE created_at < ?", (before,))

    def hidden_layers(self) -> list[str]:
        """Snapshots that no later build will use."""
        return [
            row[0] for row in self._database.execute("SELECT snapshot FROM template_layers WHERE key IS NULL")
        ]

    def remove_layer(self, snapshot: str) -> None:
        """Forget a snapshot, which has been erased."""
        self._database.execute("DELETE FROM template_layers WHERE snapshot = ?", (snapshot,))


def _build_row(
    build_id: str,
    template_id: str,
    status: str,
    request: str,
    created_at: float,
    finished_at: float | None,
    reason: str | None,
    result: str | None,
) -> BuildRow:
    why = json.loads(reason) if reason else None
    what = json.loads(result) if result else None
    return BuildRow(build_id, template_id, status, json.loads(request), created_at, finished_at, why, what)
