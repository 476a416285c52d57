"""Sessions: a sandbox, its Python state, and the unguessable handle by which a client names it."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import httpx
from e2b import (
    AuthenticationException,
    RateLimitException,
    SandboxException,
)
from e2b_code_interpreter import AsyncSandbox
from mcp.server.mcpserver.exceptions import ToolError

from ringfence.core.config import Settings
from ringfence.core.errors import RingfenceError
from ringfence.integrations.backend import Backend, open_backend
from ringfence.integrations.mcp.servers.executor.filewatch import FileWatch
from ringfence.integrations.mcp.servers.executor.jobs import Job

_log = logging.getLogger(__name__)

Notify = Callable[[str], None]
MAX_SESSIONS = 16
_JOBS_KEPT = 20
_ENDED_KEPT = 64
_CLOSING_SECONDS = 8.0


@dataclass
class Session:
    """One sandbox and what is known of it.

    lock: held by what runs in the session; one thing at a time.
    last_count: the kernel's number of the last cell.
    restarted: Python was restarted and the model may not have noticed; used for hints until names work again.
    news: a sentence for the next result (why this session is a new one).
    """

    handle: str
    sandbox: AsyncSandbox
    created: float = field(default_factory=time.time)
    used: float = field(default_factory=time.time)
    renewed: float = field(default_factory=time.monotonic)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    watch: FileWatch = field(default_factory=FileWatch)
    last_count: int = 0
    restarted: bool = False
    news: str = ""
    jobs: "OrderedDict[str, Job]" = field(default_factory=OrderedDict)

    def remember(self, job: Job) -> None:
        """Keep the job, so that it can be asked for; the oldest finished ones are forgotten."""
        self.jobs[job.cell.execution_id] = job
        for execution_id, old in list(self.jobs.items()):
            if len(self.jobs) > _JOBS_KEPT and old.done():
                del self.jobs[execution_id]

    def running(self) -> list[Job]:
        """The jobs that have not ended."""
        return [job for job in self.jobs.values() if not job.done()]


class Sessions:
    """All sessions of one client, and the backend they live on; both are made at the first use."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._sessions: dict[str, Session] = {}
        self._ended: OrderedDict[str, str] = OrderedDict()
        self._default: asyncio.Task[Session] | None = None
        self._default_news = ""
        self._backend: asyncio.Task[Backend] | None = None
        self._stack = contextlib.AsyncExitStack()
        self._notify: Notify | None = None

    async def backend(self, notify: Notify | None = None) -> Backend:
        """The backend, started if need be. `notify` is told about a start that takes longer than a second."""
        self._notify = notify or self._notify
        if self._backend is not None and self._backend.done() and self._is_dead(self._backend):
            await self._lose_everything()
        if self._backend is None:
            self._backend = asyncio.create_task(self._open())
        try:
            # Shielded: a client that gives up while a template is built does not stop the building.
            return await asyncio.shield(self._backend)
        except RingfenceError as error:
            raise ToolError(f"No sandbox is available: {error}") from error

    async def _open(self) -> Backend:
        backend = open_backend(self._settings, progress=self._tell)
        return await self._stack.enter_async_context(backend)

    def _tell(self, message: str) -> None:
        if self._notify is not None:
            self._notify(message)

    @staticmethod
    def _is_dead(task: "asyncio.Task[Backend]") -> bool:
        return task.cancelled() or task.exception() is not None or not task.result().running()

    async def _lose_everything(self) -> None:
        for session in list(self._sessions.values()):
            self.lost(session, "the sandbox server ended")
        self._backend = None
        stack, self._stack = self._stack, contextlib.AsyncExitStack()
        await stack.aclose()

    async def get(self, handle: str | None, notify: Notify | None = None) -> Session:
        """The session named `handle`, or the default one (made at its first use). Its lease is renewed."""
        backend = await self.backend(notify)
        if handle is None:
            session = await self._get_default(backend)
        else:
            found = self._sessions.get(handle)
            if found is None:
                raise ToolError(self._unknown(handle))
            session = found
        await self._renew(session)
        return session

    def _unknown(self, handle: str) -> str:
        why = self._ended.get(handle)
        if why is not None:
            return f"This session has ended: {why}. Call create_session for a new one, or omit session_id."
        return "There is no such session. Call create_session for a new one, or omit session_id."

    async def _get_default(self, backend: Backend) -> Session:
        if self._default is not None and self._default.done() and not self._is_live(self._default):
            self._default = None
        if self._default is None:
            self._default = asyncio.create_task(self._create(backend, {}, self._default_news))
            self._default_news = ""
        return await asyncio.shield(self._default)

    def _is_live(self, task: "asyncio.Task[Session]") -> bool:
        if task.cancelled() or task.exception() is not None:
            return False
        return task.result().handle in self._sessions

    async def create(self, envs: Mapping[str, str], notify: Notify | None = None) -> Session:
        """A new session with a sandbox of its own."""
        backend = await self.backend(notify)
        return await asyncio.shield(asyncio.create_task(self._create(backend, envs, "")))

    async def _create(self, backend: Backend, envs: Mapping[str, str], news: str) -> Session:
        if len(self._sessions) >= MAX_SESSIONS:
            raise ToolError(
                f"There are {MAX_SESSIONS} sessions already; close one first (list_sessions shows them)."
            )
        try:
            sandbox = await AsyncSandbox.create(
                template=backend.template,
                timeout=self._settings.lease,
                envs=dict(envs),
                metadata={"ringfence.client": "mcp"},
                **backend.sdk_options(),
            )
        except (SandboxException, AuthenticationException, RateLimitException, httpx.HTTPError) as error:
            raise ToolError(f"No sandbox could be created on {backend.describe()}: {error}") from error
        session = Session(handle=f"s_{secrets.token_hex(16)}", sandbox=sandbox, news=news)
        self._sessions[session.handle] = session
        await session.watch.look(sandbox)
        return session

    async def _renew(self, session: Session) -> None:
        session.used = time.time()
        if time.monotonic() - session.renewed < self._settings.lease / 4:
            return
        await self.extend(session, self._settings.lease)

    async def extend(self, session: Session, seconds: float) -> None:
        """See to it that the sandbox lives for `seconds` from now, and longer if the lease says so."""
        seconds = max(seconds, self._settings.lease)
        try:
            await session.sandbox.set_timeout(int(seconds))
            session.renewed = time.monotonic()
        except SandboxException:
            # It has ended, or will say so itself when it is used next.
            _log.info("the lease of sandbox %s could not be renewed", session.sandbox.sandbox_id)

    def lost(self, session: Session, why: str) -> None:
        """The session's sandbox is gone: forget it, and remember why."""
        if self._sessions.pop(session.handle, None) is None:
            return
        self._remember_end(session, why)
        if self._default is not None and self._default.done() and not self._is_live(self._default):
            self._default = None
            self._default_news = f"This is a new session, because the one before has ended: {why}."

    def _remember_end(self, session: Session, why: str) -> None:
        self._ended[session.handle] = why
        while len(self._ended) > _ENDED_KEPT:
            self._ended.popitem(last=False)

    async def close(self, handle: str | None) -> bool:
        """End a session (the default one for None) and its sandbox; False when there is none."""
        if handle is None:
            if self._default is None:
                return False
            handle = (await asyncio.shield(self._default)).handle
        session = self._sessions.pop(handle, None)
        if session is None:
            return False
        self._remember_end(session, "it was closed")
        if self._default is not None and self._default.done() and not self._is_live(self._default):
            self._default = None
        await self._kill(session)
        return True

    async def _kill(self, session: Session) -> None:
        for job in session.running():
            job.abandon()
        try:
            await session.sandbox.kill()
        except (SandboxException, httpx.HTTPError) as error:
            _log.warning("sandbox %s could not be ended: %s", session.sandbox.sandbox_id, error)

    def job(self, execution_id: str) -> tuple[Session, Job] | None:
        """The job with this id, and its session; None when there is none (any more)."""
        for session in self._sessions.values():
            if (job := session.jobs.get(execution_id)) is not None:
                return session, job
        return None

    def all(self) -> list[tuple[Session, bool]]:
        """Every session, oldest first, and whether it is the default one."""
        default = None
        if self._default is not None and self._default.done() and self._is_live(self._default):
            default = self._default.result()
        return [(session, session is default) for session in self._sessions.values()]

    async def aclose(self) -> None:
        """End every sandbox and the embedded server. Takes a few seconds at most."""
        pending = [task for task in (self._default, self._backend) if task is not None and not task.done()]
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending)
        backend = self._backend
        dead = backend is None or self._is_dead(backend)
        if backend is not None and not dead and backend.result().embedded is None:
            # An embedded server takes its sandboxes with it; another one has to be told.
            kills = [asyncio.create_task(self._kill(session)) for session in self._sessions.values()]
            if kills:
                await asyncio.wait(kills, timeout=_CLOSING_SECONDS)
        self._sessions.clear()
        await self._stack.aclose()
