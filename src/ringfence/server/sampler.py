"""Samples the use of every sandbox in the background, for ``/sandboxes/{id}/metrics``."""

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from ringfence.core.errors import RingfenceError
from ringfence.server.records import Record, Sample
from ringfence.server.registry import Registry

if TYPE_CHECKING:
    from ringfence.engine.engine import Engine

logger = logging.getLogger(__name__)

INTERVAL = 5.0
"""Seconds between two samples of one sandbox."""
_TICK = 1.0


async def sample_forever(engine: "Engine", registry: Registry) -> None:
    """Keep sampling until cancelled. A new sandbox gets its first point within about a second."""
    while True:
        await asyncio.sleep(_TICK)
        horizon = time.time() - INTERVAL
        for record in registry.records():
            if record.paused:
                continue
            if not record.samples or record.samples[-1].at <= horizon:
                await _sample(engine, record)


async def _sample(engine: "Engine", record: Record) -> None:
    try:
        stats = await engine.stats(record.sandbox_id)
    except RingfenceError as error:
        logger.debug("no sample of %s: %s", record.sandbox_id, error)
        return
    now = time.time()
    before = record.samples[-1] if record.samples else None
    since = before.at if before else record.started_at
    used = stats.cpu_seconds - (before.stats.cpu_seconds if before else 0.0)
    share = max(0.0, used) / max(now - since, 1e-3)
    record.samples.append(Sample(now, 100.0 * share, stats))
