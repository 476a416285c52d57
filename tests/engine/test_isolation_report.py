from dataclasses import replace

import pytest

from ringfence.core.errors import IsolationError
from ringfence.engine.isolation_report import Breach, IsolationReport, LayerStatus, Proof
from ringfence.engine.proof.startup import require_level

NAMES = ("user namespace", "private host ids", "seccomp", "Landlock", "cgroup limits: memory, processes, CPU")


def report(*missing: str, breaches: tuple[Breach, ...] = ()) -> IsolationReport:
    layers = tuple(LayerStatus(name, name not in missing, "detail", "remedy") for name in NAMES)
    return IsolationReport(layers, Proof(9 - len(breaches), 9, breaches, False))


@pytest.mark.parametrize(
    ("account", "level"),
    [
        (report(), "strict"),
        (report("Landlock"), "standard"),
        (report("private host ids", "Landlock"), "standard"),
        (report("cgroup limits: memory, processes, CPU"), "best-effort"),
        (report("seccomp"), "best-effort"),
        (report(breaches=(Breach("memory as user", "limits", "x"),)), "best-effort"),
        (report(breaches=(Breach("mounts as root", "kernel interfaces", "x"),)), "none"),
    ],
)
def test_the_level_follows_from_layers_and_attacks(account: IsolationReport, level: str) -> None:
    assert account.level == level
    assert account.as_dict()["level"] == level


def test_a_level_that_is_not_in_force_is_refused_with_the_reason() -> None:
    require_level(report("Landlock"), "standard")
    with pytest.raises(
        IsolationError, match=r"strict was asked for, but standard.*Landlock: detail \(remedy\)"
    ):
        require_level(report("Landlock"), "strict")


def test_no_level_is_low_enough_for_an_attack_that_got_through() -> None:
    broken = report(breaches=(Breach("mounts as root", "kernel interfaces", "mount was done"),))
    with pytest.raises(IsolationError, match=r"mounts as root.*mount was done"):
        require_level(broken, "best-effort")


def test_without_a_proof_the_layers_count() -> None:
    assert replace(report(), proof=None).level == "strict"
    assert replace(report(), proof=None).as_dict()["proof"] is None
