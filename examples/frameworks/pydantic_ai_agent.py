# /// script
# requires-python = ">=3.11"
# dependencies = ["pydantic-ai-slim[mcp,openai]>=2.60,<3"]
# ///
"""pydantic-ai with the tools of ``python_executor``.

uv run examples/frameworks/pydantic_ai_agent.py
"""

import asyncio

from penguin_task import MODEL, TASK, report, server_command, server_environment
from pydantic_ai import Agent
from pydantic_ai.mcp import MCPToolset, StdioTransport


async def main() -> None:
    """Let the agent do the task."""
    command, *arguments = server_command()
    transport = StdioTransport(command=command, args=arguments, env=server_environment())
    # 5 s to connect is little for a busy computer; a tool's failure is for the model to read, not to retry.
    tools = MCPToolset(transport, init_timeout=60, read_timeout=600, tool_error_behavior="failed")
    agent = Agent(f"openai:{MODEL}", toolsets=[tools])
    async with agent:
        result = await agent.run(TASK)
    report(result.output)


if __name__ == "__main__":
    asyncio.run(main())
