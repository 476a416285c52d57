"""The account of isolation that `doctor`, the health endpoint and every result give.

The levels, strongest first (see docs/reference/ISOLATION.md):

- ``strict``: every layer is in force, and every attack that was tried was contained;
- ``standard``: the same but for private host ids, device nodes of its own or Landlock, which an ordinary user
  or an old kernel lack;
- ``best-effort``: sandboxes are apart from the host and each other; their limits are not all enforced;
- ``none``: an attack got through. A server refuses to start with it, whatever was asked for.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from ringfence.engine.model import Isolation

Level = Literal["none", "best-effort", "standard", "strict"]
LEVELS: tuple[Level, ...] = ("none", "best-effort", "standard", "strict")
"""Weakest first."""
_SECOND_BARRIERS = frozenset({"private host ids", "device nodes of its own", "Landlock"})
"""Layers behind others: without them a sandbox is still separate and limited."""
LIMITS = "limits"
"""The category of attacks that a host without cgroups may not contain."""


@dataclass(frozen=True)
class LayerStatus:
    """One layer: whether it is in force, the evidence, and what to do when it is not."""

    name: str
    in_force: bool
    detail: str
    remedy: str


@dataclass(frozen=True)
class Breach:
    """An attack that got through: its name, its category, and the evidence."""

    attack: str
    category: str
    evidence: str


@dataclass(frozen=True)
class Proof:
    """What the attacks of the start-up have shown: how many were contained, of how many that apply.

    cached: whether they were run by an earlier start on this kernel with this version.
    """

    contained: int
    total: int
    breaches: tuple[Breach, ...]
    cached: bool


@dataclass(frozen=True)
class IsolationReport:
    """All layers and what they add up to. proof: None until attacks were run.

    features: what else this machine can or cannot do; no level depends on it.
    tier: what every sandbox has at least. gvisor: whether that tier can be had here, and a sentence.
    """

    layers: tuple[LayerStatus, ...]
    proof: Proof | None = None
    features: tuple[LayerStatus, ...] = ()
    tier: Isolation = "process"
    gvisor: tuple[bool, str] = (False, "not looked for")

    @classmethod
    def from_launcher(cls, layers: list[dict[str, Any]]) -> "IsolationReport":
        """Read the launcher's account."""
        return cls(tuple(LayerStatus(**layer) for layer in layers))

    def with_proof(self, proof: Proof) -> "IsolationReport":
        """The same with what attacks have shown."""
        return replace(self, proof=proof)

    def with_tier(self, tier: Isolation, gvisor: tuple[bool, str]) -> "IsolationReport":
        """The same with what is known of the tiers."""
        return replace(self, tier=tier, gvisor=gvisor)

    @property
    def level(self) -> Level:
        """What the layers and the attacks add up to; see the module."""
        breaches = self.proof.breaches if self.proof else ()
        if any(breach.category != LIMITS for breach in breaches):
            return "none"
        missing = {layer.name for layer in self.layers if not layer.in_force}
        if breaches or missing - _SECOND_BARRIERS:
            return "best-effort"
        return "standard" if missing else "strict"

    def shortfall(self) -> str:
        """What keeps the level down, with remedies: one sentence, empty when nothing does."""
        parts = [
            f"{layer.name}: {layer.detail}" + (f" ({layer.remedy})" if layer.remedy else "")
            for layer in self.layers
            if not layer.in_force
        ]
        breaches = self.proof.breaches if self.proof else ()
        parts += [f"the attack {breach.attack!r} got through: {breach.evidence}" for breach in breaches]
        return "; ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        proof = None
        if self.proof is not None:
            proof = {**vars(self.proof), "breaches": [vars(breach) for breach in self.proof.breaches]}
        available, detail = self.gvisor
        return {
            "level": self.level,
            "tier": self.tier,
            "layers": [vars(layer) for layer in self.layers],
            "proof": proof,
            "gvisor": {"available": available, "detail": detail},
            "features": [vars(feature) for feature in self.features],
        }
