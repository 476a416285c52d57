"""The loop of an agent with a language model, on pydantic-ai. Imported only when an agent is run.

Every tool call goes through `Agent.execute_tool`, so the mapping's allow-list and budgets hold, and every
call is audited.
"""

import copy
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import mcp_types
from pydantic_ai import Agent as LanguageAgent
from pydantic_ai import BinaryContent, Tool, ToolFailed, UsageLimits
from pydantic_ai.capabilities import Instrumentation
from pydantic_ai.exceptions import AgentRunError, UsageLimitExceeded, UserError
from pydantic_ai.messages import TextPart
from pydantic_ai.models import Model
from pydantic_ai.models.instrumented import InstrumentationSettings

from ringfence.agents.result import Blob, ToolResult
from ringfence.agents.running import Chart, EventHandler, RunEvent, RunLimits, RunResult, RunUsage
from ringfence.core.errors import BackendError, ConfigurationError, LimitError, RingfenceError

if TYPE_CHECKING:
    from ringfence.agents.agent import Agent

_SUFFIXES = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/gif": "gif",
    "image/webp": "webp",
    "image/svg+xml": "svg",
}


class Loop:
    """One run of `agent`: `model` is asked, its tool calls are made, until it answers without one."""

    def __init__(
        self, agent: "Agent", model: Model, on_event: EventHandler | None, *, show_images: bool
    ) -> None:
        self._agent = agent
        self._model = model
        self._on_event = on_event
        self._show_images = show_images
        self._charts: dict[str, Chart] = {}

    async def run(self, prompt: str, instructions: str, limits: RunLimits) -> RunResult:
        """Ask until the answer. Errors of the model are `BackendError`, of its settings
        `ConfigurationError`.
        """
        try:
            return await self._run(prompt, instructions, limits)
        except UsageLimitExceeded as error:
            raise LimitError(f"the run of {self._agent.name} was ended: {error}") from error
        except AgentRunError as error:
            raise BackendError(f"the model {self._model.model_name} failed: {error}") from error
        except UserError as error:
            raise ConfigurationError(f"the model {self._model.model_name} cannot be used: {error}") from error

    async def _run(self, prompt: str, instructions: str, limits: RunLimits) -> RunResult:
        language = LanguageAgent(
            self._model,
            instructions=instructions or None,
            tools=await self._tools(),
            name=self._agent.name,
            # Spans go where the process's OpenTelemetry sends them, if anywhere; what was said does not.
            capabilities=[Instrumentation(InstrumentationSettings(include_content=False))],
        )
        bounds = UsageLimits(
            request_limit=limits.requests,
            tool_calls_limit=limits.tool_calls,
            total_tokens_limit=limits.tokens,
            cost_limit=None if limits.cost_usd is None else Decimal(str(limits.cost_usd)),
        )
        async with language.iter(prompt, usage_limits=bounds) as run:
            async for node in run:
                if LanguageAgent.is_call_tools_node(node):
                    for part in node.model_response.parts:
                        if isinstance(part, TextPart) and part.content.strip():
                            self._tell(RunEvent("text", part.content))
        if run.result is None:
            raise BackendError(f"the model {self._model.model_name} gave no answer")
        used = run.result.usage
        usage = RunUsage(used.requests, used.tool_calls, used.input_tokens, used.output_tokens)
        return RunResult(run.result.output, tuple(self._charts.values()), usage)

    async def _tools(self) -> list[Tool[object]]:
        servers = {server: await self._agent.list_tools(server) for server in self._agent.spec.servers}
        names = [tool.name for tools in servers.values() for tool in tools]
        return [
            self._tool(server, tool, tool.name if names.count(tool.name) == 1 else f"{server}__{tool.name}")
            for server, tools in servers.items()
            for tool in tools
        ]

    def _tool(self, server: str, tool: mcp_types.Tool, name: str) -> Tool[object]:
        hidden = self._agent.session_argument(server)
        # One at a time: the calls of a session build on each other.
        return Tool.from_schema(
            self._caller(server, tool.name, hidden),
            name=name,
            description=tool.description,
            json_schema=_without(tool.input_schema, hidden),
            sequential=True,
        )

    def _caller(self, server: str, tool: str, hidden: str | None) -> Callable[..., Awaitable[Any]]:
        async def call(**arguments: Any) -> Any:
            arguments.pop(hidden or "", None)
            self._tell(RunEvent("call", tool=tool, arguments=arguments))
            try:
                result = await self._agent.execute_tool(server, tool, arguments)
            except RingfenceError as error:
                self._tell(RunEvent("failure", str(error), tool, arguments))
                raise ToolFailed(str(error)) from error
            self._tell(RunEvent("failure" if result.is_error else "result", result.text, tool, arguments))
            if result.is_error:
                raise ToolFailed(result.text)
            return self._shown(result)

        return call

    def _shown(self, result: ToolResult) -> Any:
        """A result as the model gets it: text, and pictures with the names by which it may refer to them."""
        if not result.images:
            return result.text
        charts = [self._chart(blob) for blob in result.images]
        text = f"{result.text}\n[pictures: {', '.join(chart.name for chart in charts)}]"
        if not self._show_images:
            return text
        return [text, *(BinaryContent(c.blob.data, media_type=c.blob.mime_type) for c in charts)]

    def _chart(self, blob: Blob) -> Chart:
        digest = hashlib.sha256(blob.data).hexdigest()
        if digest not in self._charts:
            suffix = _SUFFIXES.get(blob.mime_type, "bin")
            self._charts[digest] = Chart(f"chart-{len(self._charts) + 1}.{suffix}", blob)
        return self._charts[digest]

    def _tell(self, event: RunEvent) -> None:
        if self._on_event is not None:
            self._on_event(event)


def _without(schema: Mapping[str, Any], argument: str | None) -> dict[str, Any]:
    """A tool's schema without the argument that the agent fills in itself."""
    own = copy.deepcopy(dict(schema))
    if argument is not None:
        own.get("properties", {}).pop(argument, None)
        if argument in own.get("required", ()):
            own["required"].remove(argument)
    return own


def with_files(task: str, names: Sequence[str]) -> str:
    """The task, and the files that were put into the session for it."""
    if not names:
        return task
    return f"{task}\n\nFiles in the working directory of the session: {', '.join(names)}"
