"""An attack that ends its sandbox is contained when that end was told, and nothing is left."""

import pytest

from ringfence.engine.model import Exit
from ringfence.engine.proof import ending
from ringfence.engine.proof.model import Finding

NO_ANSWER = Finding(
    "memory", "limits", "cgroup memory", "user", "got through", "not proven: it gave no answer"
)
GONE = Finding("left", "processes", "PID namespace", "host", "contained", "7 processes are gone")
STILL_THERE = Finding("left", "processes", "PID namespace", "host", "got through", "processes [7]")
ENDED = Exit("id", "oom", "the memory limit was reached")
KILLED = Exit("id", "killed", "it was asked for")


@pytest.mark.parametrize(
    ("end", "left", "verdict"),
    [
        (ENDED, GONE, "contained"),
        (ENDED, STILL_THERE, "got through"),
        (KILLED, GONE, "got through"),
        (None, GONE, "got through"),
    ],
)
def test_the_end_is_judged(end: Exit | None, left: Finding, verdict: str) -> None:
    assert ending.judged(NO_ANSWER, end, left).verdict == verdict


def test_that_root_can_end_its_own_sandbox_is_not_counted_as_contained() -> None:
    name, who = ending.ROOT_ENDS_IT
    finding = Finding(name, "processes", "PID namespace", who, "got through", NO_ANSWER.evidence)
    assert ending.judged(finding, ENDED, GONE).verdict == "not applicable"
    assert ending.judged(finding, ENDED, STILL_THERE).verdict == "got through"


@pytest.mark.parametrize(
    ("before", "used", "verdict"),
    [
        ("got through", 1.0, "contained"),
        ("contained", 1.9, "got through"),
        ("contained", 0.1, "got through"),
        ("not applicable", 1.9, "not applicable"),
    ],
)
def test_what_processors_were_used_is_seen_from_the_host(before: str, used: float, verdict: str) -> None:
    finding = Finding("processors", "limits", "cgroup CPU", "user", before, "2.9 processors")  # type: ignore[arg-type]
    assert ending.use_judged(finding, used * 3, 3, 1.0).verdict == verdict


def test_an_attack_that_hung_proves_nothing_about_processors() -> None:
    finding = Finding("processors", "limits", "cgroup CPU", "user", "got through", "not proven: it hung")
    assert ending.use_judged(finding, 3, 3, 1.0) == finding
