"""Attacks that may end gVisor's kernel, and the whole sandbox with it: each has a sandbox of its own.

Such an end is no escape, but it has to be one: told to whoever asks, nothing left on the host. In the process
tier these attacks end at most their own process, and run with all others.
"""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, replace

from ringfence.engine.engine import Engine
from ringfence.engine.model import Exit
from ringfence.engine.proof.model import Finding

ROOT_ENDS_IT = ("the-guest-is-killed", "root")
OVERUSE = ("processors", "user")
MAY_END = (
    ("memory", "user"),
    ("memory", "root"),
    ("memory", "kernel"),
    ("memory-of-many", "user"),
    ("a-fork-bomb", "user"),
    ("a-fork-bomb-of-root", "root"),
    ROOT_ENDS_IT,
    OVERUSE,
)
"""Attack and who runs it; `OVERUSE` with them, since only the host knows what a sandbox has used."""
_SECONDS = 20


@dataclass
class Ends:
    """The ends of an engine's sandboxes, as it tells them."""

    told: dict[str, Exit]
    news: asyncio.Event

    @classmethod
    def of(cls, engine: Engine) -> "Ends":
        """From now on."""
        ends = cls({}, asyncio.Event())
        engine.add_exit_listener(ends._learn)
        return ends

    def _learn(self, end: Exit) -> None:
        self.told[end.sandbox_id] = end
        self.news.set()

    async def wait(self, sandbox_id: str) -> Exit | None:
        """How this sandbox ended; None when that was not told in time."""
        try:
            async with asyncio.timeout(_SECONDS):
                while sandbox_id not in self.told:
                    self.news.clear()
                    await self.news.wait()
        except TimeoutError:
            return None
        return self.told[sandbox_id]


def without(names: Collection[str], who: str) -> list[str]:
    """The names of those that may run with others."""
    return [name for name in names if (name, who) not in MAY_END]


def use_judged(finding: Finding, used: float, seconds: float, limit: float) -> Finding:
    """The finding of an attack that uses as many processors as it can. used: seconds of processors."""
    share = used / seconds
    if finding.verdict == "not applicable" or finding.evidence.startswith("not proven"):
        return finding
    evidence = f"{share:.2f} processors used, the limit is {limit}, seen from the host"
    if share < limit * 0.25:
        return replace(finding, verdict="got through", evidence=f"not proven: {evidence}")
    return replace(
        finding, verdict="contained" if share <= limit * 1.3 + 0.1 else "got through", evidence=evidence
    )


def judged(finding: Finding, end: Exit | None, left: Finding) -> Finding:
    """The finding of an attack that gave no answer. left: what was looked for after the end."""
    if end is None or end.reason == "killed":  # it did not end of its own: then the attack proves nothing
        return finding
    if left.verdict != "contained":
        return replace(finding, evidence=f"its sandbox ended, and left {left.evidence}")
    evidence = f"its own sandbox ended, and nothing else ({end.reason}: {end.detail}); {left.evidence}"
    if (finding.attack, finding.who) == ROOT_ENDS_IT:
        why = "gVisor lets the sandbox's root end PID 1"
        return replace(finding, verdict="not applicable", evidence=f"{why}: {evidence}")
    return replace(finding, verdict="contained", evidence=evidence)
