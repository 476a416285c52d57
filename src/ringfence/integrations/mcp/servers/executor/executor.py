"""The operations behind the tools, on sessions. Every method answers with a whole tool result or raises
`ToolError`.
"""

import asyncio
import base64
import binascii
import contextlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import httpx
from e2b import AuthenticationException, FileNotFoundException, SandboxException
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult

from ringfence.core.config import Settings
from ringfence.integrations.mcp.meta import META_KEY
from ringfence.integrations.mcp.servers.executor import files
from ringfence.integrations.mcp.servers.executor.cells import Cell, is_gone
from ringfence.integrations.mcp.servers.executor.commands import run_command
from ringfence.integrations.mcp.servers.executor.hostfiles import HostFiles, new_file
from ringfence.integrations.mcp.servers.executor.jobs import Job, run_job
from ringfence.integrations.mcp.servers.executor.output import size_text
from ringfence.integrations.mcp.servers.executor.reports import (
    Surroundings,
    as_result,
    cell_record,
    image_blocks,
    record_text,
)
from ringfence.integrations.mcp.servers.executor.sessions import Session, Sessions

_INTERRUPT_SECONDS = 25.0


class Beat(Protocol):
    """Tells the client that its call goes on."""

    source: Callable[[], str] | None

    def note(self, message: str) -> None:
        """Something is worth telling."""


