"""What goes into a run of an agent, and what comes out: limits, events, the result."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ringfence.agents.result import Blob


@dataclass(frozen=True)
class RunLimits:
    """When a run is ended with a `LimitError`. None: no limit.

    requests: answers of the model. tool_calls: calls that succeeded. tokens: in and out together.
    cost_usd: US dollars, by the prices that pydantic-ai knows.
    """

    requests: int | None = 50
    tool_calls: int | None = 100
    tokens: int | None = None
    cost_usd: float | None = None


@dataclass(frozen=True)
class RunEvent:
    """Something that happened in a run, told when it happens.

    kind: ``text``, the model said something; ``call``, it calls a tool; ``result`` or ``failure``, what
    the tool answered.
    tool, arguments: of the call; empty for ``text``.
    """

    kind: Literal["text", "call", "result", "failure"]
    text: str = ""
    tool: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)


EventHandler = Callable[[RunEvent], None]


@dataclass(frozen=True)
class Chart:
    """A picture that a tool showed in a run. `name` is how the model was told to refer to it."""

    name: str
    blob: Blob


@dataclass(frozen=True)
class RunUsage:
    """What a run took: answers of the model, tool calls, tokens."""

    requests: int
    tool_calls: int
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class RunResult:
    """A run that came to its end: the model's last answer (Markdown), all pictures, what it took."""

    output: str
    charts: tuple[Chart, ...]
    usage: RunUsage
