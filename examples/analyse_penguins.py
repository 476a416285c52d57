"""Analyse a real data set in a sandbox, as an MCP client does; run by ``make run``.

    python analyse_penguins.py [OUT]

Starts ``ringfence mcp`` over stdio, uploads the data, runs an analysis cell by cell in one session, saves
the charts under ``out/``, and shows how long everything took, how it was isolated, and that nothing of it
is left.
"""

import asyncio
import base64
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from leftovers import Belongings
from mcp import Client, StdioServerParameters
from mcp.types import CallToolResult, ImageContent, TextContent
from penguin_cells import CELLS

HERE = Path(__file__).parent
DATA = HERE / "data" / "penguins.csv"
OUT = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent / "out"
META_KEY = "io.ringfence/result"
LONGEST_CALL_S = 1800  # the very first one builds the template


class FailedError(Exception):
    """A step did not work; the message is for the user."""


class Steps:
    """Times each step, and shows from the first second on that it is under way."""

    def __init__(self) -> None:
        self.times: list[tuple[str, float]] = []
        self.news = ""

    @asynccontextmanager
    async def step(self, name: str) -> AsyncIterator[None]:
        """Time what is done inside as the step `name`."""
        print(f"\n=== {name}", flush=True)
        self.news = ""
        started = time.perf_counter()
        ticker = asyncio.create_task(self._tick(started))
        try:
            yield
        finally:
            ticker.cancel()
            self.times.append((name, time.perf_counter() - started))

    async def hear(self, _progress: float, _total: float | None, message: str | None) -> None:
        """The server's own news of a running call."""
        self.news = message or ""

    async def _tick(self, started: float) -> None:
        shown = ""
        while True:
            await asyncio.sleep(1)
            text = self.news or f"{time.perf_counter() - started:.0f} s"
            if text != shown:
                print(f"    … {text}", file=sys.stderr, flush=True)
                shown = text

    def table(self) -> str:
        """All steps and their times."""
        width = max(len(name) for name, _ in self.times)
        rows = [f"{name:<{width}}  {seconds:8.3f} s" for name, seconds in self.times]
        return "\n".join([*rows, f"{'total':<{width}}  {sum(s for _, s in self.times):8.3f} s"])


class Session:
    """One sandbox session of the ``python_executor`` server."""

    def __init__(self, client: Client, steps: Steps) -> None:
        self._client = client
        self._steps = steps
        self.handle: str | None = None
        self.charts: list[Path] = []

    async def call(self, tool: str, **arguments: Any) -> tuple[CallToolResult, dict[str, Any]]:
        """Call a tool; its result, and the machine-readable record of it. Ends the program when the call
        fails.
        """
        if self.handle is not None:
            arguments["session_id"] = self.handle
        result = await self._client.call_tool(tool, arguments, progress_callback=self._steps.hear)
        if result.is_error:
            raise FailedError(f"{tool} failed: {_text(result)}")
        return result, (result.meta or {}).get(META_KEY, {})

    async def run(self, name: str, code: str) -> None:
        """Run one cell, print what it says and save its pictures."""
        result, record = await self.call("execute_code", code=code)
        for part in ("stdout", "stderr", "result"):
            if text := record.get(part):
                print(text.rstrip())
        if record["status"] != "ok" or record["session_state"] != "preserved":
            raise FailedError(f"the cell {name!r} did not work:\n{_text(result)}")
        for number, block in enumerate(b for b in result.content if isinstance(b, ImageContent)):
            self._save(f"{name.replace(' ', '_')}{number or ''}", block)

    def _save(self, name: str, image: ImageContent) -> None:
        data = base64.b64decode(image.data)
        if image.mime_type != "image/png" or not data.startswith(b"\x89PNG\r\n"):
            raise FailedError(f"{name} is not a PNG but {image.mime_type}")
        path = OUT / f"{name}.png"
        path.write_bytes(data)
        self.charts.append(path)
        print(f"-> {_short(path)} ({len(data):,} bytes)")


def _text(result: CallToolResult) -> str:
    return "\n".join(block.text for block in result.content if isinstance(block, TextContent))


def _short(path: Path) -> Path:
    return path.relative_to(HERE.parent) if path.is_relative_to(HERE.parent) else path


def _server() -> StdioServerParameters:
    roots = f"{DATA.parent}{os.pathsep}{OUT}"
    env = {**os.environ, "RINGFENCE_MCP_ROOTS": roots}
    return StdioServerParameters(command=sys.executable, args=["-m", "ringfence", "mcp"], env=env)


def _print_isolation(record: dict[str, Any]) -> None:
    print(f"backend: {record['backend']}; template: {record['template']}")
    for layer in record.get("isolation_layers", []):
        print(f"  {'yes' if layer['in_force'] else 'NO ':<3}  {layer['name']}: {layer['detail']}")


async def _analyse(client: Client, steps: Steps) -> tuple[list[Path], Belongings]:
    session = Session(client, steps)
    async with steps.step("start a sandbox"):
        _, record = await session.call("create_session")
        session.handle = record["session_id"]
        _print_isolation(record)
    async with steps.step("upload"):
        _, record = await session.call("upload_file", local_path=str(DATA))
        print(f"{DATA.name} -> {record['path']} ({record['bytes']:,} bytes)")
    for name, code in CELLS:
        async with steps.step(name):
            await session.run(name, code)
    async with steps.step("download"):
        target = OUT / "penguins_clean.csv"
        await session.call("download_file", path="penguins_clean.csv", local_path=str(target), overwrite=True)
        print(f"-> {_short(target)} ({target.stat().st_size:,} bytes)")
    _, record = await session.call("execute_code", code="import os; print(os.environ['E2B_SANDBOX_ID'])")
    belongings = Belongings(record["stdout"].strip())
    async with steps.step("end the sandbox"):
        await session.call("close_session")
    return session.charts, belongings


async def main() -> None:
    """Run it all."""
    OUT.mkdir(parents=True, exist_ok=True)
    steps = Steps()
    start = time.perf_counter()
    async with Client(_server(), read_timeout_seconds=LONGEST_CALL_S) as client:
        tools = [tool.name for tool in (await client.list_tools()).tools]
        steps.times.append(("start the MCP server", time.perf_counter() - start))
        print(f"MCP server ready; tools: {', '.join(tools)}")
        charts, belongings = await _analyse(client, steps)
        start = time.perf_counter()
    steps.times.append(("stop the MCP server", time.perf_counter() - start))
    left = await asyncio.to_thread(belongings.remaining)
    print(f"\n=== times\n{steps.table()}")
    print(f"\n{len(charts)} charts are in {_short(OUT)}/.")
    if left:
        raise SystemExit("left behind:\n" + "\n".join(sorted(left)))
    print(
        f"Nothing is left of it: its {len(belongings.processes)} processes and {len(belongings.paths)} "
        "directories and control groups are gone, and there is no mount."
    )


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except* FailedError as failed:
        while isinstance(failed, BaseExceptionGroup):
            failed = failed.exceptions[0]
        sys.exit(str(failed))
