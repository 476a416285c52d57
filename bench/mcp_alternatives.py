"""The MCP servers that one writes oneself to let a model run Python: no isolation, the same package `mcp`.

python mcp_alternatives.py process     each call is a fresh `python -c`
python mcp_alternatives.py kernel      one ipykernel, which keeps variables
"""

import asyncio
import sys
from typing import Any

from mcp.server import MCPServer

server: MCPServer[Any] = MCPServer("alternative", log_level="ERROR")
_kernel: list[Any] = []


async def in_process(code: str) -> str:
    """Run Python."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    return output.decode()


async def in_kernel(code: str) -> str:
    """Run Python."""
    if not _kernel:
        from jupyter_client.manager import start_new_async_kernel

        _kernel.extend(await start_new_async_kernel())
    said: list[str] = []

    def hear(message: dict[str, Any]) -> None:
        content = message["content"]
        said.append(content.get("text") or content.get("data", {}).get("text/plain", ""))

    await _kernel[1].execute_interactive(code, timeout=120, output_hook=hear)
    return "".join(said)


if __name__ == "__main__":
    server.add_tool({"process": in_process, "kernel": in_kernel}[sys.argv[1]], name="execute_code")
    server.run("stdio")
