"""Progress for a running call: what it last said, or that it goes on, a few times a minute and never
faster than a client reads.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
from mcp.server.mcpserver import Context

_TICK = 0.5
_SILENCE = 3.0


class Heartbeat:
    """Sends the newest message at most twice a second, and a sign of life every few seconds.

    source: gives the newest line of output, for as long as something runs.
    """

    def __init__(self, ctx: Context[Any, Any]) -> None:
        self._ctx = ctx
        self._started = time.monotonic()
        self._note = ""
        self._sent = ""
        self.source: Callable[[], str] | None = None

    def note(self, message: str) -> None:
        """Something is worth telling; only the newest is sent."""
        self._note = message

    async def run(self) -> None:
        """Send until cancelled."""
        last = self._started
        while True:
            await asyncio.sleep(_TICK)
            now = time.monotonic()
            message = (self.source() if self.source is not None else "") or self._note
            if message == self._sent and now - last < _SILENCE:
                continue
            self._sent, last = message, now
            elapsed = now - self._started
            text = f"{elapsed:.0f} s: {message}" if message else f"running for {elapsed:.0f} s"
            try:
                await self._ctx.report_progress(round(elapsed, 2), None, text)
            except (anyio.ClosedResourceError, anyio.BrokenResourceError):
                return  # the client has gone; the call is about to be cancelled


@contextlib.asynccontextmanager
async def heartbeat(ctx: Context[Any, Any]) -> AsyncIterator[Heartbeat]:
    """A heartbeat for as long as the context lasts. A client that does not listen cannot hold up the call."""
    beat = Heartbeat(ctx)
    task = asyncio.create_task(beat.run())
    try:
        yield beat
    finally:
        task.cancel()
