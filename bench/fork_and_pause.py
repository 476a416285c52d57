"""How long pause, resume, snapshots and forks take, and what a copy with a 500 MB DataFrame costs.

Through the official SDK, on a real server on loopback; each for a sandbox that has run nothing, and for one
with a DataFrame of 500 MB in its kernel. For a copy, also the time until ``len(df)`` answers in it, and the
memory (PSS of the server's whole tree) that each copy adds: before and after it has read all of the frame.
In the same run, what one would do instead: a new sandbox in which the cells are run again, and the pickled
frame carried over by download and upload. Prints tables and writes ``out/bench/fork_and_pause.json``.
"""

import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from e2b_code_interpreter import Sandbox
from first_result import percentile, timed
from memory import tree_pss
from report import asked, write
from serving import TEMPLATE, Server, serving

FRAME = """
import numpy as np, pandas as pd
shape = ({megabytes} * 125_000 // 8, 8)
df = pd.DataFrame(np.random.default_rng(0).normal(size=shape), columns=list("abcdefgh"))
len(df)
"""
LIFETIME = 600
COPIES = (1, 4)
Series = dict[str, list[float]]


def run(sandbox: Sandbox, code: str) -> str:
    """The text of the result of `code`."""
    execution = sandbox.run_code(code)
    if execution.error is not None or execution.text is None:
        raise SystemExit(f"a cell did not work: {execution}")
    return str(execution.text)


def all_at_once(sandboxes: list[Sandbox], work: Callable[[Sandbox], object]) -> float:
    """Seconds until `work` is done in every sandbox."""
    with ThreadPoolExecutor(len(sandboxes)) as pool:
        return timed(lambda: list(pool.map(work, sandboxes)))


class Bench:
    """The figures of one server. megabytes: the size of the frame."""

    def __init__(self, server: Server, megabytes: int) -> None:
        self._server = server
        self._setup = FRAME.format(megabytes=megabytes)
        self.seconds: Series = {}
        self.memory: Series = {}

    def _note(self, name: str, seconds: float) -> None:
        self.seconds.setdefault(name, []).append(seconds)

    def _new(self) -> Sandbox:
        return Sandbox.create(timeout=LIFETIME, **self._server.options)

    def lifecycle(self, sandbox: Sandbox, kind: str) -> None:
        """Pause, resume and snapshot a sandbox."""
        self._note(f"{kind}: pause", timed(sandbox.pause))
        self._note(f"{kind}: resume", timed(lambda: sandbox.connect(timeout=LIFETIME)))
        made = []
        self._note(f"{kind}: snapshot", timed(lambda: made.append(sandbox.create_snapshot())))
        options = {key: value for key, value in self._server.options.items() if key != "template"}
        snapshot_id = made[0].snapshot_id
        copies: list[Sandbox] = []
        started = time.perf_counter()
        copies.append(Sandbox.create(snapshot_id, timeout=LIFETIME, **options))
        try:
            self._note(f"{kind}: create from it", time.perf_counter() - started)
            run(copies[0], "1 + 1" if kind == "empty" else "len(df)")
            self._note(f"{kind}: create from it → first cell", time.perf_counter() - started)
        finally:
            copies[0].kill()
            Sandbox.delete_snapshot(snapshot_id, **options)

    def forks(self, sandbox: Sandbox, kind: str, count: int) -> None:
        """Fork a sandbox; with a frame, ask all copies for its length, and then read it."""
        name = f"{kind}: fork, n={count}"
        before = tree_pss(self._server.pid)
        started = time.perf_counter()
        copies = sandbox.fork(count=count, timeout=LIFETIME)
        self._note(name, time.perf_counter() - started)
        try:
            if failed := [one for one in copies if isinstance(one, Exception)]:
                raise SystemExit(f"a fork did not start: {failed[0]}")
            cell = "1 + 1" if kind == "empty" else "len(df)"
            all_at_once(copies, lambda one: run(one, cell))
            self._note(f"{name} → first cell in all", time.perf_counter() - started)
            self._weigh(name, before, count)
            if kind != "empty":
                all_at_once(copies, lambda one: run(one, "float(df['a'].sum() + df['h'].sum())"))
                self._weigh(f"{name}, all of it read", before, count)
        finally:
            for one in copies:
                if not isinstance(one, Exception):
                    one.kill()

    def _weigh(self, name: str, before: int | None, count: int) -> None:
        after = tree_pss(self._server.pid)
        if before is not None and after is not None:
            self.memory.setdefault(name, []).append((after - before) / count / 2**20)

    def again(self, kind: str, count: int) -> None:
        """Instead: new sandboxes in which the cells are run again."""
        started = time.perf_counter()
        with ThreadPoolExecutor(count) as pool:
            made = list(pool.map(lambda _: self._new(), range(count)))
        try:
            cell = "1 + 1" if kind == "empty" else self._setup
            all_at_once(made, lambda one: run(one, cell))
            self._note(f"{kind}: cells again, n={count}", time.perf_counter() - started)
        finally:
            for one in made:
                one.kill()

    def carried(self, sandbox: Sandbox) -> None:
        """Instead: pickle the frame, download it, upload it to a new sandbox, and load it there."""
        started = time.perf_counter()
        run(sandbox, "df.to_pickle('/home/user/df.pickle'); 1")
        data = sandbox.files.read("/home/user/df.pickle", format="bytes", request_timeout=LIFETIME)
        sandbox.files.remove("/home/user/df.pickle")
        with self._new() as copy:
            copy.files.write("/home/user/df.pickle", bytes(data), request_timeout=LIFETIME)
            run(copy, "import pandas as pd; df = pd.read_pickle('/home/user/df.pickle'); len(df)")
            self._note("frame: pickle carried over, n=1", time.perf_counter() - started)

    def round(self, *, carry: bool) -> None:
        """All of it once."""
        with self._new() as empty:
            run(empty, "1 + 1")
            self.lifecycle(empty, "empty")
            for count in COPIES:
                self.forks(empty, "empty", count)
        with self._new() as full:
            run(full, self._setup)
            self.lifecycle(full, "frame")
            for count in COPIES:
                self.forks(full, "frame", count)
            if carry:
                self.carried(full)
        for count in COPIES:
            self.again("empty", count)
            self.again("frame", count)


