"""The loop with scripted models: offline, with real MCP servers."""

import json
import subprocess
import sys
from pathlib import Path

import pydantic_ai.models
import pydantic_ai.models.instrumented
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic_ai.messages import (
    BinaryContent,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
)
from pydantic_ai.models.function import AgentInfo, FunctionModel

from ringfence.agents import AuditEvent, RunEvent, RunLimits, ToolDeniedError, load_agent
from ringfence.agents.models import choose_model
from ringfence.core.errors import ConfigurationError, LimitError

SERVER = Path(__file__).with_name("counter_server.py")


@pytest.fixture(autouse=True)
def no_real_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pydantic_ai.models, "ALLOW_MODEL_REQUESTS", False)


@pytest.fixture
def mapping(tmp_path: Path) -> Path:
    path = tmp_path / "mapping.yaml"
    counter = {
        "command": sys.executable,
        "args": [str(SERVER)],
        "session": {"create": "create_session", "destroy": "close_session"},
    }
    tools = ["count", "sleep", "picture", "upload_file"]
    agents = {
        "one": {"instructions": "Count.", "servers": {"counter": {"tools": tools}}},
        "thrifty": {"servers": {"counter": {"tools": ["count"], "max_calls": 1}}},
        "handless": {"servers": {"counter": {"tools": ["count"]}}},
    }
    path.write_text(json.dumps({"version": 1, "servers": {"counter": counter}, "agents": agents}))
    return path


