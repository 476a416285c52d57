"""The ``python_executor`` MCP server: Python and shell in isolated, stateful sandboxes.

Everything runs through the E2B SDK on the backend that the settings select. Starting is cheap and has no
side effects (some
clients start a second copy only to look at it): the SDK is imported, the backend started and a sandbox made
at the first call.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import anyio
from mcp.server import CacheHint, MCPServer
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult, ToolAnnotations
from pydantic import Field

from ringfence import __version__
from ringfence.core.config import Settings, load_settings
from ringfence.core.errors import RingfenceError
from ringfence.core.log import configure_logging
from ringfence.integrations.mcp.servers import texts
from ringfence.integrations.mcp.servers.heartbeat import heartbeat
from ringfence.integrations.mcp.servers.stdio import serve_stdio

if TYPE_CHECKING:
    from ringfence.integrations.mcp.servers.executor.executor import Executor


class App:
    """What lives as long as the server: the settings, and the executor once there was a call."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._executor: asyncio.Task[Executor] | None = None

    async def executor(self) -> "Executor":
        """The executor; its modules are imported in a thread at the first call."""
        if self._executor is None:
            self._executor = asyncio.create_task(asyncio.to_thread(self._make))
        return await asyncio.shield(self._executor)

    def _make(self) -> "Executor":
        from ringfence.integrations.mcp.servers.executor.executor import Executor
        from ringfence.integrations.mcp.servers.executor.hostfiles import HostFiles, default_roots

        roots = self.settings.mcp_roots
        if roots is None:
            roots = default_roots(Path.cwd(), Path.home())
        return Executor(self.settings, HostFiles(roots))

    async def aclose(self) -> None:
        """End every sandbox, and the embedded server."""
        if self._executor is not None:
            executor = await asyncio.shield(self._executor)
            await executor.aclose()


Ctx = Context[App, None]
SessionId = Annotated[
    str | None,
    Field(
        description="Session handle from create_session; omit for the default session.",
        json_schema_extra={"nullable": True},
    ),
]
Timeout = Annotated[
    float | None,
    Field(
        gt=0, le=86_400, description="Seconds until it is interrupted.", json_schema_extra={"nullable": True}
    ),
]
ExecutionId = Annotated[str, Field(description="From the result of execute_code.", max_length=64)]
SandboxPath = Annotated[
    str, Field(description="In the sandbox; relative paths start at /home/user.", max_length=4096)
]
LocalPath = Annotated[
    str | None,
    Field(
        description="A file on the user's computer, in an allowed directory.",
        json_schema_extra={"nullable": True},
    ),
]
OptionalText = Annotated[str | None, Field(json_schema_extra={"nullable": True})]

_RUNS = ToolAnnotations(
    read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=False
)
_READS = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)
_WRITES = ToolAnnotations(
    read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False
)


async def execute_code(
    ctx: Ctx,
    code: Annotated[
        str,
        Field(description="Python source; IPython syntax (%pip, !cmd, await) works.", max_length=1_000_000),
    ],
    session_id: SessionId = None,
    timeout_s: Timeout = None,
    background: Annotated[bool, Field(description="Return at once; ask with get_execution.")] = False,
) -> CallToolResult:
    async with heartbeat(ctx) as beat:
        executor = await _executor(ctx)
        return await executor.execute_code(code, session_id, timeout_s, background, beat)


async def get_execution(
    ctx: Ctx,
    execution_id: ExecutionId,
    wait_s: Annotated[float, Field(ge=0, le=600, description="Seconds to wait for the end.")] = 20,
) -> CallToolResult:
    async with heartbeat(ctx) as beat:
        return await (await _executor(ctx)).get_execution(execution_id, wait_s, beat)


async def interrupt_execution(
    ctx: Ctx, session_id: SessionId = None, execution_id: OptionalText = None
) -> CallToolResult:
    async with heartbeat(ctx):
        return await (await _executor(ctx)).interrupt_execution(session_id, execution_id)


async def create_session(
    ctx: Ctx,
    env: Annotated[
        dict[str, str] | None,
        Field(description="Environment variables.", json_schema_extra={"nullable": True}),
    ] = None,
) -> CallToolResult:
    async with heartbeat(ctx) as beat:
        return await (await _executor(ctx)).create_session(env or {}, beat)


async def list_sessions(ctx: Ctx) -> CallToolResult:
    return await (await _executor(ctx)).list_sessions()


async def close_session(ctx: Ctx, session_id: SessionId = None) -> CallToolResult:
    return await (await _executor(ctx)).close_session(session_id)


