"""What lives as long as the server: the settings, and an executor for each caller once there was a call."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import AccessToken, principal_components
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import SecretStr

from ringfence.core.config import Settings

if TYPE_CHECKING:
    from ringfence.integrations.mcp.servers.executor.executor import Executor
    from ringfence.integrations.mcp.servers.executor.facts import Facts

Caller = tuple[str, str | None, str | None]
"""Client, issuer and subject: who a session belongs to."""
_NOBODY: Caller = ("", None, None)
_MAX_CALLERS = 1000


class App:
    """Executors by caller. On standard input and output there is one caller; over HTTP the token says who.

    files_url: where callers fetch and put large files; None on standard input and output.
    own_keys: each caller's token is his key for the backend.
    authenticated: a call without a token is refused.
    on_facts: told what the first sandbox of the server turned out to be.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        files_url: str | None = None,
        own_keys: bool = False,
        authenticated: bool = False,
    ) -> None:
        self.settings = settings
        self.files_url = files_url
        self._own_keys = own_keys
        self._authenticated = authenticated
        self._executors: dict[Caller, asyncio.Task[Executor]] = {}
        self.on_facts: Callable[[Facts], None] | None = None

    async def executor(self) -> "Executor":
        """The executor of the caller of the current request."""
        return await self.executor_of(get_access_token())

    async def executor_of(self, token: AccessToken | None) -> "Executor":
        """The caller's executor; its modules are imported in a thread at the first call."""
        if token is None and self._authenticated:
            raise ToolError("Authentication is required.")
        caller = principal_components(token) if token is not None else _NOBODY
        task = self._executors.get(caller)
        if task is None:
            await self._make_room()
            task = self._executors.get(caller)
        if task is None or _has_failed(task):
            task = asyncio.create_task(asyncio.to_thread(self._make, caller, token))
            self._executors[caller] = task
        return await asyncio.shield(task)

    def _make(self, caller: Caller, token: AccessToken | None) -> "Executor":
        from ringfence.integrations.mcp.servers.executor.executor import Executor
        from ringfence.integrations.mcp.servers.executor.hostfiles import HostFiles, default_roots

        settings = self.settings
        if self._own_keys and token is not None:
            update = {"api_key": SecretStr(token.token), "backend": "remote", "backend_policy": None}
            settings = settings.model_copy(update=update)
        roots = settings.mcp_roots
        if self.files_url is not None:
            roots = ()  # whoever calls over a network has no business in this machine's files
        elif roots is None:
            roots = default_roots()
        return Executor(
            settings,
            HostFiles(roots),
            caller="\n".join(part or "" for part in caller),
            files_url=self.files_url,
            on_facts=self._tell_facts,
        )

    def _tell_facts(self, facts: "Facts") -> None:
        if self.on_facts is not None:
            self.on_facts(facts)

    async def _make_room(self) -> None:
        """Forget callers without sessions when there are too many."""
        if len(self._executors) < _MAX_CALLERS:
            return
        for caller, task in list(self._executors.items()):
            if task.done() and not _has_failed(task) and task.result().is_idle():
                del self._executors[caller]
                await task.result().aclose()
        if len(self._executors) >= _MAX_CALLERS:
            raise ToolError("The server has too many callers; try again later.")

    async def aclose(self) -> None:
        """End every sandbox, and the embedded server."""
        tasks, self._executors = list(self._executors.values()), {}
        if tasks:
            made = await asyncio.gather(*tasks, return_exceptions=True)
            closing = [one.aclose() for one in made if not isinstance(one, BaseException)]
            await asyncio.gather(*closing, return_exceptions=True)


def _has_failed(task: "asyncio.Task[Executor]") -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)
