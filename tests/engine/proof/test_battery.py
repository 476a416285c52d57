"""Every attack is contained in a sandbox, and what the host lays out for them is as before."""

import os
import secrets
from collections.abc import AsyncIterator

import pytest

from ringfence.engine.engine import Engine
from ringfence.engine.proof import outside, program
from ringfence.engine.proof.battery import run_probes
from ringfence.engine.proof.model import ProofReport, summary
from ringfence.engine.proof.surroundings import surroundings
from ringfence.engine.settings import EngineSettings

TEMPLATE = "base"
CANARY = secrets.token_hex(20)


@pytest.fixture
async def engine_with_canary(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Engine]:
    monkeypatch.setenv("A_SECRET_OF_THE_SERVER", CANARY)
    engine = await Engine.start(EngineSettings(templates=(TEMPLATE,)))
    yield engine
    await engine.aclose()


async def test_every_attack_is_contained(engine_with_canary: Engine) -> None:
    report = await run_probes(engine_with_canary, TEMPLATE, "all", canary=CANARY)
    assert not report.got_through, summary(report.got_through, 50)
    attempted = {(finding.attack, finding.who) for finding in report.findings}
    assert attempted >= {(one.name, who) for one in program.ATTACKS.values() for who in one.who}
    searched = next(finding for finding in report.findings if finding.attack == "the-memory-has-secrets")
    assert searched.verdict == "contained"


@pytest.mark.skipif(
    os.environ.get("RINGFENCE_TEST_ISOLATION") != "gvisor", reason="three minutes; make test-gvisor"
)
@pytest.mark.timeout(900)
async def test_under_gvisor_no_attack_gets_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET_OF_THE_SERVER", CANARY)
    engine = await Engine.start(EngineSettings(templates=(TEMPLATE,), isolation="gvisor"))
    try:
        report = await run_probes(engine, TEMPLATE, "all", canary=CANARY)
    finally:
        await engine.aclose()
    assert not report.got_through, summary(report.got_through, 50)
    attempted = {(finding.attack, finding.who) for finding in report.findings}
    assert attempted >= {(one.name, who) for one in program.ATTACKS.values() for who in one.who}
    assert sum(finding.verdict == "contained" for finding in report.findings) > 150


async def test_the_essential_attacks_are_contained(engine: Engine) -> None:
    report = await run_probes(engine, TEMPLATE)
    assert not report.got_through, summary(report.got_through, 50)
    by_category = report.by_category()
    assert {
        "files",
        "processes",
        "kernel interfaces",
        "network",
        "limits",
        "control channel",
        "output",
    } == set(by_category)
    assert ProofReport.from_dict(report.as_dict(), cached=False) == report


async def test_nothing_is_left_of_a_proof(engine: Engine) -> None:
    before = set(os.listdir("/tmp"))
    await run_probes(engine, TEMPLATE)
    left = set(os.listdir("/tmp")) - before
    assert not [name for name in left if name.startswith("ringfence-proof")]


async def test_traces_on_the_host_are_seen(engine: Engine) -> None:
    import socket

    with surroundings(engine.templates[TEMPLATE]) as around:
        assert around.traces() == {}
        around.marker.write_text("changed")
        around.victim.kill()
        around.victim.wait()
        with socket.create_connection(around.tcp.getsockname()):
            traces = around.traces()
    assert len(traces) == 3


def test_the_host_sees_a_process_without_isolation() -> None:
    processes = outside.family(os.getpid())
    assert os.getpid() in processes
    for check in (outside._filters, outside._namespaces):
        with pytest.raises(AssertionError):
            check(processes)
