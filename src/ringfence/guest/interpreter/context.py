"""One code context: a kernel, started anew when it was lost, and the cells that wait for it."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from ringfence.guest.interpreter import events
from ringfence.guest.interpreter.kernel import Kernel, KernelSpec
from ringfence.guest.interpreter.nursery import KernelStartError, NurseryClient
from ringfence.guest.interpreter.run import Run
from ringfence.guest.interpreter.saved import KernelState
from ringfence.guest.interpreter.saving import SaveError, save_kernel

INTERRUPT_GRACE = 5.0
"""Seconds a cell has to end after an interrupt; then its kernel is killed."""
OUTPUT_LIMIT = 20 * 1024 * 1024
"""Bytes a cell may print, to stdout and stderr together."""
RESULTS_LIMIT = 64 * 1024 * 1024
"""Bytes the results of a cell may have together."""

_MAX_REASON = 1000
NOT_RESTORED = "This context is a copy, but the variables of its kernel could not be restored."


@dataclass(frozen=True)
class Cell:
    """Code to run. exec_timeout: seconds, from when the cell starts to run; None for no limit."""

    code: str
    env: dict[str, str]
    exec_timeout: float | None = None


class Execution:
    """A cell that was handed to a context. `events` ends with ``end_of_execution``, always.

    failed_to_start: why there is no kernel, when that is so; set before any event comes.
    """

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.events: asyncio.Queue[events.Event] = asyncio.Queue()
        self.failed_to_start: str | None = None
        self.cancelled = asyncio.Event()

    def cancel(self) -> None:
        """Nobody waits for this cell any more: do not start it, or interrupt it."""
        self.cancelled.set()


class Context:
    """A context of E2B's: an id, a language, a directory and a state that lasts from cell to cell.

    state: that of another context's kernel, which the first kernel goes on from.
    """

    def __init__(
        self, context_id: str, nursery: NurseryClient, spec: KernelSpec, state: KernelState | None = None
    ) -> None:
        self.id = context_id
        self.spec = spec
        self._state = state
        self._settled = asyncio.Event()
        if state is None:
            self._settled.set()
        self._held: Kernel | None = None
        self.notes: list[str] = []
        self._nursery = nursery
        self._lock = asyncio.Lock()
        self._kernel: Kernel | None = None
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()

    def as_dict(self) -> dict[str, str]:
        """The context as the API shows it."""
        return {"id": self.id, "language": self.spec.language.name, "cwd": self.spec.cwd}

    async def start(self) -> None:
        """Start the kernel if there is none. Raises KernelStartError."""
        async with self._lock:
            await self._ensure_kernel()

    def submit(self, cell: Cell) -> Execution:
        """Queue a cell. It runs when those before it have ended, also when nobody reads its events."""
        execution = Execution(cell)
        task = asyncio.get_running_loop().create_task(self._execute(execution))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return execution

    def note(self, text: str) -> None:
        """Tell the user of the cell that runs something, on its stderr."""
        if self._kernel is not None:
            self._kernel.note(text)

    async def save(self, target: int, room: int, memory: int, deadline: float) -> int:
        """Write the kernel's state into the pipe `target`, and let the kernel stand still until `go_on`.

        How many bytes; zero when there is no state. As `saving.save_kernel`, which see for the rest.
        """
        try:
            await asyncio.wait_for(self._settled.wait(), max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            raise SaveError("it is still starting") from None
        kernel = self._kernel
        if kernel is None or not kernel.alive or not kernel.used:
            return 0
        self._held = kernel
        return await save_kernel(kernel, target, room, memory, deadline)

    async def go_on(self) -> None:
        """Let the kernel go on after `save`, however that ended."""
        kernel, self._held = self._held, None
        if kernel is not None:
            await kernel.go_on()

    @property
    def copied(self) -> bool:
        """Whether the state of another kernel waits to be loaded."""
        return self._state is not None

    @property
    def used(self) -> bool:
        """Whether there is a kernel that has run something."""
        return self._kernel is not None and self._kernel.alive and self._kernel.used

    async def restart(self) -> None:
        """A new kernel without the old one's state. A cell that runs meanwhile ends with an error that says
        so.
        """
        await self._end_kernel("the context was restarted")
        self._state = None
        self.notes.clear()
        await self.start()

    async def close(self) -> None:
        """End the kernel for good."""
        self._closed = True
        await self._end_kernel("the context was removed")

    async def _end_kernel(self, reason: str) -> None:
        kernel = self._kernel
        if kernel is None:
            return
        if self._lock.locked():
            kernel.kill(reason)
        async with self._lock:
            if self._kernel is kernel:
                await kernel.shut_down()
                self._kernel = None

    async def _ensure_kernel(self) -> tuple[Kernel, str | None]:
        """The kernel, and how the one before it was lost since the last cell, if it was."""
        if self._closed:
            raise KernelStartError("the context was removed")
        lost = None
        if self._kernel is not None and not self._kernel.alive:
            lost = await self._kernel.ended
            self._kernel = None
        if self._kernel is None:
            self._settled.clear()
            try:
                self._kernel = await self._start_kernel()
            finally:
                self._settled.set()
        return self._kernel, lost

    async def _start_kernel(self) -> Kernel:
        """A new kernel: the first one with the state that it is to go on from, when it can."""
        state, self._state = self._state, None
        if state is not None:
            try:
                kernel = await Kernel.start(self._nursery, self.spec, state)
            except KernelStartError as error:
                reason = str(error).strip()[-_MAX_REASON:]
                self.notes = [f"{NOT_RESTORED} Its Python starts afresh. The reason: {reason}"]
            else:
                self.notes = kernel.notes
                return kernel
        return await Kernel.start(self._nursery, self.spec)

    async def _execute(self, execution: Execution) -> None:
        queue = execution.events
        try:
            async with self._lock:
                if not execution.cancelled.is_set():
                    await self._execute_locked(execution)
        except KernelStartError as error:
            execution.failed_to_start = str(error)
            queue.put_nowait(events.error("KernelStartError", str(error)))
        except Exception as error:  # a mistake of ours must not look like a cell that ran
            queue.put_nowait(events.error("InternalError", f"{type(error).__name__}: {error}"))
            raise
        finally:
            queue.put_nowait(events.END)

    async def _execute_locked(self, execution: Execution) -> None:
        queue, cell = execution.events, execution.cell
        kernel, lost = await self._ensure_kernel()
        if lost is not None:
            note = f"The kernel of this context {lost} since the last cell; its variables are lost."
            queue.put_nowait(events.context_state("reset", note))
            queue.put_nowait(events.output("stderr", f"{note}\n"))
        for note in self.notes:
            if note.startswith(NOT_RESTORED):
                queue.put_nowait(events.context_state("lost", note))
            queue.put_nowait(events.output("stderr", f"{note}\n"))
        self.notes = []
        finished = asyncio.get_running_loop().create_future()
        run = Run(cell.code, cell.env, queue, OUTPUT_LIMIT, RESULTS_LIMIT, finished)
        limits = self.spec.limits
        mark = limits.mark() if limits else None
        # Not waited for: a kernel that does not read is interrupted like one that does not end.
        handing = asyncio.create_task(kernel.begin(run))
        try:
            timed_out = await self._watch(kernel, run, execution)
        finally:
            handing.cancel()
        ending = run.finished.result()
        if limits and mark:
            failed, told = run.error is not None or ending is not None, "memory limit" in (ending or "")
            for sentence in limits.since(mark, failed=failed, memory=not told):
                run.note(sentence)
        if ending is not None:
            self._kernel = None
            queue.put_nowait(_lost(self.spec.language.name, ending, timed_out))
            queue.put_nowait(events.context_state("lost", f"the kernel {ending}"))
        elif timed_out:
            queue.put_nowait(_timed_out(timed_out, run.error))

    async def _watch(self, kernel: Kernel, run: Run, execution: Execution) -> float | None:
        """Wait for the end of a run; interrupt it when nobody wants it any more or its time is up.

        Returns the time limit, in seconds, if that is what ended it.
        """
        cancelled = asyncio.create_task(execution.cancelled.wait())
        limit = execution.cell.exec_timeout
        try:
            ends: set[asyncio.Future[Any]] = {run.finished, cancelled}
            await asyncio.wait(ends, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if run.finished.done():
                return None
            run.hold_error = not cancelled.done()
            kernel.interrupt()
            await asyncio.wait({run.finished}, timeout=INTERRUPT_GRACE)
            if not run.finished.done():
                kernel.kill(f"the cell did not react to an interrupt within {INTERRUPT_GRACE:.0f} s")
                await run.finished
            return None if cancelled.done() else limit
        finally:
            cancelled.cancel()


def _timed_out(limit: float, error: events.Event | None) -> events.Event:
    return events.error(
        "TimeoutError",
        f"The cell ran longer than its limit of {limit:g} s and was interrupted. All variables are kept.",
        error["traceback"] if error is not None else "",
    )


def _lost(language: str, ending: str, timed_out: float | None) -> events.Event:
    """The error of a cell whose kernel ended before the cell did."""
    name = "TimeoutError" if timed_out else "KernelDied"
    if ending.endswith("the context was restarted"):
        name = "ContextRestarting"
    after = f" after its time limit of {timed_out:g} s" if timed_out else ""
    value = (
        f"The {language} process of this context {ending}{after}. All its variables are lost; "
        "the next cell starts with a new process."
    )
    return events.error(name, value)
