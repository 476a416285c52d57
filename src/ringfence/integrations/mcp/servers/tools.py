"""The tools as a client sees them: names, parameters, annotations. The work is the executor's."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mcp.server.mcpserver import Context
from mcp_types import CallToolResult, ToolAnnotations
from pydantic import BeforeValidator, Field

from ringfence.core.placement import Wish
from ringfence.integrations.mcp.servers.app import App
from ringfence.integrations.mcp.servers.heartbeat import heartbeat

if TYPE_CHECKING:
    from ringfence.integrations.mcp.servers.executor.executor import Executor

Ctx = Context[App, None]

# Every parameter that may be left out says so, and takes null for it: some clients (smolagents) refuse a call
# that leaves out what is not `nullable`, and models write null where they mean nothing.
_NULLABLE: dict[str, Any] = {"nullable": True}


def _else(default: object) -> BeforeValidator:
    """Null stands for `default`."""
    return BeforeValidator(lambda given: default if given is None else given)


SessionId = Annotated[
    str | None,
    Field(
        description="Session handle from create_session; omit for the default session.",
        json_schema_extra=_NULLABLE,
    ),
]
Timeout = Annotated[
    float | None,
    Field(gt=0, le=86_400, description="Seconds until it is interrupted.", json_schema_extra=_NULLABLE),
]
ExecutionId = Annotated[str, Field(description="From the result of execute_code.", max_length=64)]
SandboxPath = Annotated[
    str, Field(description="In the sandbox; relative paths start at /home/user.", max_length=4096)
]
LocalPath = Annotated[
    str | None,
    Field(
        description="A file on the user's computer, in an allowed directory.",
        json_schema_extra=_NULLABLE,
    ),
]
OnLoss = Annotated[
    Literal["report", "replay"] | None,
    Field(
        description="If the session's sandbox was lost: report it, or rebuild it by running its cells again.",
        json_schema_extra=_NULLABLE,
    ),
]
Packages = Annotated[
    list[Annotated[str, Field(max_length=300)]],
    Field(description="Like ['polars', 'httpx>=0.27'], or paths of wheels in the sandbox.", max_length=50),
]
Overwrite = Annotated[bool, _else(False), Field(json_schema_extra=_NULLABLE)]
OptionalText = Annotated[str | None, Field(json_schema_extra=_NULLABLE)]

_RUNS = ToolAnnotations(
    read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=False
)
_READS = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)
_INSTALLS = ToolAnnotations(
    read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=True
)
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
    background: Annotated[
        bool,
        _else(False),
        Field(description="Return at once; ask with get_execution.", json_schema_extra=_NULLABLE),
    ] = False,
    on_loss: OnLoss = None,
) -> CallToolResult:
    async with heartbeat(ctx) as beat:
        executor = await _executor(ctx)
        return await executor.execute_code(code, session_id, timeout_s, background, on_loss, beat)


async def get_execution(
    ctx: Ctx,
    execution_id: ExecutionId,
    wait_s: Annotated[
        float,
        _else(20),
        Field(ge=0, le=600, description="Seconds to wait for the end.", json_schema_extra=_NULLABLE),
    ] = 20,
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
        Field(description="Environment variables.", json_schema_extra=_NULLABLE),
    ] = None,
    packages: Annotated[
        list[str] | None,
        Field(description="Packages to install in it.", max_length=50, json_schema_extra=_NULLABLE),
    ] = None,
    on_loss: OnLoss = None,
    memory_mb: Annotated[
        int | None,
        Field(
            ge=64,
            le=1_048_576,
            description="Memory it needs, MiB, if more or less than usual.",
            json_schema_extra=_NULLABLE,
        ),
    ] = None,
    resident: Annotated[
        bool,
        _else(False),
        Field(description="Its data must not go to a cloud.", json_schema_extra=_NULLABLE),
    ] = False,
) -> CallToolResult:
    async with heartbeat(ctx) as beat:
        executor = await _executor(ctx)
        wish = Wish(memory_mb, resident)
        return await executor.create_session(env or {}, on_loss or "report", packages or [], wish, beat)


async def fork_session(ctx: Ctx, session_id: SessionId = None) -> CallToolResult:
    async with heartbeat(ctx) as beat:
        return await (await _executor(ctx)).fork_session(session_id, beat)


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


async def install_packages(ctx: Ctx, packages: Packages, session_id: SessionId = None) -> CallToolResult:
    async with heartbeat(ctx) as beat:
        return await (await _executor(ctx)).install_packages(packages, session_id, beat)


async def list_files(
    ctx: Ctx,
    path: Annotated[SandboxPath, _else("/home/user"), Field(json_schema_extra=_NULLABLE)] = "/home/user",
    session_id: SessionId = None,
    pattern: Annotated[str | None, Field(description="Like *.csv", json_schema_extra=_NULLABLE)] = None,
    depth: Annotated[int, _else(1), Field(ge=1, le=20, json_schema_extra=_NULLABLE)] = 1,
    limit: Annotated[int, _else(200), Field(ge=1, le=1000, json_schema_extra=_NULLABLE)] = 200,
) -> CallToolResult:
    async with heartbeat(ctx):
        return await (await _executor(ctx)).list_files(session_id, path, pattern, depth, limit)


async def read_file(
    ctx: Ctx,
    path: SandboxPath,
    session_id: SessionId = None,
    offset: Annotated[
        int, _else(1), Field(ge=1, description="First line, from 1.", json_schema_extra=_NULLABLE)
    ] = 1,
    limit: Annotated[
        int, _else(500), Field(ge=1, le=5000, description="Lines.", json_schema_extra=_NULLABLE)
    ] = 500,
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
            json_schema_extra=_NULLABLE,
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
    overwrite: Overwrite = False,
    session_id: SessionId = None,
) -> CallToolResult:
    async with heartbeat(ctx):
        return await (await _executor(ctx)).download_file(session_id, path, local_path, overwrite)


async def export_notebook(
    ctx: Ctx,
    path: Annotated[
        str | None,
        Field(description="Where in the sandbox; default: session.ipynb.", json_schema_extra=_NULLABLE),
    ] = None,
    local_path: LocalPath = None,
    overwrite: Overwrite = False,
    session_id: SessionId = None,
) -> CallToolResult:
    async with heartbeat(ctx):
        executor = await _executor(ctx)
        return await executor.export_notebook(session_id, path, local_path, overwrite)


async def _executor(ctx: Ctx) -> "Executor":
    return await ctx.request_context.lifespan_context.executor()


@dataclass(frozen=True)
class Tool:
    """A function, and what clients are told about it beside its description."""

    function: Callable[..., Awaitable[CallToolResult]]
    title: str
    annotations: ToolAnnotations
    meta: dict[str, Any] | None = None


# Shown to the model at once, and whole, by clients that otherwise defer and cut.
_FOREMOST = {"anthropic/alwaysLoad": True, "anthropic/maxResultSizeChars": 100_000}
# In the order in which a model reads them; the order never changes.
TOOLS = (
    Tool(execute_code, "Execute Python", _RUNS, _FOREMOST),
    Tool(get_execution, "Get an execution", _READS),
    Tool(interrupt_execution, "Interrupt an execution", _RUNS),
    Tool(run_command, "Run a shell command", _RUNS),
    Tool(install_packages, "Install packages", _INSTALLS),
    Tool(list_files, "List files", _READS),
    Tool(read_file, "Read a file", _READS),
    Tool(write_file, "Write a file", _WRITES),
    Tool(upload_file, "Upload a file", _WRITES),
    Tool(download_file, "Download a file", _RUNS),
    Tool(export_notebook, "Export as a notebook", _RUNS),
    Tool(create_session, "Create a session", _RUNS),
    Tool(fork_session, "Fork a session", _RUNS),
    Tool(list_sessions, "List sessions", _READS),
    Tool(close_session, "Close a session", _WRITES),
)
