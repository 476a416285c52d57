"""What a session has used: told with each result in `_meta`, and in all when it is closed.

Counted here, on this side of the SDK, so that it is the same on every backend.
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from e2b import SandboxException
from e2b_code_interpreter import AsyncSandbox


@dataclass
class Usage:
    """Of one session. wall_s: seconds in which code or commands ran. Sizes in bytes; output in characters."""

    since: float = field(default_factory=time.monotonic)
    executions: int = 0
    wall_s: float = 0.0
    output_chars: int = 0
    uploaded: int = 0
    downloaded: int = 0

    def ran(self, seconds: float, output_chars: int) -> None:
        """Code or a command has ended."""
        self.executions += 1
        self.wall_s += seconds
        self.output_chars += output_chars

    def totals(self) -> dict[str, Any]:
        """All of it, and how long the sandbox has lived (what E2B's cloud charges for)."""
        return {
            "executions": self.executions,
            "wall_s": round(self.wall_s, 3),
            "sandbox_s": round(time.monotonic() - self.since, 3),
            "output_chars": self.output_chars,
            "uploaded_bytes": self.uploaded,
            "downloaded_bytes": self.downloaded,
        }


async def cpu_seconds(sandbox: AsyncSandbox) -> float | None:
    """About how much processor time the sandbox has used, by the backend's samples of it; None when it has
    none. Samples are some seconds apart, so what happened after the last one is not in it.
    """
    try:
        samples = await sandbox.get_metrics(request_timeout=5)
        info = await sandbox.get_info(request_timeout=5)
    except (SandboxException, httpx.HTTPError):
        return None
    points = [(info.started_at.timestamp(), 0.0)]
    points += [(one.timestamp.timestamp(), one.cpu_used_pct * one.cpu_count) for one in samples]
    return round(_integral(points), 3) if len(points) > 1 else None


def _integral(points: Sequence[tuple[float, float]]) -> float:
    """Each sample is the mean since the one before, in percent of a processor."""
    return sum(
        max(0.0, now - before) * percent / 100 for (before, _), (now, percent) in itertools.pairwise(points)
    )
