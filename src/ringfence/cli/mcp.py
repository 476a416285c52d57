"""``ringfence mcp``."""

import click


@click.command("mcp")
@click.option(
    "--http",
    "address",
    metavar="HOST:PORT",
    help="Serve streamable HTTP there (at /mcp) instead of standard input and output.",
)
def command(address: str | None) -> None:
    """Serve the python_executor MCP server on standard input and output, or over HTTP.

    Without options this is what MCP clients start. Settings come from the environment: E2B_API_KEY,
    RINGFENCE_URL, RINGFENCE_API_KEY, RINGFENCE_TEMPLATE, RINGFENCE_EXEC_TIMEOUT, RINGFENCE_LEASE,
    RINGFENCE_MCP_ROOTS; with --http also RINGFENCE_MCP_TOKENS, RINGFENCE_MCP_PUBLIC_URL and others: see
    docs/guides/MCP_CLIENTS.md.
    """
    from ringfence.integrations.mcp.servers import python_executor_server

    if address is None:
        python_executor_server.main()
    else:
        python_executor_server.main_http(address)