INSTEAD = {
    "empty: fork, n=1 → first cell in all": ("empty: cells again, n=1",),
    "empty: fork, n=4 → first cell in all": ("empty: cells again, n=4",),
    "frame: fork, n=1 → first cell in all": ("frame: cells again, n=1", "frame: pickle carried over, n=1"),
    "frame: fork, n=4 → first cell in all": ("frame: cells again, n=4",),
    "frame: create from it → first cell": ("frame: cells again, n=1", "frame: pickle carried over, n=1"),
}


def measure(rounds: int, megabytes: int, template: str) -> dict[str, Any]:
    """All figures, in seconds and MiB."""
    with serving(template) as server:
        bench = Bench(server, megabytes)
        for number in range(rounds):
            print(f"\rround {number + 1} of {rounds}", end="", flush=True)
            bench.round(carry=number == 0)
        print()
        isolation = server.isolation
    return {
        "machine": f"{platform.machine()}, Linux {platform.release()}, Python {platform.python_version()}",
        "isolation": isolation,
        "rounds": rounds,
        "frame_mb": megabytes,
        "seconds": {
            name: {"p50": percentile(values, 0.5), "p90": percentile(values, 0.9), "n": len(values)}
            for name, values in bench.seconds.items()
        },
        "pss_mib_per_copy": {name: percentile(values, 0.5) for name, values in bench.memory.items()},
    }


def show(figures: dict[str, Any]) -> None:
    """Print the tables, and how many times longer what one would do instead takes."""
    rows = figures["seconds"]
    print(
        f"\n{figures['machine']}; isolation {figures['isolation']}; {figures['rounds']} rounds; "
        f"a frame of {figures['frame_mb']} MB\n"
    )
    print(f"{'':<40}{'p50':>11}{'p90':>11}   instead")
    for name, row in rows.items():
        cells = "".join(f"{value * 1000:>8.1f} ms" for value in (row["p50"], row["p90"]))
        for other in INSTEAD.get(name, ()):
            cells += f"   {other.partition(': ')[2]}: {rows[other]['p50'] / row['p50']:.1f} x"
        print(f"{name:<40}{cells}")
    print(f"\n{'memory that each copy adds (PSS)':<40}{'MiB':>8}")
    for name, mebibytes in figures["pss_mib_per_copy"].items():
        print(f"{name:<40}{mebibytes:>8.1f}")


def main() -> None:
    """Measure, print, and write the JSON."""
    options = asked(__doc__, rounds=3, megabytes=500, template=TEMPLATE)
    figures = measure(options.rounds, options.megabytes, options.template)
    show(figures)
    write("fork_and_pause", figures)


if __name__ == "__main__":
    main()
