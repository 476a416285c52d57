"""Sessions of one caller: made, found by their handles, kept alive, rebuilt, ended."""

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import httpx
from e2b import AuthenticationException, SandboxException
from mcp.server.mcpserver.exceptions import ToolError

from ringfence.core.config import Settings
from ringfence.core.placement import BackendName, Wish
from ringfence.integrations.mcp.servers.executor.backends import Notify
from ringfence.integrations.mcp.servers.executor.cells import is_gone
from ringfence.integrations.mcp.servers.executor.facts import Facts
from ringfence.integrations.mcp.servers.executor.jobs import Job
from ringfence.integrations.mcp.servers.executor.journal import Journal, JournalStore, OnLoss
from ringfence.integrations.mcp.servers.executor.replay import replay
from ringfence.integrations.mcp.servers.executor.sandboxes import MadeSandbox, Sandboxes
from ringfence.integrations.mcp.servers.executor.session import Loss, Session
from ringfence.integrations.mcp.servers.executor.usage import cpu_seconds

_log = logging.getLogger(__name__)

MAX_SESSIONS = 16
_ENDED_KEPT = 64
_CLOSING_SECONDS = 8.0
_LONGEST_LEASE = 86_400
"""Seconds; servers refuse more."""
_TRUSTED_SECONDS = 30.0
"""A sandbox that was used this recently is taken to be there."""
_NEW = "Call create_session for a new one, or omit session_id."
_ENDED = "its sandbox ended (killed, out of memory, or its lease ran out)"


