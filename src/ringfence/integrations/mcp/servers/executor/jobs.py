"""A job: a cell that runs in a task of its own, so that it can outlive the call that started it."""

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field

import httpx
from e2b import AuthenticationException, SandboxException
from e2b_code_interpreter import AsyncSandbox

from ringfence.integrations.mcp.servers.executor.cells import Cell, run_cell
from ringfence.integrations.mcp.servers.executor.filewatch import Changes, FileWatch
from ringfence.integrations.mcp.servers.executor.images import Picture, fit_pictures
from ringfence.integrations.mcp.servers.executor.output import Output
from ringfence.integrations.mcp.servers.executor.reports import STREAM_LIMITS, Spill

_log = logging.getLogger(__name__)


@dataclass
class Job:
    """A cell, the task that runs it, and what was found out about it afterwards.

    failure: the connection failed in a way that says nothing about the code; None when all went well.
    """

    cell: Cell
    pictures: list[Picture] = field(default_factory=list)
    changes: Changes = field(default_factory=Changes)
    spill: Spill = field(default_factory=lambda: Spill({}))
    failure: Exception | None = None
    task: "asyncio.Task[None] | None" = None

    def done(self) -> bool:
        """Whether the cell has ended and everything about it is known."""
        return self.task is not None and self.task.done()

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait for the end, at most `seconds`; whether it has come. Giving up does not touch the job."""
        if self.task is None:
            return False
        await asyncio.wait({self.task}, timeout=seconds)
        return self.task.done()

    def interrupt(self) -> None:
        """Interrupt the cell; the job then finds out what became of the session's state, and ends. A cell
        that has ended by itself, and is being reported on, is left alone.
        """
        asked = self.cell.stop_asked or self.cell.status is not None
        if self.task is not None and not self.done() and not asked:
            self.cell.stop_asked = True
            self.task.cancel()

    def abandon(self, why: str) -> None:
        """End the job at once; its sandbox is going away."""
        if self.task is not None and not self.done():
            self.cell.state, self.cell.state_reason = "lost", why
            self.task.cancel()


async def run_job(job: Job, sandbox: AsyncSandbox, watch: FileWatch, last_count: int) -> None:
    """Run the job's cell, then gather its pictures, its changes to files and its long output."""
    cell = job.cell
    try:
        await run_cell(sandbox, cell, last_count)
    except (SandboxException, AuthenticationException, httpx.HTTPError) as error:
        job.failure = error
        return
    if cell.status == "lost":
        return
    directory = f"/tmp/ringfence/{cell.execution_id}"  # noqa: S108 - in the sandbox
    job.pictures = await fit_pictures(sandbox, cell.results, directory)
    job.spill = await spill_output(sandbox, directory, {"stdout": cell.stdout, "stderr": cell.stderr})
    job.changes = await watch.look(sandbox)


async def spill_output(sandbox: AsyncSandbox, directory: str, streams: dict[str, Output]) -> Spill:
    """Write streams that are too long for a result to files in the sandbox, where `read_file` finds them."""
    paths: dict[str, str] = {}
    for name, stream in streams.items():
        if stream.total <= STREAM_LIMITS[name]:
            continue
        path = f"{directory}/{name}.txt"
        with contextlib.suppress(SandboxException, httpx.HTTPError):
            await sandbox.files.write(path, stream.text)
            paths[name] = path
    return Spill(paths)
