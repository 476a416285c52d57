"""The account of isolation that `doctor`, the health endpoint and every result give."""

from dataclasses import dataclass
from typing import Any

_ESSENTIAL_MISSING = "best-effort"
_SOME_MISSING = "standard"
_ALL_IN_FORCE = "strict"


@dataclass(frozen=True)
class LayerStatus:
    """One layer: whether it is in force, the evidence, and what to do when it is not."""

    name: str
    in_force: bool
    detail: str
    remedy: str


@dataclass(frozen=True)
class IsolationReport:
    """All layers and what they add up to."""

    layers: tuple[LayerStatus, ...]

    @classmethod
    def from_launcher(cls, layers: list[dict[str, Any]]) -> "IsolationReport":
        """Read the launcher's account."""
        return cls(tuple(LayerStatus(**layer) for layer in layers))

    @property
    def level(self) -> str:
        """``strict``.

        Every layer is in force. ``standard``: all but private ids or Landlock. Else ``best-effort``.
        """
        missing = [layer.name for layer in self.layers if not layer.in_force]
        if not missing:
            return _ALL_IN_FORCE
        return _ESSENTIAL_MISSING if any("cgroup" in name for name in missing) else _SOME_MISSING

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"level": self.level, "layers": [vars(layer) for layer in self.layers]}
