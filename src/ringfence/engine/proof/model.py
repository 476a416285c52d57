"""What a proof consists of: findings, one for each attack and each party that ran it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["contained", "got through", "not applicable"]


@dataclass(frozen=True)
class Finding:
    """What became of one attack.

    attack: its name. category: what it attacks. layer: what should hold it. who: ``user``, ``root`` or
    ``kernel`` of the sandbox, or ``host`` where the host looked for traces.
    """

    attack: str
    category: str
    layer: str
    who: str
    verdict: Verdict
    evidence: str


@dataclass(frozen=True)
class ProofReport:
    """All findings of one run. seconds: how long it took; which: ``essential`` or ``all``."""

    which: str
    template: str
    findings: tuple[Finding, ...]
    seconds: float
    cached: bool = False

    @property
    def got_through(self) -> tuple[Finding, ...]:
        """The attacks that succeeded."""
        return tuple(finding for finding in self.findings if finding.verdict == "got through")

    def by_category(self) -> dict[str, tuple[int, int]]:
        """For each category how many attacks were contained, of how many that apply."""
        counts: dict[str, tuple[int, int]] = {}
        for finding in self.findings:
            contained, total = counts.get(finding.category, (0, 0))
            if finding.verdict != "not applicable":
                counts[finding.category] = (contained + (finding.verdict == "contained"), total + 1)
        return counts

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        applicable = [finding for finding in self.findings if finding.verdict != "not applicable"]
        return {
            "which": self.which,
            "template": self.template,
            "seconds": self.seconds,
            "cached": self.cached,
            "contained": len(applicable) - len(self.got_through),
            "total": len(applicable),
            "findings": [vars(finding) for finding in self.findings],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any], cached: bool) -> "ProofReport":
        """Read what `as_dict` wrote. Raises KeyError or TypeError when it is something else."""
        findings = tuple(Finding(**finding) for finding in data["findings"])
        return cls(data["which"], data["template"], findings, data["seconds"], cached)


def summary(findings: Iterable[Finding], most: int = 5) -> str:
    """A sentence that names the first of these findings."""
    found = list(findings)
    named = "; ".join(f"{one.attack} as {one.who}: {one.evidence}" for one in found[:most])
    return named + (f"; and {len(found) - most} more" if len(found) > most else "")
