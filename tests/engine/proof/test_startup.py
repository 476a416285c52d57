"""The proof at the start: run once, kept, and run again when something is different or was wrong."""

import json
from pathlib import Path

import pytest

from ringfence.engine.engine import Engine
from ringfence.engine.proof import startup
from ringfence.engine.proof.model import Finding, ProofReport


async def test_the_second_start_takes_the_firsts_word(engine: Engine, tmp_path: Path) -> None:
    first = await startup.prove(engine, tmp_path)
    assert first.proof is not None and not first.proof.cached and not first.proof.breaches
    second = await startup.prove(engine, tmp_path)
    assert second.proof is not None and second.proof.cached
    assert (second.proof.contained, second.proof.total) == (first.proof.contained, first.proof.total)
    assert engine.isolation is second


async def test_another_version_looks_again(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await startup.prove(engine, tmp_path)
    monkeypatch.setattr(startup, "__version__", "another")
    again = await startup.prove(engine, tmp_path)
    assert again.proof is not None and not again.proof.cached


async def test_a_breach_is_told_and_not_kept(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breach = Finding("mounts", "kernel interfaces", "seccomp", "root", "got through", "mount was done")

    async def breached(*_: object) -> ProofReport:
        return ProofReport("essential", "base", (breach,), 0.1)

    monkeypatch.setattr(startup, "run_probes", breached)
    report = await startup.prove(engine, tmp_path)
    assert report.level == "none"
    assert not list(tmp_path.rglob("*.json"))


async def test_a_damaged_cache_is_ignored(engine: Engine, tmp_path: Path) -> None:
    await startup.prove(engine, tmp_path)
    (kept,) = tmp_path.rglob("*.json")
    kept.write_text(json.dumps({"findings": [1]}))
    report = await startup.prove(engine, tmp_path)
    assert report.proof is not None and not report.proof.cached
