import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ringfence.agents import AuditEvent, Connections, ToolDeniedError, load_agent, load_mapping
from ringfence.agents.audit import digest
from ringfence.core.errors import BackendError, ConfigurationError, LimitError

SERVER = Path(__file__).with_name("counter_server.py")


@pytest.fixture
def mapping(tmp_path: Path) -> Path:
    path = tmp_path / "mapping.yaml"
    counter = {
        "command": sys.executable,
        "args": [str(SERVER)],
        "env": {"GREETING": "${GREETING:-none}"},
        "session": {"create": "create_session", "destroy": "close_session"},
    }
    content = {
        "version": 1,
        "servers": {
            "counter": counter,
            "legacy": {**counter, "protocol": "legacy"},
            "broken": {"command": sys.executable, "args": ["-c", "raise SystemExit(3)"]},
        },
        "agents": {
            "one": {
                "servers": {
                    "counter": {
                        "tools": [
                            "count",
                            "open_*",
                            "forget",
                            "environment",
                            "picture",
                            "die",
                            "fail",
                            "sleep",
                        ]
                    }
                }
            },
            "older": {"servers": {"legacy": {"tools": ["count"]}}},
            "thrifty": {"servers": {"counter": {"tools": ["count"], "max_calls": 2}}},
            "unlucky": {"servers": {"broken": {"tools": ["*"]}}},
        },
    }
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(("name", "server"), [("one", "counter"), ("older", "legacy")])
async def test_an_agent_works_in_a_session_of_its_own(mapping: Path, name: str, server: str) -> None:
    async with load_agent(name, mapping=mapping) as agent:
        assert (await agent.execute_tool(server, "count")).text == "1"
        assert (await agent.execute_tool(server, "count")).text == "2"


async def test_agents_on_one_connection_do_not_share_a_session(mapping: Path) -> None:
    async with Connections(load_mapping(mapping)) as connections:
        first, second = load_agent("one", connections=connections), load_agent("one", connections=connections)
        await first.execute_tool("counter", "count")
        assert (await second.execute_tool("counter", "count")).text == "1"
        assert (await first.execute_tool("counter", "open_sessions")).text == "2"
        await second.aclose()
        assert (await first.execute_tool("counter", "open_sessions")).text == "1"


async def test_what_is_not_in_the_mapping_is_refused_before_anything_starts(mapping: Path) -> None:
    events: list[AuditEvent] = []
    async with load_agent("unlucky", mapping=mapping, audit=events.append) as agent:
        with pytest.raises(ToolDeniedError, match="may not use the server 'counter'"):
            await agent.execute_tool("counter", "count")
    async with load_agent("one", mapping=mapping, audit=events.append) as agent:
        with pytest.raises(ToolDeniedError, match="may not call 'close_session'"):
            await agent.execute_tool("counter", "close_session", {"session_id": "x"})
        names = {tool.name for tool in await agent.list_tools("counter")}
        assert "count" in names
        assert "close_session" not in names
    assert [event.outcome for event in events] == ["denied", "denied"]


async def test_the_budget_of_calls_ends(mapping: Path) -> None:
    async with load_agent("thrifty", mapping=mapping) as agent:
        await agent.execute_tool("counter", "count")
        await agent.execute_tool("counter", "count")
        with pytest.raises(LimitError, match="2 calls"):
            await agent.execute_tool("counter", "count")


async def test_every_call_is_audited_without_its_arguments(mapping: Path) -> None:
    events: list[AuditEvent] = []
    async with load_agent("one", mapping=mapping, audit=events.append) as agent:
        await agent.execute_tool("counter", "sleep", {"seconds": 0})
        assert (await agent.execute_tool("counter", "sleep", {"seconds": "soon"})).is_error
    assert [(event.tool, event.outcome) for event in events] == [("sleep", "ok"), ("sleep", "error")]
    assert events[0].arguments_sha256 == digest({"seconds": 0})
    assert events[0].agent_id == agent.agent_id


async def test_a_failing_audit_sink_does_not_fail_the_call(mapping: Path) -> None:
    def sink(event: AuditEvent) -> None:
        raise OSError("disk full")

    async with load_agent("one", mapping=mapping, audit=sink) as agent:
        assert (await agent.execute_tool("counter", "count")).text == "1"


