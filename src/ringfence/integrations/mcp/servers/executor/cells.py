"""Running one cell: collect what it says, keep its time, and find out what became of the session's state."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Literal

import httpx
from e2b import SandboxException
from e2b_code_interpreter import AsyncSandbox, ExecutionError, OutputMessage, Result

from ringfence.integrations.mcp.servers.executor.output import Output

Status = Literal["ok", "error", "timeout", "interrupted", "output_limit", "lost"]
State = Literal["preserved", "reset", "lost", "unknown"]

OUTPUT_CEILING = 256 * 1024 * 1024
"""Characters after which a cell that writes without end is interrupted: the SDK holds all of it in memory."""
_PROBE_SECONDS = 15.0
# What the code interpreter calls a kernel that ended under a cell. The next cell runs in a new one.
KERNEL_ENDED = frozenset(
    [
        "KernelDied",
        "KernelDiedError",
        "ContextRestarting",
        "UnexpectedEndOfExecution",
        "WebSocketError",
        "ExecutionAborted",
    ]
)


@dataclass
class Cell:
    """One execution, while it runs and afterwards.

    exec_timeout: seconds after which the cell is interrupted.
    state: what became of variables and imports; `state_reason` says why when they were not preserved.
    stop_asked: somebody asked for the cell to be interrupted; it is not the whole program that ends.
    execution_count: the kernel's number of the cell, from 1; it starts again when the kernel does.
    """

    execution_id: str
    code: str
    exec_timeout: float
    status: Status | None = None
    stdout: Output = field(default_factory=Output)
    stderr: Output = field(default_factory=Output)
    results: list[Result] = field(default_factory=list)
    error: ExecutionError | None = None
    execution_count: int | None = None
    state: State = "preserved"
    state_reason: str = ""
    started: float = field(default_factory=time.monotonic)
    duration: float = 0.0
    stop_asked: bool = False

    def take_stdout(self, message: OutputMessage) -> None:
        """A piece of standard output arrived."""
        self._take(self.stdout, message.line)

    def take_stderr(self, message: OutputMessage) -> None:
        """A piece of standard error arrived."""
        self._take(self.stderr, message.line)

    def _take(self, stream: Output, text: str) -> None:
        stream.append(text)
        if self.stdout.total + self.stderr.total > OUTPUT_CEILING:
            raise OutputCeilingError

    def take_error(self, error: ExecutionError) -> None:
        """The cell raised."""
        self.error = error


class OutputCeilingError(Exception):
    """A cell wrote more than `OUTPUT_CEILING`."""


async def run_cell(sandbox: AsyncSandbox, cell: Cell, last_count: int) -> None:
    """Run `cell` to its end, whatever that is; the outcome is in the cell.

    Dropping the stream is what interrupts a cell: the code interpreter notices and keeps the variables.
    `last_count` is the execution count of the session's last cell. Errors of the connection that do not mean
    that the sandbox is gone are raised.
    """
    try:
        async with asyncio.timeout(cell.exec_timeout):
            execution = await sandbox.run_code(
                cell.code,
                on_stdout=cell.take_stdout,
                on_stderr=cell.take_stderr,
                on_result=cell.results.append,
                on_error=cell.take_error,
                timeout=0,  # ours, above, is the one deadline
            )
    except TimeoutError:
        cell.status = "timeout"
        await _settle(sandbox, cell, last_count)
    except OutputCeilingError:
        cell.status = "output_limit"
        await _settle(sandbox, cell, last_count)
    except asyncio.CancelledError:
        cell.status = "interrupted"
        if not cell.stop_asked:
            raise
        await _settle(sandbox, cell, last_count)
    except (SandboxException, httpx.HTTPError) as error:
        await _judge_lost(sandbox, cell, error)
    else:
        cell.execution_count = execution.execution_count
        cell.status = "error" if execution.error else "ok"
        _judge_state(cell, last_count)
    finally:
        cell.duration = time.monotonic() - cell.started


def _judge_state(cell: Cell, last_count: int) -> None:
    if cell.error is not None and cell.error.name in KERNEL_ENDED:
        cell.state, cell.state_reason = "reset", cell.error.value or "the Python process ended"
    elif cell.execution_count is not None and cell.execution_count <= last_count:
        cell.state = "reset"
        cell.state_reason = (
            "Python was restarted before this cell; variables from earlier cells are gone, files are kept"
        )


async def _settle(sandbox: AsyncSandbox, cell: Cell, last_count: int) -> None:
    """After an interruption: wait until the kernel answers again, and see whether it is still the same
    one.
    """
    try:
        async with asyncio.timeout(_PROBE_SECONDS):
            probe = await sandbox.run_code("pass", timeout=0)
    except (TimeoutError, SandboxException, httpx.HTTPError) as error:
        if await is_gone(sandbox):
            cell.state, cell.state_reason = "lost", "the sandbox ended"
        else:
            cell.state = "unknown"
            cell.state_reason = (
                f"Python does not react to the interruption ({type(error).__name__}); close the session"
            )
        return
    cell.execution_count = probe.execution_count
    if probe.execution_count is not None and probe.execution_count <= last_count:
        cell.state, cell.state_reason = "reset", "Python did not react to the interruption and was restarted"


async def _judge_lost(sandbox: AsyncSandbox, cell: Cell, error: Exception) -> None:
    if not await is_gone(sandbox):
        raise error
    cell.status = "lost"
    cell.state = "lost"
    cell.state_reason = "the sandbox ended while the code ran (killed, out of memory, or its lease ran out)"


async def is_gone(sandbox: AsyncSandbox) -> bool:
    """Whether the sandbox certainly does not exist any more; False when the backend does not answer."""
    try:
        return not await sandbox.is_running(request_timeout=5)
    except (SandboxException, httpx.HTTPError):
        return False