async def run_command(
    ctx: Ctx,
    command: Annotated[str, Field(description="For bash.", max_length=100_000)],
    session_id: SessionId = None,
    timeout_s: Timeout = None,
    cwd: OptionalText = None,
) -> CallToolResult:
    async with heartbeat(ctx) as beat:
        return await (await _executor(ctx)).run_command(command, session_id, timeout_s, cwd, beat)


async def list_files(
    ctx: Ctx,
    path: SandboxPath = "/home/user",
    session_id: SessionId = None,
    pattern: Annotated[
        str | None, Field(description="Like *.csv", json_schema_extra={"nullable": True})
    ] = None,
    depth: Annotated[int, Field(ge=1, le=20)] = 1,
    limit: Annotated[int, Field(ge=1, le=1000)] = 200,
) -> CallToolResult:
    async with heartbeat(ctx):
        return await (await _executor(ctx)).list_files(session_id, path, pattern, depth, limit)


async def read_file(
    ctx: Ctx,
    path: SandboxPath,
    session_id: SessionId = None,
    offset: Annotated[int, Field(ge=1, description="First line, from 1.")] = 1,
    limit: Annotated[int, Field(ge=1, le=5000, description="Lines.")] = 500,
) -> CallToolResult:
    async with heartbeat(ctx):
        return await (await _executor(ctx)).read_file(session_id, path, offset, limit)


async def write_file(
    ctx: Ctx,
    path: SandboxPath,
    content: Annotated[str, Field(max_length=2_000_000)],
    session_id: SessionId = None,
) -> CallToolResult:
    async with heartbeat(ctx):
        return await (await _executor(ctx)).write_file(session_id, path, content)


async def upload_file(
    ctx: Ctx,
    path: Annotated[
        str | None,
        Field(
            description="Where it goes in the sandbox; default: the same name.",
            json_schema_extra={"nullable": True},
        ),
    ] = None,
    local_path: LocalPath = None,
    content: OptionalText = None,
    content_base64: OptionalText = None,
    session_id: SessionId = None,
) -> CallToolResult:
    async with heartbeat(ctx):
        executor = await _executor(ctx)
        return await executor.upload_file(session_id, path, content, content_base64, local_path)


async def download_file(
    ctx: Ctx,
    path: SandboxPath,
    local_path: LocalPath = None,
    overwrite: bool = False,
    session_id: SessionId = None,
) -> CallToolResult:
    async with heartbeat(ctx):
        return await (await _executor(ctx)).download_file(session_id, path, local_path, overwrite)


async def _executor(ctx: Ctx) -> "Executor":
    return await ctx.request_context.lifespan_context.executor()


# In the order in which a model reads them; the order never changes.
_TOOLS = (
    (execute_code, "Execute Python", _RUNS),
    (get_execution, "Get an execution", _READS),
    (interrupt_execution, "Interrupt an execution", _RUNS),
    (run_command, "Run a shell command", _RUNS),
    (list_files, "List files", _READS),
    (read_file, "Read a file", _READS),
    (write_file, "Write a file", _WRITES),
    (upload_file, "Upload a file", _WRITES),
    (download_file, "Download a file", _RUNS),
    (create_session, "Create a session", _RUNS),
    (list_sessions, "List sessions", _READS),
    (close_session, "Close a session", _WRITES),
)


def build(settings: Settings) -> MCPServer[App]:
    """The server with all its tools; nothing is started yet."""

    @asynccontextmanager
    async def lifespan(_: MCPServer[App]) -> AsyncIterator[App]:
        app = App(settings)
        try:
            yield app
        finally:
            with anyio.CancelScope(shield=True):
                await app.aclose()

    server: MCPServer[App] = MCPServer(
        "python_executor",
        title="Ringfence Python executor",
        version=__version__,
        instructions=texts.instructions(settings),
        lifespan=lifespan,
        log_level="WARNING",
        cache_hints={"tools/list": CacheHint(ttl_ms=60_000, scope="public")},
    )
    descriptions = texts.descriptions(settings)
    for function, title, annotations in _TOOLS:
        meta = (
            {"anthropic/alwaysLoad": True, "anthropic/maxResultSizeChars": 100_000}
            if function is execute_code
            else None
        )
        server.add_tool(
            function,
            title=title,
            description=descriptions[function.__name__],
            annotations=annotations,
            meta=meta,
            structured_output=False,
        )
    return server


def main() -> None:
    """Serve on standard input and output until the client goes."""
    settings = load_settings()
    configure_logging(settings.log_level)
    anyio.run(serve_stdio, build(settings))
    os._exit(0)


if __name__ == "__main__":
    try:
        main()
    except RingfenceError as error:
        raise SystemExit(f"python_executor: {error}") from None
