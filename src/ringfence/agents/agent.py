"""Agents: a name from the mapping, its allowed tools, and sessions of its own on the servers it uses."""

import asyncio
import base64
import contextlib
import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mcp_types import Tool

from ringfence.agents.audit import AuditEvent, AuditSink, current_trace, deliver, digest, log_event
from ringfence.agents.mapping import AgentSpec, Grant, SessionRule, ToolMapping, load_mapping
from ringfence.agents.models import INSTALL, ModelChoice, build_model, choose_model
from ringfence.agents.result import ToolResult
from ringfence.agents.running import EventHandler, RunLimits, RunResult
from ringfence.core.errors import BackendError, ConfigurationError, LimitError, RingfenceError
from ringfence.integrations.mcp.client import ProgressHandler, ServerConnection

if TYPE_CHECKING:
    from pydantic_ai.models import Model

_INLINE_FILE = 2 * 1024**2
"""Up to this size, in bytes, a file travels in the call; larger ones the server reads itself."""

# What servers say of a session that is no more. An error that merely names one ends nothing.
_NO_SESSION = re.compile(
    r"\b(no such|unknown|invalid|expired) session\b"
    r"|\bsession\b[^.\n]{0,60}\b(not found|no longer|expired|has ended|is closed|does not exist)\b",
    re.IGNORECASE,
)


class ToolDeniedError(RingfenceError):
    """The mapping does not allow this agent to call this tool."""


class Connections:
    """Connections to the mapping's servers, made when first needed; several agents may share them."""

    def __init__(self, mapping: ToolMapping, environ: Mapping[str, str] | None = None) -> None:
        self.mapping = mapping
        self.environ: Mapping[str, str] = dict(os.environ if environ is None else environ)
        self._connections: dict[str, ServerConnection] = {}

    def get(self, server: str) -> ServerConnection:
        """The connection to `server`; its variables are looked up now."""
        if server not in self._connections:
            self._connections[server] = ServerConnection(self.mapping.parameters(server, self.environ))
        return self._connections[server]

    async def aclose(self) -> None:
        """End all connections, and the servers that were started for them."""
        await asyncio.gather(*(connection.aclose() for connection in self._connections.values()))
        self._connections.clear()

    async def __aenter__(self) -> "Connections":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()


