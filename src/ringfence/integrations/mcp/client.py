"""The client side: connections to MCP servers, for agents.

A connection is entered and left by one task of its own (the protocol's client demands that); calls may come
from any task. A
connection that was lost is made anew at the next call, never silently for the call that was running: it may
have been executed.
"""

import asyncio
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import anyio
from mcp import Client, MCPError
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from mcp_types import CONNECTION_CLOSED, CallToolResult, Tool

from ringfence.core.errors import BackendError

_T = TypeVar("_T")
_LOST = (anyio.ClosedResourceError, anyio.BrokenResourceError, anyio.EndOfStream)


class ProgressHandler(Protocol):
    """Told about the progress of a call: how far, of how much (if known), and what it says."""

    async def __call__(self, progress: float, total: float | None, message: str | None) -> None: ...


class ServerConnectionError(BackendError):
    """An MCP server could not be started or reached, or went away during a call."""


@dataclass(frozen=True)
class ServerParameters:
    """How to reach an MCP server: a command to start, or a URL.

    env: variables of the command, besides the handful every program needs; nothing else of ours is inherited.
    connect_timeout, call_timeout: seconds.
    mode: ``auto`` tries the newest protocol first; ``legacy`` is the older handshake.
    """

    name: str
    command: str | None = None
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    cwd: Path | None = None
    url: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    connect_timeout: float = 30
    call_timeout: float | None = 120
    mode: Literal["auto", "legacy"] = "auto"


class ServerConnection:
    """One connection to one server. `generation` grows with every reconnection: sessions of older ones
    are gone.
    """

    def __init__(self, parameters: ServerParameters) -> None:
        self.parameters = parameters
        self.generation = 0
        self._lock = asyncio.Lock()
        self._client: Client | None = None
        self._owner: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()

    async def list_tools(self) -> list[Tool]:
        """The server's tools."""
        client = await self._connected()
        return await self._guard(_all_tools(client))

    async def call_tool(
        self, tool: str, arguments: dict[str, Any], on_progress: ProgressHandler | None = None
    ) -> CallToolResult:
        """Call a tool. Cancelling the caller cancels the call at the server too."""
        client = await self._connected()
        call = client.call_tool(
            tool, arguments, read_timeout_seconds=self.parameters.call_timeout, progress_callback=on_progress
        )
        return await self._guard(call)

    async def connect(self) -> int:
        """Connect if need be; the generation of the connection."""
        await self._connected()
        return self.generation

    async def _guard(self, call: Coroutine[Any, Any, _T]) -> _T:
        """Await `call`, but not longer than the connection lives; a connection that broke is given up."""
        owner = self._owner
        running = asyncio.create_task(call)
        try:
            waiting: set[asyncio.Task[Any]] = {running} if owner is None else {running, owner}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                return running.result()
        except MCPError as error:
            if error.code != CONNECTION_CLOSED:
                raise ServerConnectionError(f"{self.parameters.name}: {error}") from error
        except _LOST:
            pass
        finally:
            if not running.done():
                running.cancel()
                await asyncio.wait({running}, timeout=5)
        self._give_up()
        raise ServerConnectionError(f"the MCP server {self.parameters.name} went away during the call")

    def _give_up(self) -> None:
        self._client = None
        self._stop.set()

    async def _connected(self) -> Client:
        async with self._lock:
            if self._client is None or self._owner is None or self._owner.done():
                await self.aclose()
                await self._open()
            if self._client is None:
                raise ServerConnectionError(f"no connection to the MCP server {self.parameters.name}")
            return self._client

    async def _open(self) -> None:
        self._stop = asyncio.Event()
        ready: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
        self._owner = asyncio.create_task(self._own(ready, self._stop), name=f"mcp-{self.parameters.name}")
        try:
            async with asyncio.timeout(self.parameters.connect_timeout):
                waiting: set[asyncio.Future[Any]] = {ready, self._owner}
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            await self._drop()
            raise ServerConnectionError(
                f"the MCP server {self.parameters.name} did not answer within "
                f"{self.parameters.connect_timeout:g} s"
            ) from None
        except BaseException:
            await self._drop()
            raise
        self._client = ready.result()
        self.generation += 1

    async def _own(self, ready: "asyncio.Future[Client]", stop: asyncio.Event) -> None:
        """Hold the connection open until it is to stop, or breaks."""
        try:
            async with self._make_client() as client:
                ready.set_result(client)
                await stop.wait()
        except Exception as error:
            if not ready.done():
                message = (
                    f"the MCP server {self.parameters.name} could not be started or reached: {_root(error)}"
                )
                ready.set_exception(ServerConnectionError(message))
        finally:
            if not ready.done():
                ready.cancel()

    def _make_client(self) -> Client:
        given = self.parameters
        if given.url is not None:
            http_client = create_mcp_http_client(headers=dict(given.headers))
            transport = streamable_http_client(given.url, http_client=http_client, max_sse_event_size=None)
            return Client(transport, mode=given.mode)
        command = StdioServerParameters(
            command=given.command or "", args=list(given.args), env=dict(given.env), cwd=given.cwd
        )
        return Client(stdio_client(command), mode=given.mode)

    async def _drop(self) -> None:
        self._stop.set()
        if self._owner is not None and not self._owner.done():
            self._owner.cancel()
            await asyncio.wait({self._owner}, timeout=10)
        self._client = None

    async def aclose(self) -> None:
        """End the connection; a server that was started for it ends too."""
        self._stop.set()
        owner = self._owner
        if owner is not None:
            await asyncio.wait({owner}, timeout=15)
            if not owner.done():
                await self._drop()


async def _all_tools(client: Client) -> list[Tool]:
    tools: list[Tool] = []
    cursor: str | None = None
    while True:
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        cursor = page.next_cursor
        if cursor is None:
            return tools


def _root(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__
