"""Running cells and commands, in the call or in the background."""

import asyncio
import secrets
import time

from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult

from ringfence.integrations.mcp.servers.executor.base import Beat, Tools, usage_of
from ringfence.integrations.mcp.servers.executor.cells import KERNEL_ENDED, Cell
from ringfence.integrations.mcp.servers.executor.commands import run_command
from ringfence.integrations.mcp.servers.executor.jobs import Job, run_job
from ringfence.integrations.mcp.servers.executor.journal import OnLoss
from ringfence.integrations.mcp.servers.executor.notebook import cell_outputs
from ringfence.integrations.mcp.servers.executor.packages import (
    INSTALL_SECONDS,
    Installation,
    check_packages,
    install,
    loaded_before,
)
from ringfence.integrations.mcp.servers.executor.reports import (
    Surroundings,
    as_result,
    cell_record,
    image_blocks,
    record_text,
)
from ringfence.integrations.mcp.servers.executor.session import Session

_INTERRUPT_SECONDS = 25.0
_SLACK_SECONDS = 60.0
"""How much longer the sandbox lives than what runs in it may take."""


class ExecutionTools(Tools):
    """execute_code and what belongs to it."""

    async def execute_code(
        self,
        code: str,
        session_id: str | None,
        timeout_s: float | None,
        background: bool,
        on_loss: OnLoss | None,
        beat: Beat,
    ) -> CallToolResult:
        """Run a cell and report on it. One that runs on in the background, because that was asked for or
        because it outlives what clients wait for, is reported on by `get_execution`.
        """
        session = await self.sessions.get(session_id, beat.note, on_loss=on_loss)
        exec_timeout = timeout_s or self._settings.exec_timeout
        cell = Cell(f"x_{secrets.token_hex(8)}", code, exec_timeout)
        job = Job(cell)
        job.task = asyncio.create_task(self._run(session, job))
        session.remember(job)
        if background:
            return await self._report(session, job)
        beat.source = cell.stdout.last_line
        try:
            await job.wait(self._settings.mcp_patience)
        except asyncio.CancelledError:
            job.interrupt()  # the client gave up: the cell stops, its variables stay
            raise
        return await self._report(session, job)

    async def _run(self, session: Session, job: Job) -> None:
        cell = job.cell
        try:
            async with session.lock:
                cell.started = time.monotonic()
                await self.sessions.extend(session, cell.exec_timeout + _SLACK_SECONDS)
                await run_job(job, session.sandbox, session.watch, session.last_count)
                if cell.execution_count is not None:
                    session.last_count = cell.execution_count
        except asyncio.CancelledError:
            cell.status = cell.status or "interrupted"
            if not cell.stop_asked:
                raise
        finally:
            _write_down(session, job)
            session.usage.ran(cell.duration, cell.stdout.total + cell.stderr.total)
        if cell.state == "reset":
            session.restarted = True
        if cell.status == "lost":
            self.sessions.lost(session, cell.state_reason)

    async def _report(self, session: Session, job: Job) -> CallToolResult:
        if job.failure is not None:
            raise ToolError(f"The code could not be run: {job.failure}") from job.failure
        if job.task is not None and job.task.done() and not job.task.cancelled():
            job.task.result()  # an error of ours is not hidden
        where = _surroundings(session)
        cell = job.cell
        if cell.status is None:
            cell.duration = time.monotonic() - cell.started
        record = cell_record(cell, job.pictures, job.changes, job.spill, where)
        if cell.status == "ok":
            session.restarted = False
        return as_result(
            record_text(record),
            record,
            structured=self._settings.mcp_structured,
            images=image_blocks(job.pictures),
            usage=usage_of(session, cell.duration, cell.stdout.total + cell.stderr.total),
        )

    async def get_execution(self, execution_id: str, wait_s: float, beat: Beat) -> CallToolResult:
        """The state of a job, or its report, after waiting for its end for at most `wait_s` seconds."""
        found = self.sessions.job(execution_id)
        if found is None:
            raise ToolError(
                "There is no such execution (any more). Only the last 20 of each session are kept."
            )
        session, job = found
        beat.source = job.cell.stdout.last_line
        await job.wait(wait_s)
        return await self._report(session, job)

    async def interrupt_execution(self, session_id: str | None, execution_id: str | None) -> CallToolResult:
        """Interrupt one job, or all of a session; variables are kept."""
        if execution_id is not None:
            found = self.sessions.job(execution_id)
            if found is None:
                raise ToolError("There is no such execution (any more).")
            session, jobs = found[0], [found[1]]
        else:
            session = await self.sessions.get(session_id)
            jobs = session.running()
        running = [job for job in jobs if not job.done()]
        for job in running:
            job.interrupt()
        for job in running:
            await job.wait(_INTERRUPT_SECONDS)
        if len(running) == 1:
            return await self._report(session, running[0])
        return self._plain(
            f"{len(running)} running executions were interrupted.", {"interrupted": len(running)}
        )

    async def run_command(
        self, command: str, session_id: str | None, timeout_s: float | None, cwd: str | None, beat: Beat
    ) -> CallToolResult:
        """A shell command in the session's sandbox, beside its Python."""
        session = await self.sessions.get(session_id, beat.note)
        limit = timeout_s or self._settings.exec_timeout
        await self.sessions.extend(session, limit + _SLACK_SECONDS)
        async with self._trouble(session):
            text, record = await run_command(session.sandbox, command, limit, cwd, session.watch, beat)
        status = {0: "ok", None: "timeout"}.get(record.get("exit_code"), "error")
        session.journal.add_command(command, cwd, status, limit)
        output = sum(record.get(f"{n}_total_chars", len(record.get(n, ""))) for n in ("stdout", "stderr"))
        session.usage.ran(record["duration_s"], output)
        return self._written(session, text, record, usage_of(session, record["duration_s"], output))

    async def install_packages(
        self, packages: list[str], session_id: str | None, beat: Beat
    ) -> CallToolResult:
        """Install packages with pip in the session's sandbox."""
        names = check_packages(packages)
        session = await self.sessions.get(session_id, beat.note)
        beat.note("pip install " + " ".join(names))
        async with self._trouble(session), session.lock:
            await self.sessions.extend(session, INSTALL_SECONDS + _SLACK_SECONDS)
            done = await install(session.sandbox, names)
            stale = await loaded_before(session.sandbox, done.installed)
        if done.ok:
            session.journal.add_packages(names)
        record = {"status": "ok" if done.ok else "error", "installed": done.installed, "loaded": stale}
        return self._written(session, _installation_text(done, stale), record)


