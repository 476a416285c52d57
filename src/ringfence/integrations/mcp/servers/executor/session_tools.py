"""Sessions: made, listed, forked, closed, and written down as notebooks."""

import time
from typing import Any

from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult

from ringfence.core.placement import Wish
from ringfence.integrations.mcp.meta import META_KEY
from ringfence.integrations.mcp.servers.executor.base import Beat, Tools
from ringfence.integrations.mcp.servers.executor.journal import OnLoss
from ringfence.integrations.mcp.servers.executor.packages import check_packages, install
from ringfence.integrations.mcp.servers.executor.session import Session


class SessionTools(Tools):
    """The tools for sessions."""

    async def create_session(
        self, envs: dict[str, str], on_loss: OnLoss, packages: list[str], wish: Wish, beat: Beat
    ) -> CallToolResult:
        """A new session; its handle is in the text."""
        names = check_packages(packages) if packages else []
        session = await self.sessions.create(envs, beat.note, on_loss=on_loss, wish=wish)
        return self._made(session, await self._with_packages(session, names, beat))

    async def fork_session(self, session_id: str | None, beat: Beat) -> CallToolResult:
        """A copy of a session: its files and, where the backend can, its variables."""
        session = await self.sessions.get(session_id, beat.note, make=False)
        async with self._trouble(session), session.lock:
            fork, said = await self.sessions.fork(session)
        text = f" Its files are those of {session.handle}"
        if fork.restarted:
            text += ". Variables were NOT copied: run the cells that define what is needed again." + (
                f" {said}" if said else " This backend copies files only."
            )
        else:
            text += ", and so are its variables, as they were; from now on each has its own." + (
                f" {said}" if said else ""
            )
        return self._made(fork, text)

    async def _with_packages(self, session: Session, names: list[str], beat: Beat) -> str:
        if not names:
            return ""
        beat.note("pip install " + " ".join(names))
        async with self._trouble(session):
            done = await install(session.sandbox, names)
        if done.ok:
            session.journal.add_packages(names)
            return f" Installed: {' '.join(done.installed) or 'all of it was there'}."
        return f" The packages could NOT be installed:\n{done.text}"

    def _made(self, session: Session, addition: str) -> CallToolResult:
        backend = session.backend
        record = {
            "session_id": session.handle,
            "backend": backend.describe(),
            "isolation": backend.isolation_level,
            "template": backend.template or "default",
            "lease_s": self._settings.lease,
        }
        if session.placed:
            record["placed_by"] = session.placed
        why = f", by {session.placed}" if session.placed else ""
        text = (
            f"Session {session.handle} is ready ({backend.describe()}{why}). Pass it as session_id. It ends "
            f"after {self._settings.lease} s without use, or with close_session.{addition}"
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
                    "backend": session.backend.describe(),
                    "running": [job.cell.execution_id for job in session.running()],
                    "executions": session.last_count,
                    "idle_s": round(time.time() - session.used),
                    "contents": session.journal.summary(),
                }
            )
        lines = [
            f"{row['session_id']}{' (default)' if row['default'] else ''}: {row['backend']}, "
            f"{row['contents']}, idle "
            f"{row['idle_s']} s, {len(row['running'])} "
            f"running{': ' + ', '.join(row['running']) if row['running'] else ''}"
            for row in rows
        ]
        lines += [f"{handle}: lost ({why})" for handle, why in self.sessions.losses()]
        return self._plain("\n".join(lines) or "There are no sessions.", {"sessions": rows})

    async def close_session(self, session_id: str | None) -> CallToolResult:
        """End a session and everything in it."""
        usage: dict[str, Any] = {}
        closed = await self.sessions.close(session_id, usage)
        if not closed and session_id is not None:
            raise ToolError("There is no such session.")
        if not closed:
            return self._plain("There was no session to close.", {"closed": False})
        text = "The session is closed; its variables and files are gone."
        if usage:
            text += f" {_usage_text(usage)}"
        return self._plain(text, {"closed": True, **({"usage": usage} if usage else {})})


def _usage_text(usage: dict[str, Any]) -> str:
    cpu = f", {usage['cpu_s']:.1f} s of processor time" if usage.get("cpu_s") is not None else ""
    return (
        f"It ran {usage['executions']} executions for {usage['wall_s']:.1f} s in {usage['sandbox_s']:.0f} s"
        f"{cpu}, on {usage['backend']}."
    )
