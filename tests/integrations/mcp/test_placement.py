"""A policy over two backends, which here are two accounts of one real server."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp_types import CallToolResult

from ringfence.integrations.mcp.meta import META_KEY

Connect = Callable[..., AbstractAsyncContextManager[Client]]

RULES = """
version: 1
default: remote
resident: [{directory}/patients]
rules:
  - {{use: e2b, memory_over_mb: 700, template: base}}
  - {{use: e2b, sandboxes_over: 2}}
"""


@pytest.fixture
def policy(launch: Callable[..., Any], tmp_path: Path) -> dict[str, str]:
    """Settings for two backends; nobody else has sandboxes on their server."""
    server = launch(tmp_path / "data", templates="base")
    (tmp_path / "patients").mkdir()
    (tmp_path / "patients" / "a.csv").write_text("name\n")
    file = tmp_path / "policy.yaml"
    file.write_text(RULES.format(directory=tmp_path))
    return {
        "RINGFENCE_BACKEND_POLICY": str(file),
        "RINGFENCE_TEMPLATE": "base",
        "RINGFENCE_URL": server.url,
        "RINGFENCE_API_KEY": server.key,
        "E2B_API_KEY": server.stranger,
        "E2B_API_URL": server.url,
        "E2B_SANDBOX_URL": server.url,
    }


async def test_sessions_go_where_the_rules_say_and_say_so(connect: Connect, policy: dict[str, str]) -> None:
    async with connect(**policy) as client:
        usual = await create(client)
        assert usual["backend"].startswith("remote (")
        assert usual["placed_by"] == "the policy's default"
        large = await create(client, memory_mb=701)
        assert large["backend"].startswith("e2b (")
        assert large["placed_by"] == "rule 1: more than 700 MiB of memory"

        second = await create(client, resident=True, memory_mb=512)
        assert second["backend"].startswith("remote (")
        burst = await create(client)
        assert burst["backend"].startswith("e2b (")
        assert burst["placed_by"] == "rule 2: more than 2 sandboxes at once"
        kept = await create(client, resident=True)
        assert kept["backend"].startswith("remote (")

        for session in (usual, large, burst):
            ran = await client.call_tool(
                "execute_code", {"code": "6 * 7", "session_id": session["session_id"]}
            )
            assert (record(ran)["result"], record(ran)["backend"]) == ("42", session["backend"])
        listed = record(await client.call_tool("list_sessions", {}))["sessions"]
        assert {row["session_id"]: row["backend"] for row in listed}[burst["session_id"]] == burst["backend"]

        refused = await upload(client, large)
        assert refused.is_error
        assert "must not leave the operator's machines" in refused.content[0].text  # type: ignore[union-attr]
        assert not (await upload(client, kept)).is_error


async def test_a_backend_that_is_chosen_and_fails_is_not_replaced_by_another(
    connect: Connect, policy: dict[str, str]
) -> None:
    async with connect(**{**policy, "E2B_API_KEY": "e2b_" + "0" * 40}) as client:
        refused = await client.call_tool("create_session", {"memory_mb": 701})
        assert refused.is_error
        text = refused.content[0].text  # type: ignore[union-attr]
        assert "No sandbox could be created on e2b" in text
        assert "rule 1" in text
        assert (await create(client))["backend"].startswith("remote (")


async def create(client: Client, **arguments: Any) -> dict[str, Any]:
    return record(await client.call_tool("create_session", arguments))


async def upload(client: Client, session: dict[str, Any]) -> CallToolResult:
    arguments = {"local_path": "patients/a.csv", "session_id": session["session_id"]}
    return await client.call_tool("upload_file", arguments)


def record(result: CallToolResult) -> dict[str, Any]:
    assert not result.is_error, result.content
    assert result.meta is not None
    found: dict[str, Any] = result.meta[META_KEY]
    return found
