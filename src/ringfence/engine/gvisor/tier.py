"""Which tier a sandbox has, and what the launcher is told for one under gVisor."""

import asyncio
import os
from pathlib import Path
from typing import Any

from ringfence.core.errors import TierUnavailableError
from ringfence.engine.gvisor import runsc
from ringfence.engine.model import TIERS, Isolation


class Tier:
    """The operator's floor, and the runsc of this machine, which is looked for when it is first needed."""

    def __init__(self, floor: Isolation, platform: str, cache_dir: Path) -> None:
        self.floor = floor
        self._platform = platform
        self._cache_dir = cache_dir
        self._runtime: runsc.Runtime | None = None
        self._lock = asyncio.Lock()

    def of(self, *asked: Isolation) -> Isolation:
        """The hardest tier that anybody asks for."""
        return max(self.floor, *asked, key=TIERS.index)

    async def runtime(self) -> runsc.Runtime:
        """The installed runsc. Raises TierUnavailableError: missing, or does not run; with the remedy."""
        runsc.find()
        if os.geteuid() != 0:
            raise TierUnavailableError(
                "isolation gvisor is not available: it needs private host ids, which only root's engine can "
                "give; start the engine as root"
            )
        async with self._lock:
            if self._runtime is None or not os.access(self._runtime.path, os.X_OK):
                self._runtime = await runsc.detect(self._platform, self._cache_dir)
            return self._runtime

    async def request(self) -> dict[str, Any]:
        """What the launcher is told. Raises TierUnavailableError."""
        runtime = await self.runtime()
        known = {"path": runtime.path, "platform": runtime.platform, "flags": list(runtime.flags)}
        return {**known, "image": None, "room": 0}

    async def describe(self) -> tuple[bool, str]:
        """Whether gVisor can be had here, and a sentence."""
        try:
            return True, (await self.runtime()).detail
        except TierUnavailableError as error:
            return False, str(error)
