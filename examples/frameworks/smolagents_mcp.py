# /// script
# requires-python = ">=3.11"
# # mcpadapt, by which smolagents speaks MCP, does not know the second generation of the package `mcp` yet.
# dependencies = ["smolagents[mcp,openai]>=1.26,<2", "mcp<2"]
# ///
"""smolagents with the tools of ``python_executor``, by MCP.

uv run examples/frameworks/smolagents_mcp.py
"""

from mcp import StdioServerParameters
from penguin_task import MODEL, TASK, report, server_command, server_environment
from smolagents import MCPClient, OpenAIModel, ToolCallingAgent


def main() -> None:
    """Let the agent do the task."""
    command, *arguments = server_command()
    parameters = StdioServerParameters(command=command, args=arguments, env=server_environment())
    with MCPClient(parameters, structured_output=False) as tools:
        agent = ToolCallingAgent(tools=tools, model=OpenAIModel(MODEL), max_steps=30, verbosity_level=0)
        report(agent.run(TASK))


if __name__ == "__main__":
    main()