@dataclass
class _ServerUse:
    """What an agent knows of one server: its session there, the tools, and how often it has called."""

    grant: Grant
    session: str | None = None
    generation: int = 0
    tools: dict[str, Tool] | None = None
    calls: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Agent:
    """An agent of the mapping; made by `load_agent`. A context manager, or end it with `aclose`."""

    def __init__(
        self,
        name: str,
        spec: AgentSpec,
        connections: Connections,
        *,
        owns_connections: bool,
        audit: AuditSink,
    ) -> None:
        self.name = name
        self.agent_id = secrets.token_hex(8)
        self.spec = spec
        self._connections = connections
        self._owns_connections = owns_connections
        self._audit = audit
        self._ended = False
        self._uses = {server: _ServerUse(grant) for server, grant in spec.servers.items()}

    async def execute_tool(
        self,
        server: str,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        on_progress: ProgressHandler | None = None,
    ) -> ToolResult:
        """Call `tool` of `server`; the server is started, and the agent's session made, at the first call.

        `ToolDeniedError` when the mapping does not allow it, `LimitError` when the budget is used up,
        `BackendError` when the
        server cannot be reached. That a tool reports a failure is not an exception; see
        `ToolResult.is_error`.
        """
        given = dict(arguments or {})
        started = time.monotonic()
        try:
            use = self._admit(server, tool)
            result = await self._call(server, use, tool, given, on_progress)
        except BaseException as error:
            denied = isinstance(error, ToolDeniedError | LimitError)
            self._record(
                server, tool, given, "denied" if denied else "exception", started, type(error).__name__
            )
            raise
        outcome = "error" if result.is_error else "ok"
        self._record(server, tool, given, outcome, started, "", result.structured.get("usage"))
        return result

    def _admit(self, server: str, tool: str) -> _ServerUse:
        if self._ended:
            raise BackendError(f"agent {self.name} has ended; load it again")
        use = self._uses.get(server)
        if use is None:
            allowed = ", ".join(self._uses) or "none"
            raise ToolDeniedError(
                f"agent {self.name} may not use the server {server!r} (it may use: {allowed})"
            )
        if not use.grant.allows(tool):
            allowed = ", ".join(use.grant.tools)
            raise ToolDeniedError(
                f"agent {self.name} may not call {tool!r} of {server} (it may call: {allowed})"
            )
        if use.grant.max_calls is not None and use.calls >= use.grant.max_calls:
            raise LimitError(f"agent {self.name} has used its {use.grant.max_calls} calls of {server}")
        use.calls += 1
        return use

    async def _call(
        self,
        server: str,
        use: _ServerUse,
        tool: str,
        arguments: dict[str, Any],
        on_progress: ProgressHandler | None,
    ) -> ToolResult:
        connection = self._connections.get(server)
        rule = self._connections.mapping.servers[server].session
        handle = None
        if (
            rule is not None
            and rule.argument not in arguments
            and await self._takes_session(connection, use, tool, rule)
        ):
            handle = await self._session(connection, use, rule)
            arguments = {**arguments, rule.argument: handle}
        started = time.monotonic()
        raw = await connection.call_tool(tool, arguments, on_progress)
        result = ToolResult.of(raw, time.monotonic() - started)
        # Of several calls that meet the end of a session, a later one finds that there is a new one already.
        if rule is not None and handle is not None and handle == use.session and _session_is_gone(result):
            await self._end_session(connection, use, rule)
        return result

    async def _takes_session(
        self, connection: ServerConnection, use: _ServerUse, tool: str, rule: SessionRule
    ) -> bool:
        tools = await self._tools(connection, use)
        return tool in tools and rule.argument in tools[tool].input_schema.get("properties", {})

    async def _tools(self, connection: ServerConnection, use: _ServerUse) -> dict[str, Tool]:
        if use.tools is None:
            use.tools = {tool.name: tool for tool in await connection.list_tools()}
        return use.tools

    async def _session(self, connection: ServerConnection, use: _ServerUse, rule: SessionRule) -> str:
        """The handle of the agent's session, made anew when there is none or the server is another one."""
        async with use.lock:
            generation = await connection.connect()
            if use.session is None or use.generation != generation:
                raw = await connection.call_tool(rule.create, dict(rule.arguments))
                result = ToolResult.of(raw, 0)
                handle = result.structured.get(rule.argument)
                if result.is_error or not isinstance(handle, str):
                    raise BackendError(f"{connection.parameters.name} gave no session: {result.text}")
                use.session, use.generation = handle, generation
            return use.session

    async def _end_session(self, connection: ServerConnection, use: _ServerUse, rule: SessionRule) -> None:
        handle, use.session = use.session, None
        if handle is not None:
            with contextlib.suppress(BackendError):
                await connection.call_tool(rule.destroy, {rule.argument: handle})

    async def list_tools(self, server: str) -> list[Tool]:
        """The tools of `server` that this agent may call, as the server describes them."""
        use = self._uses.get(server)
        if use is None:
            raise ToolDeniedError(f"agent {self.name} may not use the server {server!r}")
        tools = await self._tools(self._connections.get(server), use)
        return [tool for tool in tools.values() if use.grant.allows(tool.name)]

    def session_argument(self, server: str) -> str | None:
        """The argument of `server`'s tools that the agent fills in itself, if there is one."""
        rule = self._connections.mapping.servers[server].session
        return None if rule is None else rule.argument

    def has_session(self, server: str) -> bool:
        """Whether the agent has a session on `server` now."""
        return self._uses[server].session is not None

    def choose_model(self, model: str | None = None, base_url: str | None = None) -> ModelChoice:
        """The model that `run` would use. A `ConfigurationError` says what to set when there is none."""
        environ = self._connections.environ
        return choose_model(self.name, self.spec.model, environ, model=model, base_url=base_url)

    async def run(
        self,
        task: str,
        *,
        files: Sequence[Path | str] = (),
        model: "str | Model | None" = None,
        base_url: str | None = None,
        limits: RunLimits | None = None,
        instructions: str = "",
        show_images: bool = True,
        on_event: EventHandler | None = None,
    ) -> RunResult:
        """Let a language model work on `task` with the tools the mapping allows, until it answers.

        Needs the extra ``agent``. model: a name or a model object of pydantic-ai; None: the mapping's, or
        ``RINGFENCE_AGENT_MODEL``. base_url: where a server speaks OpenAI's protocol.
        files: put into the session first, under their names. instructions: added to the mapping's.
        show_images: whether the model is sent pictures; some cannot take them. on_event: told what happens,
        while it happens.
        `ConfigurationError`: no model, or it cannot be used; `LimitError`: a limit was passed;
        `BackendError`: the model or a server failed.
        """
        given = self.choose_model(model, base_url) if model is None or isinstance(model, str) else model
        try:
            from ringfence.agents.loop import Loop, with_files
        except ImportError as error:
            raise ConfigurationError(f"running an agent needs pydantic-ai ({error}): {INSTALL}") from error
        language = build_model(given) if isinstance(given, ModelChoice) else given
        names = await self.upload(files)
        loop = Loop(self, language, on_event, show_images=show_images)
        own = "\n\n".join(part for part in (self.spec.instructions, instructions) if part)
        return await loop.run(with_files(task, names), own, limits or RunLimits())

    async def upload(self, files: Sequence[Path | str]) -> list[str]:
        """Put files of this computer into the agent's session, by the tool ``upload_file``; their names."""
        paths = [Path(file) for file in files]
        names = [path.name for path in paths]
        for path in paths:
            if not path.is_file():
                raise ConfigurationError(f"{path} is not a file")
            if names.count(path.name) > 1:
                raise ConfigurationError(f"there are several files called {path.name}")
        if paths:
            server = next((name for name, use in self._uses.items() if use.grant.allows("upload_file")), None)
            if server is None:
                raise ToolDeniedError(f"agent {self.name} may not call upload_file of any server")
            for path in paths:
                await self._upload(server, path)
        return names

    async def _upload(self, server: str, path: Path) -> None:
        result = await self.execute_tool(server, "upload_file", _upload_arguments(path))
        if result.is_error:
            raise BackendError(f"{path} could not be put into the session: {result.text}")

    def _record(
        self,
        server: str,
        tool: str,
        arguments: Mapping[str, Any],
        outcome: Any,
        started: float,
        detail: str,
        usage: object = None,
    ) -> None:
        event = AuditEvent(
            agent=self.name,
            agent_id=self.agent_id,
            server=server,
            tool=tool,
            arguments_sha256=digest(arguments),
            outcome=outcome,
            duration_s=round(time.monotonic() - started, 6),
            detail=detail,
            usage=usage if isinstance(usage, Mapping) else {},
            trace_id=current_trace(),
        )
        deliver(self._audit, event)

    async def aclose(self) -> None:
        """End the agent's sessions, and its connections unless they are shared."""
        self._ended = True
        for server, use in self._uses.items():
            rule = self._connections.mapping.servers[server].session
            if rule is not None and use.session is not None and not self._owns_connections:
                await self._end_session(self._connections.get(server), use, rule)
        if self._owns_connections:
            await self._connections.aclose()

    async def __aenter__(self) -> "Agent":
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


