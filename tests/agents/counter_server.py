"""A small real MCP server for the tests of agents: sessions that count, a slow tool, and a way to die."""

import os
import secrets

import anyio
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult, ImageContent, TextContent

server = MCPServer("counter", log_level="ERROR")
sessions: dict[str, int] = {}


@server.tool(structured_output=False)
async def create_session() -> CallToolResult:
    handle = secrets.token_hex(8)
    sessions[handle] = 0
    return CallToolResult(
        content=[TextContent(text=handle)], structured_content={"session_id": handle}, is_error=False
    )


@server.tool()
async def close_session(session_id: str) -> str:
    del sessions[session_id]
    return "closed"


@server.tool(structured_output=False)
async def count(session_id: str) -> str:
    if session_id not in sessions:
        raise ToolError("there is no such session")
    sessions[session_id] += 1
    return str(sessions[session_id])


@server.tool(structured_output=False)
async def fail(session_id: str) -> str:
    raise ToolError(f"session_id={session_id!r}: session.csv: file not found")


@server.tool(structured_output=False)
async def open_sessions() -> str:
    return str(len(sessions))


@server.tool(structured_output=False)
async def forget() -> str:
    sessions.clear()
    return "forgotten"


@server.tool(structured_output=False)
async def environment() -> str:
    return "\n".join(sorted(os.environ))


@server.tool(structured_output=False)
async def picture() -> CallToolResult:
    return CallToolResult(content=[TextContent(text="one"), ImageContent(data="AAEC", mime_type="image/png")])


@server.tool(structured_output=False)
async def die() -> str:
    os._exit(3)


@server.tool(structured_output=False)
async def sleep(seconds: float) -> str:
    await anyio.sleep(seconds)
    return "slept"


if __name__ == "__main__":
    server.run()
