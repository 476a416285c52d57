"""How long it takes to a first result, and what an idle sandbox costs; run by ``make bench``.

Through the official SDK, on a real server on loopback: create → first result of a pandas ``describe()``,
and a warm ``run_code("1+1")``. In the same run, the same job without a sandbox: by a fresh ``python -c``
and by a fresh ipykernel (both on this machine's Python, with the template's versions of pandas and numpy).
Prints a table and writes ``out/bench/first_result.json``.
"""

import platform
import time
from collections.abc import Callable
from typing import Any

from baselines import Baselines
from e2b_code_interpreter import Sandbox
from memory import tree_pss
from report import OUT, asked, write
from serving import Server, serving

JOB = """
import numpy as np, pandas as pd
df = pd.DataFrame(np.random.default_rng(0).normal(size=(10_000, 8)), columns=list("abcdefgh"))
df.describe()
"""


def percentile(seconds: list[float], fraction: float) -> float:
    """The value below which `fraction` of `seconds` lie (nearest rank)."""
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def first_result(server: Server) -> dict[str, float]:
    """Seconds of creating a sandbox, of its first pandas result, and of both."""
    started = time.perf_counter()
    sandbox = Sandbox.create(**server.options)
    created = time.perf_counter()
    try:
        execution = sandbox.run_code(JOB)
        ended = time.perf_counter()
        if execution.error is not None or "mean" not in (execution.text or ""):
            raise SystemExit(f"the job did not work: {execution}")
    finally:
        sandbox.kill()
    return {
        "create": created - started,
        "first describe()": ended - created,
        "create → describe()": ended - started,
    }


def warm_cells(server: Server, rounds: int) -> list[float]:
    """Seconds of ``run_code("1+1")`` in a sandbox that has run code before."""
    with Sandbox.create(**server.options) as sandbox:
        for _ in range(5):
            sandbox.run_code("1+1")
        return [timed(lambda: sandbox.run_code("1+1")) for _ in range(rounds)]


def idle_memory(server: Server, count: int, code: str | None) -> float | None:
    """MiB (PSS) that one more sandbox adds to the server's whole tree of processes; None where the kernel
    hides it.
    """
    before = tree_pss(server.pid)
    sandboxes = [Sandbox.create(**server.options) for _ in range(count)]
    try:
        for sandbox in sandboxes if code else ():
            sandbox.run_code(code or "")
        time.sleep(1)
        after = tree_pss(server.pid)
    finally:
        for sandbox in sandboxes:
            sandbox.kill()
    return None if before is None or after is None else (after - before) / count / 2**20


def measure(rounds: int) -> dict[str, Any]:
    """All figures, in seconds and MiB."""
    baselines = Baselines(OUT / "plain-python", JOB)
    series: dict[str, list[float]] = {}
    with serving() as server:
        first_result(server)  # the first one of all is not what is measured
        for number in range(rounds):
            print(f"\rround {number + 1} of {rounds}", end="", flush=True)
            for name, seconds in first_result(server).items():
                series.setdefault(name, []).append(seconds)
            if number < baselines.rounds(rounds):
                series.setdefault("fresh python -c", []).append(baselines.python())
                series.setdefault("fresh ipykernel", []).append(baselines.ipykernel())
        print()
        series['warm run_code("1+1")'] = warm_cells(server, 10 * rounds)
        memory = {
            "idle, never used": idle_memory(server, 10, None),
            "idle, after describe()": idle_memory(server, 10, JOB),
        }
        isolation = server.isolation
    return {
        "machine": f"{platform.machine()}, Linux {platform.release()}, Python {platform.python_version()}",
        "isolation": isolation,
        "rounds": rounds,
        "seconds": {
            name: {"p50": percentile(values, 0.5), "p90": percentile(values, 0.9), "n": len(values)}
            for name, values in series.items()
        },
        "pss_mib_per_sandbox": memory,
    }


def show(figures: dict[str, Any]) -> None:
    """Print the figures, with how many times faster the sandbox is than each of the others."""
    ours = figures["seconds"]["create → describe()"]["p50"]
    print(f"\n{figures['machine']}; isolation {figures['isolation']}\n")
    print(f"{'':<24}{'p50':>10}{'p90':>10}{'n':>6}   against create → describe()")
    for name, row in figures["seconds"].items():
        ratio = f"{row['p50'] / ours:6.1f} x" if name.startswith("fresh") else ""
        print(f"{name:<24}{row['p50'] * 1000:>7.1f} ms{row['p90'] * 1000:>7.1f} ms{row['n']:>6}   {ratio}")
    print()
    for name, mib in figures["pss_mib_per_sandbox"].items():
        print(f"memory of a sandbox, {name:<24}{'not readable' if mib is None else f'{mib:8.1f} MiB (PSS)'}")


def main() -> None:
    """Measure, print, and write the JSON."""
    figures = measure(asked(__doc__, rounds=20).rounds)
    show(figures)
    write("first_result", figures)


if __name__ == "__main__":
    main()
