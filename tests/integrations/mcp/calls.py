"""Calls of tools by a real client, and what they answered."""

import asyncio
from typing import Any

import httpx
from mcp import Client
from mcp_types import CallToolResult

from ringfence.integrations.mcp.meta import META_KEY


def text_of(result: CallToolResult) -> str:
    """The text of an answer, or of a refusal."""
    return str(result.content[0].text)  # type: ignore[union-attr]


def record_of(result: CallToolResult) -> dict[str, Any]:
    """The record of a call that went well."""
    assert result.is_error is False, result.content
    assert result.meta is not None
    record: dict[str, Any] = result.meta[META_KEY]
    return record


async def execute(client: Client, code: str, **arguments: Any) -> dict[str, Any]:
    """The record of an execution."""
    return record_of(await client.call_tool("execute_code", {"code": code, **arguments}))


async def wait_until_running(client: Client) -> str:
    """The handle of the session in which something runs by now."""
    while True:
        for session in record_of(await client.call_tool("list_sessions", {}))["sessions"]:
            if session["running"]:
                return str(session["session_id"])
        await asyncio.sleep(0.05)


async def sandboxes(server: Any) -> set[str]:
    """The ids of the sandboxes that a server has."""
    async with httpx.AsyncClient(headers={"X-API-KEY": server.key}) as http:
        listed = (await http.get(f"{server.url}/v2/sandboxes")).json()
    return {item["sandboxID"] for item in listed}
