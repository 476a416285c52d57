"""What all groups of tools share: the settings, the sessions, and how trouble is told."""

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import httpx
from e2b import AuthenticationException, FileNotFoundException, SandboxException
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult

from ringfence.core.config import Settings
from ringfence.integrations.mcp.servers.executor.cells import is_gone
from ringfence.integrations.mcp.servers.executor.hostfiles import HostFiles
from ringfence.integrations.mcp.servers.executor.reports import as_result
from ringfence.integrations.mcp.servers.executor.session import Session
from ringfence.integrations.mcp.servers.executor.sessions import Sessions


class Beat(Protocol):
    """Tells the client that its call goes on."""

    source: Callable[[], str] | None

    def note(self, message: str) -> None:
        """Something is worth telling."""


class Tools:
    """The settings, the sessions, and the host's files, with what every operation needs of them.

    files_url: where files can be fetched and put over HTTP; None on standard input and output.
    """

    def __init__(
        self, settings: Settings, host: HostFiles, sessions: Sessions, files_url: str | None = None
    ) -> None:
        self._settings = settings
        self._host = host
        self._files_url = files_url
        self.sessions = sessions

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
                raise ToolError(f"The session was lost: {why}. {self.sessions.remedy(session)}") from error
            raise ToolError(str(error) or type(error).__name__) from error

    def _plain(self, text: str, record: dict[str, Any]) -> CallToolResult:
        return as_result(text, record, structured=self._settings.mcp_structured)

    def _written(
        self, session: Session, text: str, record: dict[str, Any], usage: dict[str, Any] | None = None
    ) -> CallToolResult:
        """A result of an operation that may have made its session: its handle is in the text then."""
        backend = session.backend.describe()
        record = record | {"session_id": session.handle, "backend": backend}
        return as_result(
            f"{text}\n\n[session {session.handle}{self._news(session)} · {backend}]",
            record,
            structured=self._settings.mcp_structured,
            usage=usage or {"backend": session.backend.name, "session": session.usage.totals()},
        )

    def _news(self, session: Session) -> str:
        news, session.news = session.news, ""
        return f": {news}" if news else ""


def usage_of(session: Session, wall_s: float, output_chars: int) -> dict[str, Any]:
    """What one call used, and its session so far."""
    return {
        "backend": session.backend.name,
        "wall_s": round(wall_s, 3),
        "output_chars": output_chars,
        "session": session.usage.totals(),
    }