class Executor:
    """All tools' work for one client."""

    def __init__(self, settings: Settings, host: HostFiles) -> None:
        self._settings = settings
        self._host = host
        self.sessions = Sessions(settings)

    async def aclose(self) -> None:
        """End every session."""
        await self.sessions.aclose()

    async def execute_code(
        self, code: str, session_id: str | None, timeout_s: float | None, background: bool, beat: Beat
    ) -> CallToolResult:
        """Run a cell and report on it; with `background` only start it."""
        session = await self.sessions.get(session_id, beat.note)
        exec_timeout = timeout_s or self._settings.exec_timeout
        cell = Cell(f"x_{secrets.token_hex(8)}", code, exec_timeout)
        job = Job(cell)
        job.task = asyncio.create_task(self._run(session, job))
        session.remember(job)
        if background:
            return await self._report(session, job)
        beat.source = cell.stdout.last_line
        try:
            await job.wait()
        except asyncio.CancelledError:
            job.interrupt()  # the client gave up: the cell stops, its variables stay
            raise
        return await self._report(session, job)

    async def _run(self, session: Session, job: Job) -> None:
        cell = job.cell
        try:
            async with session.lock:
                cell.started = time.monotonic()
                if cell.exec_timeout + 60 > self._settings.lease:
                    await self.sessions.extend(session, cell.exec_timeout + 60)
                await run_job(job, session.sandbox, session.watch, session.last_count)
                if cell.execution_count is not None:
                    session.last_count = cell.execution_count
        except asyncio.CancelledError:
            cell.status = "interrupted"
            if not cell.stop_asked:
                raise
        if cell.state == "reset":
            session.restarted = True
        if cell.status == "lost":
            self.sessions.lost(session, cell.state_reason)

    async def _report(self, session: Session, job: Job) -> CallToolResult:
        if job.failure is not None:
            raise ToolError(f"The code could not be run: {job.failure}") from job.failure
        if job.task is not None and job.task.done() and not job.task.cancelled():
            job.task.result()  # an error of ours is not hidden
        where = await self._surroundings(session)
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
        )

    async def _surroundings(self, session: Session) -> Surroundings:
        backend = await self.sessions.backend()
        news, session.news = session.news, ""
        isolation = (backend.isolation or {}).get("level")
        return Surroundings(session.handle, backend.describe(), isolation, news, session.restarted)

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

    async def create_session(self, envs: dict[str, str], beat: Beat) -> CallToolResult:
        """A new session; its handle is in the text."""
        session = await self.sessions.create(envs, beat.note)
        backend = await self.sessions.backend()
        record = {
            "session_id": session.handle,
            "backend": backend.describe(),
            "isolation": (backend.isolation or {}).get("level"),
            "template": backend.template or "default",
            "lease_s": self._settings.lease,
        }
        text = (
            f"Session {session.handle} is ready ({backend.describe()}). Pass it as session_id. "
            f"It ends after {self._settings.lease} s without use, or with close_session."
        )
        result = self._plain(text, record)
        # The whole table is for programs; a model has enough of the level.
        layers = (backend.isolation or {}).get("layers", [])
        return result.model_copy(update={"meta": {META_KEY: {**record, "isolation_layers": layers}}})

    async def list_sessions(self) -> CallToolResult:
        """Every session of this client."""
        rows: list[dict[str, Any]] = []
        for session, is_default in self.sessions.all():
            rows.append(
                {
                    "session_id": session.handle,
                    "default": is_default,
                    "running": [job.cell.execution_id for job in session.running()],
                    "executions": session.last_count,
                    "idle_s": round(time.time() - session.used),
                }
            )
        lines = [
            f"{row['session_id']}{' (default)' if row['default'] else ''}: idle {row['idle_s']} s, "
            f"{len(row['running'])} running{': ' + ', '.join(row['running']) if row['running'] else ''}"
            for row in rows
        ]
        return self._plain("\n".join(lines) or "There are no sessions.", {"sessions": rows})

    async def close_session(self, session_id: str | None) -> CallToolResult:
        """End a session and everything in it."""
        closed = await self.sessions.close(session_id)
        if not closed and session_id is not None:
            raise ToolError("There is no such session.")
        text = (
            "The session is closed; its variables and files are gone."
            if closed
            else "There was no session to close."
        )
        return self._plain(text, {"closed": closed})

    async def run_command(
        self, command: str, session_id: str | None, timeout_s: float | None, cwd: str | None, beat: Beat
    ) -> CallToolResult:
        """A shell command in the session's sandbox, beside its Python."""
        session = await self.sessions.get(session_id, beat.note)
        limit = timeout_s or self._settings.exec_timeout
        async with self._trouble(session):
            text, record = await run_command(session.sandbox, command, limit, cwd, session.watch, beat)
        return self._plain(text, record | {"session_id": session.handle})

    async def list_files(
        self, session_id: str | None, path: str, pattern: str | None, depth: int, limit: int
    ) -> CallToolResult:
        """A directory of the sandbox."""
        session = await self.sessions.get(session_id)
        async with self._trouble(session):
            text, record = await files.list_entries(session.sandbox, path, pattern, depth, limit)
        return self._plain(text, record)

    async def read_file(self, session_id: str | None, path: str, offset: int, limit: int) -> CallToolResult:
        """A page of a file of the sandbox, or a picture."""
        session = await self.sessions.get(session_id)
        async with self._trouble(session):
            text, record, images = await files.read_page(session.sandbox, path, offset, limit)
        return as_result(text, record, structured=self._settings.mcp_structured, images=images)

    async def write_file(self, session_id: str | None, path: str, content: str) -> CallToolResult:
        """Write text to a file of the sandbox."""
        return await self._write(session_id, path, content.encode())

    async def upload_file(
        self,
        session_id: str | None,
        path: str | None,
        content: str | None,
        content_base64: str | None,
        local_path: str | None,
    ) -> CallToolResult:
        """Put a file into the sandbox, from exactly one source."""
        if sum(source is not None for source in (content, content_base64, local_path)) != 1:
            raise ToolError("Give exactly one of content, content_base64 and local_path.")
        if local_path is not None:
            return await self._upload(session_id, path, self._host.to_read(local_path))
        if path is None:
            raise ToolError("Give path: where the file goes in the sandbox.")
        return await self._write(session_id, path, _decoded(content, content_base64))

    async def _upload(self, session_id: str | None, path: str | None, source: Path) -> CallToolResult:
        session = await self.sessions.get(session_id)
        with source.open("rb") as file:
            return await self._put(session, path or source.name, file, os.fstat(file.fileno()).st_size)

    async def _write(self, session_id: str | None, path: str, data: bytes) -> CallToolResult:
        return await self._put(await self.sessions.get(session_id), path, data, len(data))

    async def _put(self, session: Session, path: str, data: Any, size: int) -> CallToolResult:
        async with self._trouble(session):
            written = await session.sandbox.files.write(path, data)
            await session.watch.look(session.sandbox)
        return self._plain(
            f"{written.path} written ({size_text(size)}).", {"path": written.path, "bytes": size}
        )

    async def download_file(
        self, session_id: str | None, path: str, local_path: str | None, overwrite: bool
    ) -> CallToolResult:
        """Bring a file out of the sandbox: to a file of the host, or as content."""
        target = self._host.to_write(local_path, overwrite=overwrite) if local_path is not None else None
        session = await self.sessions.get(session_id)
        async with self._trouble(session):
            info = await session.sandbox.files.get_info(path)
            record = {"path": info.path, "bytes": info.size}
            if target is None:
                content = await files.as_content(session.sandbox, info.path, info.size)
                text = f"{info.path} ({size_text(info.size)})"
                return as_result(text, record, structured=self._settings.mcp_structured, extra=content)
            size = await self._save(session, info.path, target, overwrite)
        name = PurePosixPath(info.path).name
        return self._plain(
            f"{name} saved as {target} ({size_text(size)}).",
            record | {"local_path": str(target), "bytes": size},
        )

    async def _save(self, session: Session, path: str, target: Path, overwrite: bool) -> int:
        size = 0
        try:
            with new_file(target, overwrite=overwrite) as file:
                async for chunk in await session.sandbox.files.read(path, format="stream"):
                    size += file.write(chunk)
        except FileExistsError as error:
            raise ToolError(
                f"{target} exists; give another name, or overwrite=true to replace it."
            ) from error
        except OSError as error:
            raise ToolError(f"{target} cannot be written: {error.strerror}") from error
        return size

    @contextlib.asynccontextmanager
    async def _trouble(self, session: Session) -> AsyncIterator[None]:
        """Turn the SDK's errors into messages for the model; a sandbox that is gone ends its session."""
        try:
            yield
        except (SandboxException, AuthenticationException, httpx.HTTPError) as error:
            certain = isinstance(error, FileNotFoundException | AuthenticationException)
            if not certain and await is_gone(session.sandbox):
                why = "its sandbox ended (killed, out of memory, or its lease ran out)"
                self.sessions.lost(session, why)
                raise ToolError(f"The session was lost: {why}. The next call starts a new one.") from error
            raise ToolError(str(error) or type(error).__name__) from error

    def _plain(self, text: str, record: dict[str, Any]) -> CallToolResult:
        return as_result(text, record, structured=self._settings.mcp_structured)


def _decoded(content: str | None, content_base64: str | None) -> bytes:
    if content is not None:
        return content.encode()
    try:
        return base64.b64decode(content_base64 or "", validate=True)
    except binascii.Error as error:
        raise ToolError(f"content_base64 is not base64: {error}") from error
