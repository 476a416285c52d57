# /// script
# requires-python = ">=3.11"
# dependencies = ["langchain>=1,<2", "langchain-mcp-adapters>=0.3,<1", "langchain-openai>=1,<2"]
# ///
"""LangChain, by its MCP adapters, with the tools of ``python_executor``.

uv run examples/frameworks/langchain_agent.py
"""

import asyncio

from langchain.agents import create_agent
from langchain_mcp_adapters.client import MultiServerMCPClient
from langchain_mcp_adapters.tools import load_mcp_tools
from langchain_openai import ChatOpenAI
from penguin_task import MODEL, TASK, report, server_command, server_environment


async def main() -> None:
    """Let the agent do the task."""
    command, *arguments = server_command()
    client = MultiServerMCPClient(
        {
            "python_executor": {
                "transport": "stdio",
                "command": command,
                "args": arguments,
                "env": server_environment(),
            }
        }
    )
    # One connection for all calls: `client.get_tools()` would start a server, and a session, for each.
    async with client.session("python_executor") as session:
        agent = create_agent(ChatOpenAI(model=MODEL), await load_mcp_tools(session))
        state = await agent.ainvoke({"messages": [("user", TASK)]})
    report(state["messages"][-1].text)


if __name__ == "__main__":
    asyncio.run(main())
