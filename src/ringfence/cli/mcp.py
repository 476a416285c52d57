"""``ringfence mcp``."""

import click


@click.command("mcp")
def command() -> None:
    """Serve the python_executor MCP server on standard input and output.

    This is what MCP clients start. Settings come from the environment: E2B_API_KEY, RINGFENCE_URL,
    RINGFENCE_API_KEY, RINGFENCE_TEMPLATE, RINGFENCE_EXEC_TIMEOUT, RINGFENCE_LEASE, RINGFENCE_MCP_ROOTS.
    """
    from ringfence.integrations.mcp.servers.python_executor_server import main

    main()
