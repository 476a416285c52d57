# /// script
# requires-python = ">=3.11"
# dependencies = ["openai-agents>=0.20,<1"]
# ///
"""openai-agents with the tools of ``python_executor``.

uv run examples/frameworks/openai_agents_agent.py
"""

import asyncio

from agents.mcp import MCPServerStdio, MCPServerStdioParams
from penguin_task import MODEL, TASK, report, server_command, server_environment

from agents import Agent, Runner, set_tracing_disabled


async def main() -> None:
    """Let the agent do the task."""
    command, *arguments = server_command()
    parameters = MCPServerStdioParams(command=command, args=arguments, env=server_environment())
    # The default of 5 s for a call is less than many analyses take.
    async with MCPServerStdio(parameters, client_session_timeout_seconds=600) as tools:
        agent = Agent(
            name="analyst", instructions="You analyse data with Python.", model=MODEL, mcp_servers=[tools]
        )
        result = await Runner.run(agent, TASK, max_turns=30)
    report(result.final_output)


if __name__ == "__main__":
    set_tracing_disabled(True)  # traces would go to OpenAI
    asyncio.run(main())