async def test_a_server_that_died_is_started_again_with_a_new_session(mapping: Path) -> None:
    async with load_agent("one", mapping=mapping) as agent:
        await agent.execute_tool("counter", "count")
        with pytest.raises(BackendError, match="went away"):
            await agent.execute_tool("counter", "die")
        assert (await agent.execute_tool("counter", "count")).text == "1"


async def test_a_session_that_the_server_lost_is_replaced_at_the_next_call(mapping: Path) -> None:
    async with load_agent("one", mapping=mapping) as agent:
        await agent.execute_tool("counter", "count")
        await agent.execute_tool("counter", "forget")
        assert (await agent.execute_tool("counter", "count")).is_error
        assert (await agent.execute_tool("counter", "count")).text == "1"


async def test_a_late_answer_about_the_old_session_leaves_the_new_one(
    mapping: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with load_agent("one", mapping=mapping) as agent:
        await agent.execute_tool("counter", "count")
        await agent.execute_tool("counter", "forget")
        connection = agent._connections.get("counter")
        call, renewed = connection.call_tool, asyncio.Event()

        async def late(tool: str, arguments: dict[str, Any], on_progress: Any = None) -> Any:
            result = await call(tool, arguments, on_progress)
            await renewed.wait()
            return result

        with monkeypatch.context() as patched:
            patched.setattr(connection, "call_tool", late)
            first = asyncio.create_task(agent.execute_tool("counter", "count"))
            await asyncio.sleep(0.2)
        assert (await agent.execute_tool("counter", "count")).is_error
        assert (await agent.execute_tool("counter", "count")).text == "1"
        renewed.set()
        assert (await first).is_error
        assert (await agent.execute_tool("counter", "count")).text == "2"


async def test_an_error_that_names_a_session_does_not_end_it(mapping: Path) -> None:
    async with load_agent("one", mapping=mapping) as agent:
        await agent.execute_tool("counter", "count")
        assert (await agent.execute_tool("counter", "fail")).is_error
        assert (await agent.execute_tool("counter", "count")).text == "2"


async def test_an_agent_that_has_ended_starts_nothing(mapping: Path) -> None:
    async with load_agent("one", mapping=mapping) as agent:
        pass
    with pytest.raises(BackendError, match="has ended"):
        await agent.execute_tool("counter", "count")


async def test_a_server_that_does_not_start_is_an_error_that_names_it(mapping: Path) -> None:
    async with load_agent("unlucky", mapping=mapping) as agent:
        with pytest.raises(BackendError, match="broken"):
            await agent.execute_tool("broken", "anything")


async def test_calls_may_come_from_any_task_and_at_once(mapping: Path) -> None:
    async with load_agent("one", mapping=mapping) as agent:
        calls = [asyncio.create_task(agent.execute_tool("counter", "count")) for _ in range(8)]
        results = await asyncio.gather(*calls)
    assert sorted(int(result.text) for result in results) == list(range(1, 9))


async def test_a_cancelled_call_leaves_the_connection_usable(mapping: Path) -> None:
    async with load_agent("one", mapping=mapping) as agent:
        await agent.execute_tool("counter", "count")
        call = asyncio.create_task(agent.execute_tool("counter", "sleep", {"seconds": 60}))
        await asyncio.sleep(0.2)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert (await agent.execute_tool("counter", "count")).text == "2"


async def test_a_server_sees_only_what_the_mapping_gives_it(
    mapping: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET", "x")
    monkeypatch.setenv("GREETING", "hello")
    async with load_agent("one", mapping=mapping) as agent:
        names = (await agent.execute_tool("counter", "environment")).text.split("\n")
    assert "GREETING" in names
    assert "A_SECRET" not in names


async def test_pictures_come_as_bytes(mapping: Path) -> None:
    async with load_agent("one", mapping=mapping) as agent:
        result = await agent.execute_tool("counter", "picture")
    assert result.images[0].data == b"\x00\x01\x02"
    assert result.text == "one"


def test_an_unknown_agent_is_named(mapping: Path) -> None:
    with pytest.raises(ConfigurationError, match="no agent 'nobody'"):
        load_agent("nobody", mapping=mapping)


async def test_an_agent_can_be_ended_without_a_context(mapping: Path) -> None:
    agent = load_agent("one", mapping=mapping)
    await agent.execute_tool("counter", "count")
    await agent.aclose()
    await agent.aclose()
