"""Copying the state of a running kernel: asking it, and passing what it writes on to the host.

The kernel is user code: it may write anything, too much, too slowly or nothing, and it never gets hold of the
host's end. What it writes goes from one pipe into another without being looked at or copied (splice(2)).
"""

import asyncio
import contextlib
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ringfence.guest.interpreter.output import make_pipe
from ringfence.guest.waiting import readable, writable

if TYPE_CHECKING:
    from ringfence.guest.interpreter.kernel import Kernel

_CALL_SECONDS = 0.2
"""How often a kernel is called that does not answer: it may have been between two steps."""
_ABORT_SECONDS = 5.0
_CHUNK = 1 << 20
_POLL_SECONDS = 0.1


class SaveError(Exception):
    """The state of a kernel cannot be saved; the message says why, and what to do."""


@dataclass
class Forwarding:
    """Moves what comes out of the pipe `source` into the pipe `target`.

    room: the most bytes. deadline: monotonic time. It ends when `expected` bytes were moved, at the end of
    `source`, or when `stopped`.
    """

    source: int
    target: int
    room: int
    deadline: float
    moved: int = 0
    expected: int | None = None
    stopped: bool = False

    async def run(self) -> None:
        """Move until the end. Raises SaveError."""
        while not self._done():
            try:
                async with asyncio.timeout(_POLL_SECONDS):
                    await readable(self.source)
                    await writable(self.target)
            except TimeoutError:
                continue
            try:
                count = os.splice(self.source, self.target, _CHUNK, flags=os.SPLICE_F_NONBLOCK)
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise SaveError("the host has stopped reading its state") from None
            if count == 0:
                return
            self.moved += count
            if self.moved > self.room:
                raise SaveError(f"its state is larger than {self.room >> 20} MiB")
            await asyncio.sleep(0)

    def _done(self) -> bool:
        if self.expected is not None and self.moved >= self.expected:
            return True
        return self.stopped or time.monotonic() > self.deadline


class StateRequest:
    """One request to a kernel for its state; `heard` is told what the kernel says to it."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._begun: asyncio.Future[None] = loop.create_future()
        self._answer: asyncio.Future[int] = loop.create_future()
        self._answer.add_done_callback(_ignore)

    def heard(self, message: dict[str, Any]) -> None:
        """The kernel has begun, or is done. Raises what a message that is none can raise."""
        if not self._begun.done():
            self._begun.set_result(None)
        if message["event"] == "saved" and not self._answer.done():
            error = message.get("error")
            if error is not None:
                self._answer.set_exception(SaveError(str(error)[:1000]))
            else:
                self._answer.set_result(int(message["length"]))

    def ended(self, how: str) -> None:
        """The kernel has ended."""
        if not self._answer.done():
            self._answer.set_exception(SaveError(f"its process {how} while it was copied"))
        if not self._begun.done():
            self._begun.set_result(None)

    async def length(self, kernel: "Kernel", deadline: float) -> int:
        """How many bytes the kernel has written, when it has. Raises SaveError, at the deadline too."""
        while not self._begun.done():
            kernel.call()
            await asyncio.wait([self._begun], timeout=_CALL_SECONDS)
            if not self._begun.done() and time.monotonic() > deadline:
                raise SaveError(
                    "it runs code that cannot be stopped between two steps (a call into a library that takes "
                    "long); try again when that is done, or copy the files only (memory=false)"
                )
        await asyncio.wait([self._answer], timeout=max(0.0, deadline - time.monotonic()))
        if not self._answer.done():
            await kernel.send({"op": "abort"})
            kernel.call()
            await asyncio.wait([self._answer], timeout=_ABORT_SECONDS)
        if not self._answer.done():
            raise SaveError("its variables could not be copied in time")
        return self._answer.result()


async def save_kernel(kernel: "Kernel", target: int, room: int, memory: int, deadline: float) -> int:
    """Have `kernel` write its state into the pipe `target`; the number of bytes. Raises SaveError.

    It then stands still until `Kernel.go_on`. room: the most bytes it may write. memory: how many bytes of
    memory it may use for that. deadline: monotonic time.
    """
    source, given = make_pipe()
    forwarding = Forwarding(source, target, room, deadline + _ABORT_SECONDS)
    moving = asyncio.create_task(forwarding.run())
    try:
        try:
            request = await kernel.request_state(given, memory)
        finally:
            os.close(given)
        asking = asyncio.create_task(request.length(kernel, deadline))
        asking.add_done_callback(_ignore)  # nobody waits for it when the pipe fails first
        await asyncio.wait([asking, moving], return_when=asyncio.FIRST_COMPLETED)
        if moving.done():
            moving.result()
        length = forwarding.expected = await asking
        await moving
    finally:
        forwarding.stopped = True
        with contextlib.suppress(SaveError):
            await moving
        os.close(source)
    if forwarding.moved != length:
        raise SaveError("it did not write what it said it had written")
    return length


def _ignore(future: "asyncio.Future[int]") -> None:
    if not future.cancelled():
        future.exception()
