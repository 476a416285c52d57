"""Agents that use tools: `load_agent` makes one by its name in ``mcp_tool_mapping.yaml``."""

from ringfence.agents.agent import Agent, Connections, ToolDeniedError, load_agent
from ringfence.agents.audit import AuditEvent
from ringfence.agents.mapping import ToolMapping, load_mapping
from ringfence.agents.result import Blob, ToolResult
from ringfence.agents.running import Chart, RunEvent, RunLimits, RunResult, RunUsage

__all__ = [
    "Agent",
    "AuditEvent",
    "Blob",
    "Chart",
    "Connections",
    "RunEvent",
    "RunLimits",
    "RunResult",
    "RunUsage",
    "ToolDeniedError",
    "ToolMapping",
    "ToolResult",
    "load_agent",
    "load_mapping",
]
