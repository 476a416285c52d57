"""The backends of one caller's sessions: each opened when it is first needed; which a new session goes to."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace

import httpx
from e2b import AuthenticationException, SandboxException, SandboxQuery, SandboxState
from e2b_code_interpreter import AsyncSandbox
from mcp.server.mcpserver.exceptions import ToolError

from ringfence.core.config import Settings
from ringfence.core.errors import RingfenceError
from ringfence.core.placement import BackendName, Placement, Policy, Wish, place
from ringfence.integrations.backend import Backend, open_backend

Notify = Callable[[str], None]


class Backends:
    """Backends by name. Without a policy there is one, which the settings select.

    on_death: told when an embedded server has ended, before it is started again.
    """

    def __init__(self, settings: Settings, on_death: Callable[[BackendName], Awaitable[None]]) -> None:
        self._settings = settings
        self._on_death = on_death
        self._opened: dict[BackendName, asyncio.Task[Backend]] = {}
        self._stacks: dict[BackendName, contextlib.AsyncExitStack] = {}
        self._notify: Notify | None = None
        self._policy: Policy | None = None
        self._is_loaded = False

    def policy(self) -> Policy | None:
        """The rules, read once. A `ToolError` when they are wrong."""
        if not self._is_loaded:
            try:
                self._policy = self._settings.policy()
            except RingfenceError as error:
                raise ToolError(f"No sandbox is available: {error}") from error
            self._is_loaded = True
        return self._policy

    async def choose(self, wish: Wish, notify: Notify | None = None) -> tuple[Backend, str]:
        """Where a session with this wish goes, ready to be used, and why (empty when there was no choice)."""
        policy = self.policy()
        try:
            if policy is None:
                return await self._only(wish, notify), ""
            placement = await place(policy, wish, self._count)
        except RingfenceError as error:
            raise ToolError(f"No sandbox is available: {error}") from error
        return await self._placed(placement, notify), placement.reason

    async def _only(self, wish: Wish, notify: Notify | None) -> Backend:
        name = self._settings.choose_backend()
        if wish.resident and name == "e2b":
            raise ToolError("The session's data must stay, and the only backend here is E2B's cloud.")
        return await self.get(name, notify)

    async def _placed(self, placement: Placement, notify: Notify | None) -> Backend:
        backend = await self.get(placement.backend, notify)
        return replace(backend, template=placement.template) if placement.template else backend

    async def get(self, name: BackendName, notify: Notify | None = None) -> Backend:
        """The backend, started if need be. `notify` is told about a start that takes longer than a second."""
        self._notify = notify or self._notify
        task = self._opened.get(name)
        if task is not None and task.done() and is_dead(task):
            await self._bury(name)
            task = None
        if task is None:
            task = self._opened[name] = asyncio.create_task(self._open(name))
        try:
            # Shielded: a client that gives up while a template is built does not stop the building.
            return await asyncio.shield(task)
        except RingfenceError as error:
            raise ToolError(f"No sandbox is available: {error}") from error

    async def _open(self, name: BackendName) -> Backend:
        stack = self._stacks.setdefault(name, contextlib.AsyncExitStack())
        opening = open_backend(self._settings, name=name, progress=self.tell)
        return await stack.enter_async_context(opening)

    async def _bury(self, name: BackendName) -> None:
        await self._on_death(name)
        self._opened.pop(name, None)
        if (stack := self._stacks.pop(name, None)) is not None:
            await stack.aclose()

    async def check(self, name: BackendName) -> None:
        """Let `on_death` know now if the backend was used and has ended since."""
        task = self._opened.get(name)
        if task is not None and task.done() and is_dead(task):
            await self._bury(name)

    async def _count(self, name: BackendName, enough: int) -> int:
        """How many sandboxes run on the backend under our key, or some number above `enough`."""
        backend = await self.get(name)
        running = SandboxQuery(state=[SandboxState.RUNNING])
        pages = AsyncSandbox.list(query=running, **backend.sdk_options())
        count = 0
        try:
            while pages.has_next and count <= enough:
                count += len(await pages.next_items())
        except (SandboxException, AuthenticationException, httpx.HTTPError) as error:
            raise ToolError(f"{backend.describe()} does not say what runs there: {error}") from error
        return count

    def tell(self, message: str) -> None:
        """Pass on news of a start."""
        if self._notify is not None:
            self._notify(message)

    async def aclose(self) -> None:
        """End what was started."""
        pending = [task for task in self._opened.values() if not task.done()]
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending)
        self._opened.clear()
        for stack in self._stacks.values():
            await stack.aclose()
        self._stacks.clear()


def is_dead(task: "asyncio.Task[Backend]") -> bool:
    """Whether the backend could not be opened, or has ended."""
    return task.cancelled() or task.exception() is not None or not task.result().running()
