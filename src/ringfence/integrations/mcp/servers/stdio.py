"""Serving MCP on standard input and output so that every way to end is an orderly one.

End of input, SIGTERM, SIGINT and SIGHUP cancel what runs, end the lifespan (and with it every sandbox) and
exit with 0.
"""

import os
import signal

import anyio
from mcp.server import MCPServer
from mcp.server.stdio import stdio_server


async def serve_stdio(server: MCPServer) -> None:
    """Serve until the client goes or a signal comes. Does not return: the process ends.

    While it serves, descriptor 1 is standard error and descriptor 0 is the null device, so nothing but
    JSON-RPC gets out and
    no child gets the client's input.
    """
    low = server._lowlevel_server
    async with stdio_server() as (read, write):
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
                    async for _ in signals:
                        tasks.cancel_scope.cancel()
                        return

            tasks.start_soon(watch)
            await low.run(read, write, low.create_initialization_options())
            tasks.cancel_scope.cancel()
        # The thread that reads standard input cannot be cancelled, and leaving the context would wait for it.
        os._exit(0)
