"""Sandboxes for sessions: made where the policy says, copied, ended. None is forgotten when a call is given
up in the middle.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
from e2b import AuthenticationException, SandboxException
from e2b_code_interpreter import AsyncSandbox
from mcp.server.mcpserver.exceptions import ToolError

from ringfence.core.config import Settings
from ringfence.core.placement import BackendName, Wish
from ringfence.integrations.backend import Backend
from ringfence.integrations.mcp.servers.executor.backends import Backends, Notify
from ringfence.integrations.mcp.servers.executor.facts import Facts, find_facts
from ringfence.integrations.mcp.servers.executor.filewatch import FileWatch
from ringfence.integrations.mcp.servers.executor.journal import Journal
from ringfence.integrations.mcp.servers.executor.session import Session
from ringfence.integrations.network import network_options

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_REFUSALS = (SandboxException, AuthenticationException, httpx.HTTPError)


@dataclass
class MadeSandbox:
    """A new sandbox. placed: why it is on `backend`, when a policy had the choice."""

    sandbox: AsyncSandbox
    backend: Backend
    placed: str = ""
    watch: FileWatch = field(default_factory=FileWatch)


class Sandboxes:
    """Makes and ends the sandboxes of one caller, on backends that are started at the first use.

    on_death: told when an embedded server has ended. on_facts: told once what the first sandbox is like.
    """

    def __init__(
        self,
        settings: Settings,
        on_death: Callable[[BackendName], Awaitable[None]],
        on_facts: Callable[[Facts], None] | None,
    ) -> None:
        self._settings = settings
        self._on_facts = on_facts
        self._facts: asyncio.Task[Facts] | None = None
        self._making = 0
        self._background: set[asyncio.Task[Any]] = set()
        self.backends = Backends(settings, on_death)

    def under_way(self) -> int:
        """How many are being made now."""
        return self._making

    async def create(self, journal: Journal, notify: Notify | None) -> MadeSandbox:
        """A sandbox on the backend that the policy chooses. A `ToolError` says why there is none."""
        self._making += 1
        try:
            backend, why = await self.backends.choose(journal.wish, notify)
            made = await self._guarded(self._create(journal, backend, why))
        finally:
            self._making -= 1
        if self._facts is None:
            self._facts = asyncio.create_task(self._learn(made.sandbox, backend))
        return made

    async def _create(self, journal: Journal, backend: Backend, why: str) -> MadeSandbox:
        try:
            sandbox = await AsyncSandbox.create(
                template=backend.template,
                timeout=self._settings.lease,
                envs=journal.envs,
                metadata={"ringfence.client": "mcp", **_memory(journal.wish, backend)},
                **network_options(self._settings.mcp_network, backend.name),
                **backend.sdk_options(),
            )
        except _REFUSALS as error:
            chosen = f" ({why})" if why else ""
            raise ToolError(
                f"No sandbox could be created on {backend.describe()}{chosen}: {error}"
            ) from error
        made = MadeSandbox(sandbox, backend, why)
        await made.watch.look(sandbox)
        return made

    async def fork(self, session: Session) -> MadeSandbox:
        """A copy of the session's sandbox. A `ToolError` where the backend has no fork."""
        self._making += 1
        try:
            return await self._guarded(self._fork(session))
        finally:
            self._making -= 1

    async def _fork(self, session: Session) -> MadeSandbox:
        try:
            (copy,) = await session.sandbox.fork(timeout=self._settings.lease, count=1)
        except SandboxException as error:
            if "501" in str(error) or "not implemented" in str(error):
                raise ToolError(
                    "This backend cannot fork sandboxes. Make a session with create_session and run the "
                    "cells that it needs there."
                ) from error
            raise
        if isinstance(copy, Exception):
            raise ToolError(f"The fork could not be started: {copy}") from copy
        return MadeSandbox(copy, session.backend)

    async def _guarded(self, making: Coroutine[Any, Any, MadeSandbox]) -> MadeSandbox:
        """Await `making`; when our caller gives up, what comes of it is ended: nobody knows of it."""
        task = asyncio.create_task(making)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self.in_background(self._end_unclaimed(task))
            raise

    async def _end_unclaimed(self, task: "asyncio.Task[MadeSandbox]") -> None:
        await asyncio.wait({task})
        if not task.cancelled() and task.exception() is None:
            await self.kill(task.result().sandbox)

    async def kill(self, sandbox: AsyncSandbox) -> None:
        """End the sandbox. That it cannot be reached is logged; its lease ends it then."""
        try:
            await sandbox.kill()
        except _REFUSALS as error:
            _log.warning("sandbox %s could not be ended: %s", sandbox.sandbox_id, error)

    def in_background(self, work: Coroutine[Any, Any, _T]) -> "asyncio.Task[_T]":
        """A task that goes on when the call that started it is cancelled; `aclose` waits for it."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def _learn(self, sandbox: AsyncSandbox, backend: Backend) -> Facts:
        facts = await find_facts(sandbox, backend.isolation)
        policy = self.backends.policy()
        if self._on_facts is not None and (policy is None or len(policy.backends()) == 1):
            self._on_facts(facts)
        return facts

    def python(self) -> str | None:
        """The version of the sandboxes' Python, where it is known."""
        if self._facts is None or not self._facts.done() or self._facts.cancelled():
            return None
        return self._facts.result().python if self._facts.exception() is None else None

    async def aclose(self, seconds: float) -> None:
        """Wait for what is under way in the background, at most `seconds`, and end the embedded server."""
        if self._facts is not None and not self._facts.done():
            self._facts.cancel()
        if self._background:
            await asyncio.wait(self._background, timeout=seconds)
        await self.backends.aclose()


def _memory(wish: Wish, backend: Backend) -> dict[str, str]:
    """The metadata by which a Ringfence server is asked for memory; E2B's cloud has it by template only."""
    if wish.memory_mb is None:
        return {}
    if backend.name == "e2b":
        if backend.template is None:
            raise ToolError(
                f"E2B's cloud gives memory by template: for {wish.memory_mb} MiB, name one in the policy's "
                "rule or in RINGFENCE_TEMPLATE."
            )
        return {}
    return {"ringfence.memory_mb": str(wish.memory_mb)}
