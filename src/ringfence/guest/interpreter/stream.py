"""The answer of ``POST /execute``: events as lines, as they come, until the end or the client is gone."""

import asyncio
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ringfence.guest.interpreter import events
from ringfence.guest.interpreter.context import Execution

KEEPALIVE_SECONDS = 5.0
_BATCH = 256


class ExecutionResponse(Response):
    """Streams an execution. When the client hangs up, the execution is cancelled."""

    media_type = "application/x-ndjson"

    def __init__(self, execution: Execution, first: events.Event | None) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._execution = execution
        self._first = first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the last one, while watching for the client to leave."""
        sending = asyncio.create_task(self._send_all(send))
        leaving = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            if not (sending.done() and not sending.cancelled() and sending.exception() is None):
                self._execution.cancel()
            await _end(sending, leaving)

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        batch = [self._first] if self._first is not None else []
        while True:
            body = b"".join(events.encode(event) for event in batch)
            ended = events.END in batch
            await send({"type": "http.response.body", "body": body, "more_body": not ended})
            if ended:
                return
            batch = await self._next()

    async def _next(self) -> list[events.Event]:
        """What has come, at least one event; a keepalive when nothing comes for a while."""
        queue = self._execution.events
        try:
            batch = [await asyncio.wait_for(queue.get(), KEEPALIVE_SECONDS)]
        except TimeoutError:
            return [events.KEEPALIVE]
        while not queue.empty() and len(batch) < _BATCH:
            batch.append(queue.get_nowait())
        return batch


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel the tasks and wait until they have ended, however they do."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
