"""``mcp_tool_mapping.yaml``: the MCP servers, how each is started, and which agent may call which tools.

Nothing is allowed that the file does not allow. Every error names the file and the place in it.
"""

import os
import sys
from collections.abc import Hashable, Mapping
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ringfence.agents.interpolation import interpolate
from ringfence.core.errors import ConfigurationError
from ringfence.integrations.mcp.client import ServerParameters

PACKAGED = "mcp_tool_mapping.yaml"
MAPPING_VARIABLE = "RINGFENCE_TOOL_MAPPING"
"""Environment variable that names a file of the user's, which extends the packaged one."""


_M = TypeVar("_M", bound=BaseModel)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SessionRule(_Part):
    """A server whose tools work in sessions: each agent gets its own, made when it is first needed.

    create, destroy: tools that make and end a session. argument: the tools' argument that takes its handle;
    the handle is
    looked for under the same name in the result of `create`. arguments: what `create` is called with.
    """

    create: str
    destroy: str
    argument: str = "session_id"
    arguments: dict[str, Any] = Field(default_factory=dict)


class ServerSpec(_Part):
    """One MCP server: a command to start, or a URL. Strings may hold variables, which are looked up at
    the first use.
    """

    command: str | None = None
    args: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict, repr=False)
    cwd: str | None = None
    url: str | None = None
    headers: dict[str, str] = Field(default_factory=dict, repr=False)
    connect_timeout_s: float = Field(30, gt=0)
    call_timeout_s: float | None = Field(None, gt=0)
    protocol: Literal["auto", "legacy"] = "auto"
    session: SessionRule | None = None

    @model_validator(mode="after")
    def _one_transport(self) -> "ServerSpec":
        if (self.command is None) == (self.url is None):
            raise ValueError("needs exactly one of command and url")
        if self.url is None and self.headers:
            raise ValueError("headers are for a url")
        if self.url is not None and (self.args or self.env or self.cwd):
            raise ValueError("args, env and cwd are for a command")
        return self


class Grant(_Part):
    """What an agent may do with a server: tools by name or pattern (``read_*``), and how often in all."""

    tools: tuple[str, ...] = Field(min_length=1)
    max_calls: int | None = Field(None, ge=1)

    def allows(self, tool: str) -> bool:
        """Whether `tool` is one of them."""
        return any(fnmatchcase(tool, pattern) for pattern in self.tools)


class AgentSpec(_Part):
    """One kind of agent."""

    description: str = ""
    instructions: str = ""
    model: str | None = None
    servers: dict[str, Grant]


class MappingFile(_Part):
    """One file."""

    version: Literal[1]
    servers: dict[str, ServerSpec] = Field(default_factory=dict)
    agents: dict[str, AgentSpec] = Field(default_factory=dict)


class ToolMapping(MappingFile):
    """A mapping that is complete: agents name only servers that there are."""

    @model_validator(mode="after")
    def _known_servers(self) -> "ToolMapping":
        for name, agent in self.agents.items():
            for server in agent.servers:
                if server not in self.servers:
                    known = ", ".join(self.servers) or "none"
                    raise ValueError(
                        f"agents.{name}.servers.{server}: there is no such server (there are: {known})"
                    )
        return self

    def parameters(self, server: str, environ: Mapping[str, str]) -> ServerParameters:
        """How to reach `server`, with its variables replaced from `environ`; ``RINGFENCE_PYTHON`` is this
        Python.
        """
        spec, where = self.servers[server], f"servers.{server}"
        names = {"RINGFENCE_PYTHON": sys.executable, **environ}

        def text(value: str, path: str) -> str:
            return interpolate(value, names, f"{where}.{path}")

        return ServerParameters(
            name=server,
            command=None if spec.command is None else text(spec.command, "command"),
            args=tuple(text(value, f"args[{number}]") for number, value in enumerate(spec.args)),
            env={name: text(value, f"env.{name}") for name, value in spec.env.items()},
            cwd=None if spec.cwd is None else Path(text(spec.cwd, "cwd")).expanduser(),
            url=None if spec.url is None else text(spec.url, "url"),
            headers={name: text(value, f"headers.{name}") for name, value in spec.headers.items()},
            connect_timeout=spec.connect_timeout_s,
            call_timeout=spec.call_timeout_s,
            mode=spec.protocol,
        )


class _StrictLoader(yaml.SafeLoader):
    """YAML without duplicate keys, which would silently win over each other."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key that is no plain value", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key {key!r}", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_mapping(extension: Path | None = None) -> ToolMapping:
    """The packaged mapping, extended by `extension` (or the file that ``RINGFENCE_TOOL_MAPPING`` names).

    A server or agent of the extension replaces the packaged one of the same name.
    """
    packaged = resources.files("ringfence.agents.configuration").joinpath(PACKAGED)
    base = _parse(packaged.read_text(encoding="utf-8"), PACKAGED)
    if extension is None and (named := os.environ.get(MAPPING_VARIABLE)):
        extension = Path(named)
    if extension is None:
        return _validated(ToolMapping, base, PACKAGED)
    try:
        own = _parse(extension.read_text(encoding="utf-8"), str(extension))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{extension} cannot be read: {error}") from error
    _validated(MappingFile, own, str(extension))
    merged = {"version": 1, **{part: {**base[part], **own.get(part, {})} for part in ("servers", "agents")}}
    return _validated(ToolMapping, merged, str(extension))


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        parsed = yaml.load(text, _StrictLoader)  # noqa: S506 - derived from SafeLoader
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{source}: {error}") from error
    if not isinstance(parsed, dict):
        raise ConfigurationError(f"{source}: should be a mapping with version, servers and agents")
    return parsed


def _validated(kind: type[_M], value: object, source: str) -> _M:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc']) or 'file'}: "
            f"{problem['msg'].removeprefix('Value error, ')}"
            for problem in error.errors(include_input=False)
        )
        raise ConfigurationError(f"{source}: {problems}") from None
