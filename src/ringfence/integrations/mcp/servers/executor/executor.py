"""The operations behind the tools. Every one answers with a whole tool result or raises `ToolError`."""

from collections.abc import Callable

from ringfence.core.config import Settings
from ringfence.integrations.mcp.servers.executor.execution import ExecutionTools
from ringfence.integrations.mcp.servers.executor.facts import Facts
from ringfence.integrations.mcp.servers.executor.file_tools import FileTools
from ringfence.integrations.mcp.servers.executor.hostfiles import HostFiles
from ringfence.integrations.mcp.servers.executor.journal import JournalStore
from ringfence.integrations.mcp.servers.executor.session_tools import SessionTools
from ringfence.integrations.mcp.servers.executor.sessions import Sessions


class Executor(ExecutionTools, FileTools, SessionTools):
    """All tools' work for one caller.

    caller: who it is; what is kept on disk for him is named after it.
    files_url: where files can be fetched and put over HTTP. Then there is no default session either: over
    HTTP nothing tells two conversations of a caller apart but the handle.
    on_facts: told what the first sandbox turned out to be.
    """

    def __init__(
        self,
        settings: Settings,
        host: HostFiles,
        *,
        caller: str = "",
        files_url: str | None = None,
        on_facts: Callable[[Facts], None] | None = None,
    ) -> None:
        sessions = Sessions(
            settings,
            JournalStore(settings.mcp_journal_dir, caller),
            has_default=files_url is None,
            on_facts=on_facts,
        )
        super().__init__(settings, host, sessions, files_url)

    def is_idle(self) -> bool:
        """Whether there is no session."""
        return not self.sessions.all()

    async def aclose(self) -> None:
        """End every session."""
        await self.sessions.aclose()
