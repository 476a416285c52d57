"""What calls and sessions have used, in `_meta`, at the end of a session, and in the agents' audit."""

import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from mcp import Client

from ringfence.agents import load_agent
from ringfence.agents.audit import AuditEvent
from ringfence.integrations.mcp.meta import META_KEY

Connect = Callable[..., AbstractAsyncContextManager[Client]]


async def test_usage_is_for_programs_and_told_at_the_end(connect: Connect, remote: dict[str, str]) -> None:
    async with connect(**remote) as client:

        async def call(tool: str, **arguments: Any) -> tuple[Any, dict[str, Any]]:
            result = await client.call_tool(tool, arguments)
            assert not result.is_error, result.content
            assert result.meta is not None
            return result, result.meta[META_KEY]

        result, record = await call("execute_code", code="print('x' * 999)")
        assert record["usage"]["output_chars"] == 1000
        assert 0 < record["usage"]["wall_s"] == record["usage"]["session"]["wall_s"]
        assert record["usage"]["backend"] == "remote"
        assert "usage" not in result.structured_content
        _, record = await call("run_command", command="echo 12345")
        assert (record["usage"]["output_chars"], record["usage"]["session"]["executions"]) == (6, 2)
        _, record = await call("write_file", path="a.txt", content="1234")
        assert record["usage"]["session"]["uploaded_bytes"] == 4
        await call("download_file", path="a.txt")

        result, record = await call("close_session")
        assert record["usage"]["executions"] == 2
        assert record["usage"]["downloaded_bytes"] == 4
        assert record["usage"]["sandbox_s"] >= record["usage"]["wall_s"]
        assert "cpu_s" in record["usage"]
        assert "It ran 2 executions" in result.content[0].text


async def test_an_agents_audit_has_the_usage_of_each_call(server: Any, tmp_path: Path) -> None:
    events: list[AuditEvent] = []
    there = {"RINGFENCE_URL": server.url, "RINGFENCE_API_KEY": server.key, "RINGFENCE_TEMPLATE": "base"}
    environ = {**os.environ, **there}
    async with load_agent("data_scientist", environ=environ, audit=events.append) as agent:
        await agent.execute_tool("python_executor", "execute_code", {"code": "print('four')"})
    (event,) = events
    assert event.usage["output_chars"] == 5
    assert event.usage["backend"] == "remote"