class Script:
    """A model that says what it was told to say, and keeps what it was asked."""

    def __init__(self, *turns: str | ToolCallPart | list[ToolCallPart]) -> None:
        self.turns = turns
        self.messages: list[ModelMessage] = []
        self.info: AgentInfo | None = None

    def __call__(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        self.messages, self.info = messages, info
        turn = self.turns[sum(isinstance(message, ModelResponse) for message in messages)]
        if isinstance(turn, str):
            return ModelResponse(parts=[TextPart(turn)])
        return ModelResponse(parts=turn if isinstance(turn, list) else [turn])

    def answers(self) -> list[ToolReturnPart]:
        """What the tools gave the model."""
        requests = [message for message in self.messages if isinstance(message, ModelRequest)]
        return [part for request in requests for part in request.parts if isinstance(part, ToolReturnPart)]


async def test_the_model_calls_tools_in_the_agents_session(mapping: Path) -> None:
    audit: list[AuditEvent] = []
    events: list[RunEvent] = []
    script = Script([ToolCallPart("count"), ToolCallPart("count")], ToolCallPart("count"), "three")
    async with load_agent("one", mapping=mapping, audit=audit.append) as agent:
        result = await agent.run("Count to three", model=FunctionModel(script), on_event=events.append)
    assert result.output == "three"
    assert [part.content for part in script.answers()] == ["1", "2", "3"]
    assert (result.usage.requests, result.usage.tool_calls) == (3, 3)
    assert [event.tool for event in audit] == ["count"] * 3
    assert [event.kind for event in events] == ["call", "result"] * 3 + ["text"]
    assert events[-1].text == "three"


async def test_the_model_sees_only_allowed_tools_and_no_session_argument(mapping: Path) -> None:
    script = Script("done")
    async with load_agent("one", mapping=mapping) as agent:
        await agent.run("Nothing", model=FunctionModel(script))
    assert script.info is not None
    tools = {tool.name: tool for tool in script.info.function_tools}
    assert set(tools) == {"count", "sleep", "picture"}
    assert tools["count"].parameters_json_schema["properties"] == {}
    assert "session_id" not in tools["count"].parameters_json_schema.get("required", [])
    assert script.info.instructions == "Count."


async def test_a_tool_the_mapping_does_not_allow_cannot_be_called(mapping: Path) -> None:
    audit: list[AuditEvent] = []
    script = Script(ToolCallPart("environment"), "no")
    async with load_agent("one", mapping=mapping, audit=audit.append) as agent:
        result = await agent.run("Look", model=FunctionModel(script))
    assert result.output == "no"
    assert audit == []


async def test_a_failing_tool_is_told_to_the_model_as_often_as_it_fails(mapping: Path) -> None:
    wrong = ToolCallPart("sleep", {"seconds": "soon"})
    script = Script(wrong, wrong, wrong, "gave up")
    async with load_agent("one", mapping=mapping) as agent:
        result = await agent.run("Sleep", model=FunctionModel(script))
    assert result.output == "gave up"
    assert [part.outcome for part in script.answers()] == ["failed"] * 3


async def test_the_mappings_budget_of_calls_is_told_to_the_model(mapping: Path) -> None:
    script = Script(ToolCallPart("count"), ToolCallPart("count"), "one is enough")
    async with load_agent("thrifty", mapping=mapping) as agent:
        result = await agent.run("Count", model=FunctionModel(script))
    assert result.output == "one is enough"
    assert "has used its 1 calls" in str(script.answers()[1].content)


async def test_pictures_go_to_the_model_and_into_the_result(mapping: Path) -> None:
    script = Script(ToolCallPart("picture"), ToolCallPart("picture"), "seen")
    async with load_agent("one", mapping=mapping) as agent:
        result = await agent.run("Look", model=FunctionModel(script))
    assert [chart.name for chart in result.charts] == ["chart-1.png"]
    text, image = script.answers()[0].content
    assert text == "one\n[pictures: chart-1.png]"
    assert isinstance(image, BinaryContent)
    assert image.data == result.charts[0].blob.data == b"\x00\x01\x02"


async def test_a_model_that_takes_no_pictures_gets_their_names(mapping: Path) -> None:
    script = Script(ToolCallPart("picture"), "read")
    async with load_agent("one", mapping=mapping) as agent:
        await agent.run("Look", model=FunctionModel(script), show_images=False)
    assert script.answers()[0].content == "one\n[pictures: chart-1.png]"


@pytest.mark.parametrize("limits", [RunLimits(requests=2), RunLimits(tool_calls=2), RunLimits(tokens=1)])
async def test_limits_end_a_run(mapping: Path, limits: RunLimits) -> None:
    script = Script(*[ToolCallPart("count")] * 5, "five")
    async with load_agent("one", mapping=mapping) as agent:
        with pytest.raises(LimitError, match="the run of one was ended"):
            await agent.run("Count", model=FunctionModel(script), limits=limits)


async def test_a_run_is_traced_without_what_was_said(mapping: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(pydantic_ai.models.instrumented, "get_tracer_provider", lambda: provider)
    script = Script(ToolCallPart("sleep", {"seconds": 0.0625}), "a secret")
    async with load_agent("one", mapping=mapping) as agent:
        await agent.run("My question", model=FunctionModel(script))
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert {"invoke_agent one", "execute_tool sleep"} <= spans.keys()
    told = "".join(span.to_json() for span in spans.values())
    assert not [said for said in ("a secret", "My question", "0.0625") if said in told]
    provider.shutdown()


async def test_a_missing_file_is_named(mapping: Path, tmp_path: Path) -> None:
    async with load_agent("handless", mapping=mapping) as agent:
        with pytest.raises(ConfigurationError, match="is not a file"):
            await agent.run("Read", files=[tmp_path / "no.csv"], model=FunctionModel(Script("x")))


async def test_files_need_a_tool_that_takes_them(mapping: Path) -> None:
    async with load_agent("handless", mapping=mapping) as agent:
        with pytest.raises(ToolDeniedError, match="may not call upload_file"):
            await agent.run("Read", files=[SERVER], model=FunctionModel(Script("x")))


def test_the_model_is_the_arguments_then_the_mappings_then_the_environments() -> None:
    environ = {"RINGFENCE_AGENT_MODEL": "c:c", "M": "b:b"}
    assert choose_model("one", "${M}", environ, model="a:a").name == "a:a"
    assert choose_model("one", "${M}", environ).name == "b:b"
    assert choose_model("one", None, environ).name == "c:c"


def test_a_key_is_only_sent_to_the_url_it_is_for() -> None:
    environ = {"RINGFENCE_AGENT_API_KEY": "k", "OPENAI_API_KEY": "other"}
    assert choose_model("one", None, environ, model="m").api_key is None
    chosen = choose_model("one", None, environ, model="m", base_url="http://127.0.0.1:1/v1")
    assert chosen.api_key == "k"
    assert "'k'" not in repr(chosen)


@pytest.mark.parametrize(
    ("model", "said"),
    [(None, "RINGFENCE_AGENT_MODEL=PROVIDER:NAME"), ("nobody:x", "'nobody:x' cannot be used")],
)
async def test_without_a_usable_model_it_says_so(mapping: Path, model: str | None, said: str) -> None:
    async with load_agent("one", mapping=mapping, environ={}) as agent:
        with pytest.raises(ConfigurationError, match=said):
            await agent.run("Count", model=model)


def python(program: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environ)


def test_tools_can_be_called_without_an_llm_library(mapping: Path) -> None:
    program = (
        "import sys; sys.modules['pydantic_ai'] = None\n"
        "import asyncio, pathlib\nfrom ringfence.agents import load_agent\n"
        "from ringfence.core.errors import ConfigurationError\n"
        "async def main():\n"
        f"    async with load_agent('one', mapping=pathlib.Path({str(mapping)!r})) as agent:\n"
        "        print((await agent.execute_tool('counter', 'count')).text)\n"
        "        try:\n            await agent.run('x', model='openai:gpt-5')\n"
        "        except ConfigurationError as error:\n            print(error)\n"
        "asyncio.run(main())\n"
    )
    ended = python(program)
    assert ended.stdout.startswith("1\n"), ended.stderr
    assert "pip install 'ringfence[agent]'" in ended.stdout


def test_loading_agents_loads_no_llm_library() -> None:
    program = (
        "import sys, ringfence.agents; print([n for n in ('pydantic_ai', 'openai') if n in sys.modules])"
    )
    assert python(program).stdout == "[]\n"