class Sessions:
    """All sessions of one caller; their sandboxes are made at the first use.

    has_default: calls without a handle share one session; else each makes a new one.
    on_facts: told once what the first sandbox turned out to be.
    """

    def __init__(
        self,
        settings: Settings,
        store: JournalStore | None = None,
        *,
        has_default: bool = True,
        on_facts: Callable[[Facts], None] | None = None,
    ) -> None:
        self._settings = settings
        self._store = store or JournalStore(None, "")
        self._has_default = has_default
        self._sessions: dict[str, Session] = {}
        self._losses: OrderedDict[str, Loss] = OrderedDict()
        self._closed: OrderedDict[str, None] = OrderedDict()
        self._default: asyncio.Task[Session] | None = None
        self._default_loss: Loss | None = None
        self._rebuilding: dict[str, asyncio.Task[Session]] = {}
        self.sandboxes = Sandboxes(settings, self._lose_all_on, on_facts)

    async def _lose_all_on(self, name: BackendName) -> None:
        for session in list(self._sessions.values()):
            if session.backend.name == name:
                self.lost(session, "the sandbox server ended")

    async def get(
        self,
        handle: str | None,
        notify: Notify | None = None,
        *,
        on_loss: OnLoss | None = None,
        make: bool = True,
    ) -> Session:
        """The session named `handle`; for None the default one, or where there is no default a new one if
        `make`. Its lease is renewed.

        A session that was lost is a `ToolError` that says so, or is rebuilt: `on_loss`, or what was asked for
        when it was made.
        """
        await self.sandboxes.backends.check("local")
        if handle is not None:
            session = await self._named(handle, notify, on_loss)
        elif self._has_default:
            session = await self._get_default(notify, on_loss)
        elif make:
            session = await self.create({}, notify, on_loss=on_loss or "report")
            session.news = "This is a new session, since no session_id was given; pass it from now on."
        else:
            raise ToolError("Give session_id: calls without it have no session here.")
        await self._renew(session)
        return session

    async def _named(self, handle: str, notify: Notify | None, on_loss: OnLoss | None) -> Session:
        if (rebuilding := self._rebuilding.get(handle)) is not None:
            return await asyncio.shield(rebuilding)
        session = self._sessions.get(handle)
        if session is not None and not await self._find_lost(session, on_loss):
            return session
        loss = self._loss(handle)
        if loss is None:
            raise ToolError(self._unknown(handle))
        if (on_loss or loss.journal.on_loss) != "replay":
            raise ToolError(loss.describe())
        return await self._rebuild(loss, notify)

    def _unknown(self, handle: str) -> str:
        if handle in self._closed:
            return f"This session has ended: it was closed. {_NEW}"
        return f"There is no such session. {_NEW}"

    def _loss(self, handle: str) -> Loss | None:
        if handle in self._losses or handle in self._closed:
            return self._losses.get(handle)
        file = self._store.open(handle)
        journal = file.read() if file is not None else None
        if journal is None:
            return None
        return Loss(handle, "the MCP server was started anew", journal)

    async def _find_lost(self, session: Session, on_loss: OnLoss | None) -> bool:
        """Whether the session's sandbox is gone by now. Asked only where it may well be."""
        if session.running():
            return False
        now = time.monotonic()
        recent = now - session.seen < _TRUSTED_SECONDS and now < session.expires
        if recent and (on_loss or session.journal.on_loss) != "replay":
            return False
        if not await is_gone(session.sandbox):
            return False
        self.lost(session, "its lease ran out" if now >= session.expires else _ENDED)
        return True

    async def _get_default(self, notify: Notify | None, on_loss: OnLoss | None) -> Session:
        if self._default is not None and self._default.done():
            if not self._is_live(self._default):
                self._default = None
            else:
                await self._find_lost(self._default.result(), on_loss)
        if self._default is None:
            self._default = asyncio.create_task(self._make_default(notify, on_loss))
        return await asyncio.shield(self._default)

    async def _make_default(self, notify: Notify | None, on_loss: OnLoss | None) -> Session:
        loss = self._default_loss
        if loss is not None and (on_loss or loss.journal.on_loss) == "replay":
            session = await self._rebuild(loss, notify)
        else:
            session = await self._create(Journal(None, on_loss or "report"), notify)
            session.news = _news(loss)
        self._default_loss = None  # only now: who could not be given a new one is told the next time
        return session

    def _is_live(self, task: "asyncio.Task[Session]") -> bool:
        if task.cancelled() or task.exception() is not None:
            return False
        return task.result().handle in self._sessions

    async def create(
        self,
        envs: Mapping[str, str],
        notify: Notify | None = None,
        *,
        on_loss: OnLoss = "report",
        wish: Wish | None = None,
    ) -> Session:
        """A new session with a sandbox of its own, on the backend that the policy chooses for `wish`."""
        return await self._create(Journal(envs, on_loss, wish), notify)

    async def _create(self, journal: Journal, notify: Notify | None, handle: str | None = None) -> Session:
        await self._make_room()
        made = await self.sandboxes.create(journal, notify)
        return self._admit(made, journal, handle)

    def _admit(self, made: MadeSandbox, journal: Journal, handle: str | None = None) -> Session:
        session = Session(
            handle=handle or f"s_{secrets.token_hex(16)}",
            sandbox=made.sandbox,
            backend=made.backend,
            placed=made.placed,
            watch=made.watch,
            journal=journal,
            expires=time.monotonic() + self._settings.lease,
        )
        self._sessions[session.handle] = session
        self._losses.pop(session.handle, None)
        if journal.file is None and (file := self._store.open(session.handle)) is not None:
            journal.keep_in(file)
        return session

    async def _make_room(self) -> None:
        """Forget sessions whose leases ran out, when there are many; a `ToolError` when there still are."""
        if self._count() < MAX_SESSIONS:
            return
        for session in list(self._sessions.values()):
            if time.monotonic() >= session.expires:
                await self._find_lost(session, None)
        if self._count() >= MAX_SESSIONS:
            raise ToolError(
                f"There are {MAX_SESSIONS} sessions already; close one first (list_sessions shows them)."
            )

    def _count(self) -> int:
        return len(self._sessions) + self.sandboxes.under_way()

    async def _rebuild(self, loss: Loss, notify: Notify | None) -> Session:
        task = self._rebuilding.get(loss.handle)
        if task is None:
            task = asyncio.create_task(self._replay(loss, notify))
            self._rebuilding[loss.handle] = task
            task.add_done_callback(lambda _: self._rebuilding.pop(loss.handle, None))
        return await asyncio.shield(task)

    async def _replay(self, loss: Loss, notify: Notify | None) -> Session:
        session = await self._create(loss.journal, notify, loss.handle)
        try:
            done = await replay(session, self.extend, self.sandboxes.backends.tell)
        except (SandboxException, AuthenticationException, httpx.HTTPError) as error:
            why = str(error) or type(error).__name__
            self.lost(session, f"rebuilding it failed ({why})")
            await self.sandboxes.kill(session.sandbox)
            raise ToolError(f"The session could not be rebuilt: {why}") from error
        session.last_count = done.last_count
        await session.watch.look(session.sandbox)
        session.news = (
            f"The session was rebuilt, because the one before was lost: {loss.why}. {done.describe()}"
        )
        return session

    async def fork(self, session: Session) -> tuple[Session, str]:
        """A copy of `session`, and what the copy says of its variables. A `ToolError` where the backend has
        no fork.
        """
        await self._make_room()
        made = await self.sandboxes.fork(session)
        fork = self._admit(made, session.journal.copy())
        # Whether Python came along is told by its count of cells; what of it did not, by what the first says.
        probe = await made.sandbox.run_code("pass", request_timeout=self._settings.request_timeout)
        fork.last_count = probe.execution_count or 0
        fork.restarted = session.restarted or fork.last_count <= session.last_count
        await fork.watch.look(made.sandbox)
        return fork, "".join(probe.logs.stderr).strip()

    async def _renew(self, session: Session) -> None:
        session.used = time.time()
        session.seen = time.monotonic()
        if session.seen - session.renewed >= self._settings.lease / 4:
            await self._set_lease(session, self._settings.lease)

    async def extend(self, session: Session, seconds: float) -> None:
        """See to it that the sandbox lives for another `seconds`, for something that takes so long."""
        if session.expires < time.monotonic() + seconds:
            await self._set_lease(session, max(seconds, self._settings.lease))

    async def _set_lease(self, session: Session, seconds: float) -> None:
        """Never shorter than it is: something may run that needs it."""
        seconds = min(max(seconds, session.expires - time.monotonic()), _LONGEST_LEASE)
        try:
            await session.sandbox.set_timeout(int(seconds))
            session.renewed = time.monotonic()
            session.expires = session.renewed + seconds
        except (SandboxException, AuthenticationException, httpx.HTTPError):
            # It has ended, or will say so itself when it is used next.
            _log.info("the lease of sandbox %s could not be renewed", session.sandbox.sandbox_id)

    def lost(self, session: Session, why: str) -> None:
        """The session's sandbox is gone: keep why, and what it takes to make it again."""
        if self._sessions.pop(session.handle, None) is None:
            return
        loss = self._losses[session.handle] = Loss(session.handle, why, session.journal, session)
        while len(self._losses) > _ENDED_KEPT:
            self._losses.popitem(last=False)
        if self._default is not None and self._default.done() and not self._is_live(self._default):
            self._default = None
            self._default_loss = loss

    def remedy(self, session: Session) -> str:
        """How to go on after `session` was lost."""
        loss = self._losses.get(session.handle)
        return loss.remedy() if loss is not None else "Call create_session for a new one."

    def live(self, handle: str) -> Session | None:
        """The session, unless it is not there (any more)."""
        return self._sessions.get(handle)

    async def journal_of(self, handle: str | None) -> tuple[str, Journal]:
        """The journal of a session, of a lost one too, and its handle."""
        if handle is None:
            session = await self.get(None, make=False)
            return session.handle, session.journal
        if (live := self._sessions.get(handle)) is not None and not await self._find_lost(live, "report"):
            return handle, live.journal
        loss = self._loss(handle)
        if loss is None:
            raise ToolError(self._unknown(handle))
        return handle, loss.journal

    async def close(self, handle: str | None, usage: dict[str, Any] | None = None) -> bool:
        """End a session (the default one for None) and its sandbox; False when there is none. What it has
        used goes into `usage`.
        """
        if handle is None:
            if not self._has_default:
                raise ToolError("Give session_id: which session is to be closed?")
            if self._default is None:
                return False
            await asyncio.wait({self._default})
            if not self._is_live(self._default):
                return False
            handle = self._default.result().handle
        session = self._sessions.pop(handle, None)
        loss = self._loss(handle) if session is None else None
        journal = session.journal if session is not None else loss.journal if loss is not None else None
        if journal is None:
            return False
        self._forget(handle, journal)
        if session is not None:
            # Not given up with the call: nobody else knows of the sandbox any more.
            await asyncio.shield(self.sandboxes.in_background(self._end(session, usage)))
        return True

    async def _end(self, session: Session, usage: dict[str, Any] | None = None) -> None:
        if usage is not None:
            cpu_s = await cpu_seconds(session.sandbox)
            usage |= {"backend": session.backend.name, **session.usage.totals(), "cpu_s": cpu_s}
        for job in session.running():
            job.abandon("the session was closed")
        await self.sandboxes.kill(session.sandbox)

    def _forget(self, handle: str, journal: Journal) -> None:
        self._losses.pop(handle, None)
        self._closed[handle] = None
        while len(self._closed) > _ENDED_KEPT:
            self._closed.popitem(last=False)
        if journal.file is not None:
            journal.file.remove()
        if self._default is not None and self._default.done() and not self._is_live(self._default):
            self._default = None
        if self._default_loss is not None and self._default_loss.handle == handle:
            self._default_loss = None

    def job(self, execution_id: str) -> tuple[Session, Job] | None:
        """The job with this id, and its session; None when there is none (any more)."""
        gone = (loss.session for loss in self._losses.values() if loss.session is not None)
        for session in (*self._sessions.values(), *gone):
            if (job := session.jobs.get(execution_id)) is not None:
                return session, job
        return None

    def all(self) -> list[tuple[Session, bool]]:
        """Every session, oldest first, and whether it is the default one."""
        default = None
        if self._default is not None and self._default.done() and self._is_live(self._default):
            default = self._default.result()
        return [(session, session is default) for session in self._sessions.values()]

    def losses(self) -> list[tuple[str, str]]:
        """Handles of sessions that were lost and can be rebuilt, each with why it was lost."""
        return [(loss.handle, loss.why) for loss in self._losses.values()]

    async def aclose(self) -> None:
        """End every sandbox and the embedded server. Takes a few seconds at most."""
        tasks = (self._default, *self._rebuilding.values())
        pending = [task for task in tasks if task is not None and not task.done()]
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending)
        # An embedded server takes its sandboxes with it; another one has to be told.
        for session in self._sessions.values():
            if session.backend.embedded is None:
                self.sandboxes.in_background(self._end(session))
        self._sessions.clear()
        await self.sandboxes.aclose(_CLOSING_SECONDS)


def _news(loss: Loss | None) -> str:
    if loss is None:
        return ""
    before = f"the one before ({loss.handle}) has ended: {loss.why}"
    return f"This is a new session, because {before}. {loss.remedy()}"
