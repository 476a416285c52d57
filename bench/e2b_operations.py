"""How long E2B's operations take through the official SDK, and how much of E2B is answered.

One real server on loopback; every round does each operation once with the synchronous and once with the
asynchronous SDK, and, beside it, what one would do without a sandbox: a fresh ``python -c``, a subprocess, a
copy of a file. (Pause, resume, snapshot and fork have a benchmark of their own.) The counts are those of the
compatibility matrix, ``docs/reference/E2B_COMPATIBILITY.md``, which a test keeps true.
Prints tables and writes ``out/bench/e2b_operations.json``.
"""

import asyncio
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from e2b_code_interpreter import AsyncSandbox, Sandbox
from report import asked, write
from serving import Server, serving

ROOT = Path(__file__).parent.parent
MATRIX = ROOT / "docs" / "reference" / "E2B_COMPATIBILITY.md"
MEGABYTE = bytes(range(256)) * 4096
LISTED = 20
WITHOUT = {
    "create": "fresh python -c",
    "run_code": "fresh python -c",
    "commands.run": "subprocess",
    "upload 1 MB": "cp 1 MB",
    "download 1 MB": "cp 1 MB",
    "files.list": "ls -l",
}
"""What one would do instead of an operation, where there is such a thing."""

Series = dict[str, list[float]]
Call = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Awaitable[Any]]


class Stopwatch:
    """Runs operations by one face of the SDK and keeps their times, in seconds."""

    def __init__(self, name: str, call: Call) -> None:
        self.name = name
        self.series: Series = {}
        self._call = call

    async def __call__(self, operation: str, function: Callable[..., Any], *args: Any, **named: Any) -> Any:
        started = time.perf_counter()
        result = await self._call(function, args, named)
        self.series.setdefault(operation, []).append(time.perf_counter() - started)
        return result


async def _sync(function: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    return function(*args, **named)


async def _async(function: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    return await function(*args, **named)


async def one_round(watch: Stopwatch, kind: Any, server: Server) -> None:
    """Each operation once. Raises AssertionError when one does not do what it should."""
    box = await watch("create", kind.create, **server.options)
    await watch("first run_code", box.run_code, "1 + 1")
    assert (await watch("run_code", box.run_code, "1 + 1")).text == "2"
    assert (await watch("commands.run", box.commands.run, "true")).exit_code == 0
    await watch("upload 1 MB", box.files.write, "data.bin", MEGABYTE)
    assert await watch("download 1 MB", box.files.read, "data.bin", format="bytes") == MEGABYTE
    await watch(
        f"write_files ({LISTED} small)",
        box.files.write_files,
        [{"path": f"many/{number}", "data": "x"} for number in range(LISTED)],
    )
    assert len(await watch("files.list", box.files.list, "many")) == LISTED
    await watch("set_timeout", box.set_timeout, 100)
    connection = {name: value for name, value in server.options.items() if name != "template"}
    pages = kind.list(**connection)
    assert box.sandbox_id in [one.sandbox_id for one in await watch("list", pages.next_items)]
    assert await watch("kill", box.kill)


def without(directory: Path) -> dict[str, float]:
    """Seconds of what one would do without a sandbox."""
    source = directory / "source"
    source.write_bytes(MEGABYTE)
    commands = {
        "fresh python -c": [sys.executable, "-c", "print(1 + 1)"],
        "subprocess": ["/bin/bash", "-l", "-c", "true"],
        "cp 1 MB": ["cp", str(source), str(directory / "copy")],
        "ls -l": ["ls", "-l", str(directory / "many")],
    }
    (directory / "many").mkdir(exist_ok=True)
    for number in range(LISTED):
        (directory / "many" / str(number)).touch()
    seconds = {}
    for name, command in commands.items():
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds[name] = time.perf_counter() - started
    return seconds


async def measure(rounds: int) -> dict[str, Any]:
    """All figures, in seconds."""
    faces = [(Stopwatch("sync", _sync), Sandbox), (Stopwatch("async", _async), AsyncSandbox)]
    plain: Series = {}
    with serving() as server, tempfile.TemporaryDirectory() as scratch:
        for number in range(-1, rounds):  # the first one is not what is measured
            print(f"\rround {max(number, 0) + 1} of {rounds}", end="", flush=True)
            for watch, kind in faces:
                await one_round(watch, kind, server)
            for name, seconds in without(Path(scratch)).items():
                plain.setdefault(name, []).append(seconds)
            if number < 0:
                plain.clear()
                for watch, _ in faces:
                    watch.series.clear()
        print()
        isolation = server.isolation
    return {
        "machine": f"{platform.machine()}, Linux {platform.release()}, Python {platform.python_version()}",
        "isolation": isolation,
        "rounds": rounds,
        "seconds": {watch.name: summary(watch.series) for watch, _ in faces},
        "seconds_without": summary(plain),
        "compatibility": matrix_counts(MATRIX.read_text(encoding="utf-8")),
    }


def summary(series: Series) -> dict[str, dict[str, float]]:
    """Median and 90th percentile (nearest rank) of each series."""
    return {
        name: {"p50": _rank(values, 0.5), "p90": _rank(values, 0.9), "n": len(values)}
        for name, values in series.items()
    }


def _rank(values: list[float], fraction: float) -> float:
    return sorted(values)[min(len(values) - 1, int(fraction * len(values)))]


def matrix_counts(text: str) -> dict[str, dict[str, int]]:
    """How many rows of each of the matrix's tables say yes, differs and no."""
    counts: dict[str, dict[str, int]] = {}
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        answers = Counter(re.findall(r"^\|[^|\n]+\| (yes|differs|no) \|", section, flags=re.MULTILINE))
        if answers:
            title = section.partition("\n")[0]
            counts[title] = {answer: answers[answer] for answer in ("yes", "differs", "no")}
    return counts


def show(figures: dict[str, Any]) -> None:
    """Print the tables; a ratio says how many times longer it takes without a sandbox (below 1: shorter)."""
    print(f"\n{figures['machine']}; isolation {figures['isolation']}; {figures['rounds']} rounds\n")
    print(f"{'':<24}{'sync p50':>11}{'p90':>11}{'async p50':>12}{'p90':>11}   without a sandbox")
    plain = figures["seconds_without"]
    for name, row in figures["seconds"]["sync"].items():
        other = figures["seconds"]["async"][name]
        cells = "".join(f"{value * 1000:>8.1f} ms" for value in (row["p50"], row["p90"]))
        cells += " " + "".join(f"{value * 1000:>8.1f} ms" for value in (other["p50"], other["p90"]))
        instead = WITHOUT.get(name)
        if instead:
            ratio = plain[instead]["p50"] / row["p50"]
            cells += f"   {instead}: {plain[instead]['p50'] * 1000:.1f} ms ({ratio:.1f} x)"
        print(f"{name:<24}{cells}")
    print(f"\n{'of the compatibility matrix':<36}{'yes':>6}{'differs':>9}{'no':>5}")
    for title, answers in figures["compatibility"].items():
        print(f"{title:<36}{answers['yes']:>6}{answers['differs']:>9}{answers['no']:>5}")


def main() -> None:
    """Measure, print, and write the JSON."""
    figures = asyncio.run(measure(asked(__doc__, rounds=30).rounds))
    show(figures)
    write("e2b_operations", figures)


if __name__ == "__main__":
    main()
