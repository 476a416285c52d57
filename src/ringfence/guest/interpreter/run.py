"""One cell on its way through a kernel, and what of its output is passed on."""

import asyncio
from dataclasses import dataclass

from ringfence.guest.interpreter import events


@dataclass
class Run:
    """One cell on its way through a kernel. `queue` takes its events; `finished` says how the run ended.

    The result of `finished` is None when the kernel says the cell is done, else the reason why it never will
    be.
    """

    code: str
    env: dict[str, str]
    queue: asyncio.Queue[events.Event]
    output_limit: int
    results_limit: int
    finished: asyncio.Future[str | None]
    silent: bool = False
    started: bool = False
    interrupted: bool = False
    hold_error: bool = False
    error: events.Event | None = None
    printed: int = 0
    dropped: int = 0
    shown: int = 0

    def allow(self, count: int) -> int:
        """How many of `count` more bytes of output may be passed on."""
        allowed = max(0, min(count, self.output_limit - self.printed))
        self.printed += allowed
        return allowed

    def over(self, dropped: int) -> None:
        """`dropped` bytes of output were not passed on; the first time, say so."""
        if not self.dropped:
            self.note(f"[the output limit of {self.output_limit} bytes is reached; the rest is dropped]")
        self.dropped += dropped

    def show(self, event: events.Event, size: int) -> None:
        """Pass on a result of about `size` bytes, unless the results of this cell are too large together."""
        if self.shown + size > self.results_limit:
            self.note(
                f"[a result of {size} bytes is dropped: the limit for a cell is {self.results_limit} bytes]"
            )
            return
        self.shown += size
        self.queue.put_nowait(event)

    def fail(self, error: events.Event) -> None:
        """The cell raised. With `hold_error`, the error is only kept: another one will tell why it ended."""
        self.error = error
        if not self.hold_error:
            self.queue.put_nowait(error)

    def note(self, text: str) -> None:
        """Tell the user something of our own, on stderr."""
        self.queue.put_nowait(events.output("stderr", f"{text}\n"))

    def finish(self, ending: str | None) -> None:
        """The run has ended: done (None), or never to be done."""
        if self.dropped:
            self.note(f"[{self.dropped} bytes of output were dropped]")
        if not self.finished.done():
            self.finished.set_result(ending)
