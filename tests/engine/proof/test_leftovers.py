"""Looking for what a sandbox has left, while other engines come and go on the same machine."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ringfence.engine.proof import outside


@pytest.fixture
def sandbox(tmp_path: Path) -> Any:
    return SimpleNamespace(sandbox_id="gone", http_socket=tmp_path / "gone" / "http.sock")


def test_groups_of_others_that_go_meanwhile_do_not_matter(
    tmp_path: Path, sandbox: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = tmp_path / "cgroup"
    monkeypatch.setattr(outside, "_CGROUPS", groups)
    ended = threading.Event()

    def come_and_go() -> None:
        while not ended.is_set():
            for number in range(20):
                (groups / str(number) / "sandbox").mkdir(parents=True)
            for number in range(20):
                (groups / str(number) / "sandbox").rmdir()
                (groups / str(number)).rmdir()

    others = threading.Thread(target=come_and_go)
    others.start()
    try:
        for _ in range(40):
            assert outside.leftovers(sandbox, {}).verdict == "contained"
    finally:
        ended.set()
        others.join()


def test_a_group_that_is_left_is_found(tmp_path: Path, sandbox: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "_CGROUPS", tmp_path)
    (tmp_path / "memory" / "engine" / "gone").mkdir(parents=True)
    finding = outside.leftovers(sandbox, {})
    assert finding.verdict == "got through"
    assert "memory/engine/gone" in finding.evidence
