"""Figures of the MCP server, beside the servers that one writes oneself (which isolate nothing).

    python bench/mcp_server.py [--rounds N]

Prints a table and writes out/bench/mcp_server.json.
"""

import asyncio
import contextlib
import os
import platform
import statistics
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from e2b_code_interpreter import AsyncSandbox
from mcp import Client, StdioServerParameters
from report import asked, write
from serving import Server, serving

HERE = Path(__file__).parent
OURS = [sys.executable, "-P", "-m", "ringfence", "mcp"]
ALTERNATIVES = {
    name: [sys.executable, str(HERE / "mcp_alternatives.py"), name] for name in ("process", "kernel")
}
NAMES = {
    "ours": "ringfence mcp",
    "process": "own server, fresh python -c",
    "kernel": "own server, one ipykernel",
}
JOB = (
    "import pandas as pd\n"
    "print(pd.DataFrame({'a': range(1000), 'b': range(1000)}).describe().loc['mean', 'a'])"
)
CONCURRENT = 20
_LONGEST_S = 1800


@contextlib.asynccontextmanager
async def client(command: list[str], **environment: str) -> AsyncIterator[Client]:
    """A client of a fresh server."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    cache = {n: os.environ[n] for n in ("RINGFENCE_CACHE_DIR", "XDG_CACHE_HOME") if n in os.environ}
    parameters = StdioServerParameters(
        command=command[0], args=command[1:], env={**kept, **cache, **environment}
    )
    async with Client(parameters, read_timeout_seconds=_LONGEST_S) as made:
        yield made


async def run(made: Client, code: str, expected: str, **arguments: str) -> float:
    """Seconds that a call takes; ends the program when its answer is wrong."""
    started = time.perf_counter()
    result = await made.call_tool("execute_code", {"code": code, **arguments})
    seconds = time.perf_counter() - started
    if result.is_error or expected not in result.content[0].text:  # type: ignore[union-attr]
        raise SystemExit(f"not the answer: {result.content}")
    return seconds


async def start(command: list[str], **environment: str) -> dict[str, float]:
    """From spawning the server to its list of tools, and to the answer of the first call."""
    started = time.perf_counter()
    async with client(command, **environment) as made:
        await made.list_tools()
        listed = time.perf_counter() - started
        await run(made, JOB, "499.5")
        return {"start → tools/list": listed, "start → first answer": time.perf_counter() - started}


async def warm(command: list[str], rounds: int, **environment: str) -> list[float]:
    """Seconds of calls that do next to nothing."""
    async with client(command, **environment) as made:
        await run(made, "print(1 + 1)", "2")
        return [await run(made, "print(1 + 1)", "2") for _ in range(rounds)]


async def warm_sdk(server: Server, rounds: int) -> list[float]:
    """The same by E2B's SDK, without MCP."""
    times = []
    async with await AsyncSandbox.create(**server.options) as sandbox:
        for _ in range(rounds + 1):
            started = time.perf_counter()
            await sandbox.run_code("print(1 + 1)")
            times.append(time.perf_counter() - started)
    return times[1:]


async def at_once(command: list[str], *, sessions: bool, **environment: str) -> float:
    """Seconds until `CONCURRENT` calls, made at the same time, have all been answered.

    Ours have a session each (and two connections, since one has 16 sessions at most), made beforehand.
    """
    async with client(command, **environment) as one, client(command, **environment) as two:
        calls = []
        for number in range(CONCURRENT):
            made = (one, two)[number % 2]
            arguments = {}
            if sessions:
                created = await made.call_tool("create_session", {})
                arguments["session_id"] = created.structured_content["session_id"]  # type: ignore[index]
            calls.append((made, arguments))
        started = time.perf_counter()
        await asyncio.gather(*(run(made, JOB, "499.5", **arguments) for made, arguments in calls))
        return time.perf_counter() - started


async def measure(rounds: int) -> dict[str, Any]:
    """All figures, in seconds."""
    figures: dict[str, dict[str, list[float]]] = {name: {} for name in NAMES}
    commands = {"ours": OURS, **ALTERNATIVES}
    await start(OURS)  # a template that is not built yet is built here
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        for name, command in commands.items():
            for what, seconds in (await start(command)).items():
                figures[name].setdefault(what, []).append(seconds)
    sdk: list[float] = []
    with serving() as server:
        there = {"RINGFENCE_URL": server.options["api_url"], "RINGFENCE_API_KEY": server.options["api_key"]}
        for name, command in commands.items():
            figures[name]["warm call"] = await warm(command, 10 * rounds, **there)
            if name != "kernel":  # one kernel does one thing at a time
                seconds = [
                    await at_once(command, sessions=name == "ours", **there) for _ in range(min(3, rounds))
                ]
                figures[name][f"{CONCURRENT} calls at once"] = seconds
        sdk = await warm_sdk(server, 10 * rounds)
        isolation = server.isolation
    medians = {
        name: {what: statistics.median(times) for what, times in rows.items()}
        for name, rows in figures.items()
    }
    return {
        "machine": f"{platform.machine()}, Linux {platform.release()}, Python {platform.python_version()}",
        "isolation": isolation,
        "rounds": rounds,
        "median_s": medians,
        "sdk_warm_s": statistics.median(sdk),
        "mcp_overhead_ms": 1000 * (medians["ours"]["warm call"] - statistics.median(sdk)),
    }


def show(figures: dict[str, Any]) -> None:
    """Print the figures, and how many times as long the others take."""
    medians = figures["median_s"]
    print(f"\n{figures['machine']}; isolation {figures['isolation']} (the others: none)\n")
    print(f"{'median, ms':<24}" + "".join(f"{name:>36}" for name in NAMES.values()))
    for what, ours in medians["ours"].items():
        cells = [f"{1000 * ours:>36.1f}"]
        for name in list(NAMES)[1:]:
            seconds = medians[name].get(what)
            text = "" if seconds is None else f"{1000 * seconds:.1f} ({seconds / ours:.2f} x ours)"
            cells.append(f"{text:>36}")
        print(f"{what:<24}" + "".join(cells))
    print(
        f"\nwarm run_code by the SDK alone: {1000 * figures['sdk_warm_s']:.1f} ms; "
        f"what MCP adds: {figures['mcp_overhead_ms']:.1f} ms"
    )


def main() -> None:
    """Measure, print, and write the JSON."""
    figures = asyncio.run(measure(asked(__doc__, rounds=5).rounds))
    show(figures)
    write("mcp_server", figures)


if __name__ == "__main__":
    main()