def _upload_arguments(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _INLINE_FILE:
        return {"path": path.name, "local_path": str(path.resolve())}
    return {"path": path.name, "content_base64": base64.b64encode(path.read_bytes()).decode()}


def _session_is_gone(result: ToolResult) -> bool:
    """Whether the server says that the session it was given is no more."""
    if result.structured.get("session_state") == "lost":
        return True
    return result.is_error and _NO_SESSION.search(result.text) is not None


def load_agent(
    name: str,
    *,
    mapping: Path | ToolMapping | None = None,
    connections: Connections | None = None,
    environ: Mapping[str, str] | None = None,
    audit: AuditSink = log_event,
) -> Agent:
    """The agent called `name`, by the packaged mapping and the file that extends it. Starts nothing yet.

    connections: shared with other agents, and ended by whoever made them; None: the agent's own.
    environ: where the mapping's variables are looked up; None: the process's environment.
    """
    if connections is None:
        full = mapping if isinstance(mapping, ToolMapping) else load_mapping(mapping)
        own = Connections(full, environ)
    elif mapping is not None or environ is not None:
        raise ConfigurationError("shared connections have a mapping and an environment already")
    else:
        own = connections
    spec = own.mapping.agents.get(name)
    if spec is None:
        raise ConfigurationError(
            f"there is no agent {name!r} (there are: {', '.join(own.mapping.agents) or 'none'})"
        )
    return Agent(name, spec, own, owns_connections=connections is None, audit=audit)
