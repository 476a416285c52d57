"""What is kept of builds: their logs and the files they copy."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from ringfence.engine.built import BuiltTemplates
from ringfence.engine.model import Template
from ringfence.server.templates import builds
from ringfence.server.templates.builds import BuildLog
from ringfence.server.templates.store import TemplateStore
from ringfence.server.templates.uploads import Uploads


def test_a_log_is_bounded_says_so_and_still_takes_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builds, "_MAX_LOG", 1000)
    log = BuildLog()
    for _ in range(100):
        log.add("info", "1", "x" * 99)
    log.add("error", "1", "Build failed: no")
    assert log.size < 1200
    assert [line["message"][:14] for line in log.lines[-2:]] == ["[the log of th", "Build failed: "]


def test_files_that_no_build_asks_for_any_more_are_removed(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path, 1000)
    old, used = (uploads._place("me", digit * 64) for digit in "ab")
    old.parent.mkdir()
    for path in (old, used):
        path.write_bytes(b"")
        os.utime(path, (1000, 1000))
    assert uploads.find("me", "b" * 64) == used
    uploads.remove_old(2000)
    assert uploads.find("me", "a" * 64) is None
    assert uploads.find("me", "b" * 64) == used


def test_a_snapshot_that_was_begun_and_not_finished_can_be_erased(tmp_path: Path) -> None:
    store = TemplateStore(tmp_path / "t.db")
    for name in ("one", "two"):
        store.begin(name)
    store.add("key", "one")
    assert (store.find("key"), store.hidden_layers()) == ("one", ["two"])
    store.close()


def test_a_build_from_which_a_sandbox_is_just_started_stays_in_service(tmp_path: Path) -> None:
    starting = {"b1"}
    discarded: list[str] = []
    built = BuiltTemplates(None, discarded.append)  # type: ignore[arg-type]
    engine = SimpleNamespace(built=built, templates_in_use=lambda: starting)
    engine.built.add(Template("t1", "mine", (), "", root="base", snapshots=("one",), build_id="b1"))
    store = TemplateStore(tmp_path / "t.db")
    kept = builds.Builds(engine, store, None, None, None, list, set)  # type: ignore[arg-type]
    kept._leaving.add("b1")
    kept._let_go()
    assert engine.built.get("b1") is not None
    assert discarded == []
    starting.clear()
    kept._let_go()
    assert engine.built.get("b1") is None
    assert discarded == ["b1"]
    store.close()