def _surroundings(session: Session) -> Surroundings:
    backend = session.backend
    news, session.news = session.news, ""
    return Surroundings(session.handle, backend.describe(), backend.isolation_level, news, session.restarted)


def _write_down(session: Session, job: Job) -> None:
    """Keep the ended cell in the session's journal."""
    cell = job.cell
    session.journal.add_cell(
        cell.code,
        cell.status or "unknown",
        exec_timeout=cell.exec_timeout,
        execution_count=cell.execution_count,
        outputs=cell_outputs(cell),
        ends_python=cell.error is not None and cell.error.name in KERNEL_ENDED,
    )


def _installation_text(done: Installation, stale: list[str]) -> str:
    if not done.ok:
        hint = ""
        if done.offline:
            hint = (
                "\n\nhint: the sandbox has no network access to a package index. Upload a wheel "
                "(upload_file) and install its path, or use what is installed."
            )
        return f"status: error\n\n{done.text}{hint}"
    if not done.installed:
        return "All of it was installed already."
    text = "Installed: " + " ".join(done.installed)
    if stale:
        text += (
            f"\n\nhint: {', '.join(stale)} was imported before in another version. Restart Python to use the "
            "new one (execute_code: `import os; os._exit(0)`; variables are lost, files are kept)."
        )
    return text
