"""The ``python_executor`` MCP server: Python and shell in isolated, stateful sandboxes.

Everything runs through the E2B SDK on the backend that the settings select. Starting is cheap and has no side
effects (some clients start a second copy only to look at it): the SDK is imported, the backend started and a
sandbox made at the first call.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
from mcp.server import CacheHint, MCPServer

from ringfence import __version__
from ringfence.core.config import Settings, load_settings
from ringfence.core.errors import RingfenceError
from ringfence.core.log import configure_logging
from ringfence.integrations.mcp.servers import texts
from ringfence.integrations.mcp.servers.app import App
from ringfence.integrations.mcp.servers.stdio import serve_stdio
from ringfence.integrations.mcp.servers.tools import TOOLS

if TYPE_CHECKING:
    from ringfence.integrations.mcp.servers.executor.facts import Facts


def build(app: App) -> MCPServer[App]:
    """The server with all its tools; nothing is started yet. `app` ends with it."""

    @asynccontextmanager
    async def lifespan(_: MCPServer[App]) -> AsyncIterator[App]:
        try:
            yield app
        finally:
            with anyio.CancelScope(shield=True):
                await app.aclose()

    over_http = app.files_url is not None
    server: MCPServer[App] = MCPServer(
        "python_executor",
        title="Ringfence Python executor",
        version=__version__,
        instructions=texts.instructions(app.settings, over_http=over_http),
        lifespan=lifespan,
        log_level="WARNING",
        cache_hints={"tools/list": CacheHint(ttl_ms=60_000, scope="public")},
    )
    descriptions = texts.descriptions(app.settings, over_http=over_http)
    for tool in TOOLS:
        server.add_tool(
            tool.function,
            title=tool.title,
            description=descriptions[tool.function.__name__],
            annotations=tool.annotations,
            meta=tool.meta,
            structured_output=False,
        )
    if over_http:
        for registered in server._tool_manager.list_tools():
            _for_http(registered.parameters["properties"])
    app.on_facts = lambda facts: _redescribe(server, app.settings, facts, over_http=over_http)
    return server


def _for_http(properties: dict[str, Any]) -> None:
    """Over HTTP there are no files of the user's computer, and no default session."""
    properties.pop("local_path", None)
    if "session_id" in properties:
        properties["session_id"]["description"] = (
            "Session handle, from an earlier result; omit for a new session."
        )


def _redescribe(server: MCPServer[App], settings: Settings, facts: "Facts", *, over_http: bool) -> None:
    """From now on, tell what the sandboxes really have."""
    descriptions = texts.descriptions(settings, facts, over_http=over_http)
    for registered in server._tool_manager.list_tools():
        registered.description = descriptions[registered.name]


def main() -> None:
    """Serve on standard input and output until the client goes."""
    settings = load_settings()
    configure_logging(settings.log_level)
    anyio.run(serve_stdio, build(App(settings)))
    os._exit(0)


def main_http(address: str) -> None:
    """Serve over HTTP on `address` (``HOST:PORT``) until a signal comes."""
    from ringfence.integrations.mcp.servers.http.serve import HttpService, bind, serve_http
    from ringfence.integrations.mcp.servers.http.settings import load_http_settings, parse_address

    settings = load_settings()
    http = load_http_settings()
    configure_logging(settings.log_level)
    host, port = parse_address(address)
    with bind(host, port) as listening:
        service = HttpService(settings, http, host, listening.getsockname()[1])
        anyio.run(serve_http, service, build(service.app), listening)
    os._exit(0)


if __name__ == "__main__":
    try:
        main()
    except RingfenceError as error:
        raise SystemExit(f"python_executor: {error}") from None
