"""What isolation holds and what it costs: attacks contained, milliseconds by layer, slowdown of real work.

Three tables, and ``out/bench/isolation.json``:

- the attacks of ``ringfence doctor``, contained of all that apply, by category (run it as root and as an
  ordinary user: each keeps the other's result);
- the layers in the order in which a sandbox gets them, each timed in a harness that calls the engine's own
  functions in a fresh fork, beside a bare fork;
- the same code in a sandbox and in an ordinary virtual environment of this machine, one after the other, as
  ratios: arithmetic, pandas, small files (both in memory) and system calls.
"""

import asyncio
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from baselines import Baselines
from e2b_code_interpreter import Sandbox
from report import OUT, asked, write
from serving import serving

from ringfence.engine.engine import Engine
from ringfence.engine.isolation import (
    capabilities,
    landlock,
    linux,
    mounts,
    network,
    rlimits,
    seccomp,
    userns,
)
from ringfence.engine.launcher.host import Host
from ringfence.engine.model import Limits
from ringfence.engine.proof.battery import run_probes
from ringfence.engine.settings import EngineSettings, default_cache_dir
from ringfence.engine.templates.build import ensure_template
from ringfence.engine.zygote.sandbox import NAMESPACES

TEMPLATE = "code-interpreter-v1"
WORK = """
import json, os, sys, tempfile, time
import numpy as np, pandas as pd
rng = np.random.default_rng(0)
a = rng.normal(size=(800, 800))
df = pd.DataFrame({"k": rng.integers(0, 1000, 500_000), "v": rng.normal(size=500_000)})
def matmul():
    for _ in range(4): a @ a
def group_by():
    for _ in range(4): df.groupby("k").v.agg(["mean", "std", "max"])
def files():
    with tempfile.TemporaryDirectory(dir=sys.argv[1]) as d:
        for i in range(10_000):
            with open(f"{d}/{i}", "w") as f: f.write("x")
def calls():
    for _ in range(100_000): os.getppid()
jobs = {"numpy matmul": matmul, "pandas group-by": group_by}
jobs |= {"10,000 small files": files, "100,000 system calls": calls}
times = {}
for name, job in jobs.items():
    job() if name != "10,000 small files" else None
    started = time.perf_counter(); job(); times[name] = time.perf_counter() - started
print(json.dumps(times))
"""
KEPT = frozenset(
    capabilities.NUMBERS[name]
    for name in ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP")
)


def attacks() -> dict[str, Any]:
    """Run all attacks on this machine as the user who runs this."""

    async def prove() -> dict[str, Any]:
        engine = await Engine.start(EngineSettings(templates=(TEMPLATE,)))
        try:
            report = await run_probes(engine, TEMPLATE, "all")
        finally:
            await engine.aclose()
        through = [f"{one.attack} as {one.who}" for one in report.got_through]
        return {"level": engine.isolation.level, "by_category": report.by_category(), "got_through": through}

    return asyncio.run(prove())


class LayerTimer:
    """Builds a sandbox's layers up in forks and notes how long each takes, in seconds."""

    def __init__(self, host: Host) -> None:
        template = ensure_template(TEMPLATE, default_cache_dir())
        self._layers = tuple(
            mounts.LayerPaths(one.target, tuple(map(str, one.lowers))) for one in template.layers
        )
        self._host = host
        self._plan = host.ids
        self._template_ns = host.create_template_namespace(0)
        self._limits = vars(Limits())
        self._program = seccomp.build()

    def once(self, number: int) -> dict[str, float]:
        """One sandbox, as far as its layers go; it ends at once."""
        reader, writer = os.pipe()
        started = time.perf_counter()
        cgroup = self._host.cgroups.create(f"bench{number}", self._limits)
        made = time.perf_counter() - started
        started = time.perf_counter()
        slot = userns.create(self._plan.slot_maps(number), self._template_ns)
        slot_made = time.perf_counter() - started
        started = time.perf_counter()
        pid = os.fork()
        if pid == 0:
            self._child(writer, started, slot, cgroup)
        os.close(writer)
        with os.fdopen(reader) as answers:
            times = json.loads(answers.read() or "{}")
        os.waitpid(pid, 0)
        os.close(slot)
        cgroup.kill()
        cgroup.remove()
        return {"cgroup: make and limit": made, "slot: user namespace": slot_made, **times}

    def _child(self, writer: int, started: float, slot: int, cgroup: Any) -> None:
        times: dict[str, float] = {"bare fork": time.perf_counter() - started}
        try:
            self._enter(times, slot, cgroup)
            pid = os.fork()  # the first in its PID namespace
            if pid:
                os.waitpid(pid, 0)
            else:
                self._settle(times, slot)
                os.write(writer, json.dumps(times).encode())
        finally:
            os._exit(0)

    def _enter(self, times: dict[str, float], slot: int, cgroup: Any) -> None:
        note = _Note(times)
        note("cgroup: join", cgroup.join_self)
        idmap = slot if self._host.idmap else None
        self._trees = note("root: clone and map", lambda: mounts.clone_lowers(self._layers, idmap))
        if not self._plan.single:
            os.setgroups([])
        note("user namespace: enter", lambda: userns.enter(self._template_ns, 0))
        for name, flag in NAMESPACES.items():
            note(f"namespace: {name.partition('_')[0]}", lambda flag=flag: linux.unshare(flag))

    def _settle(self, times: dict[str, float], slot: int) -> None:
        note = _Note(times)
        limits = self._limits
        plan = mounts.RootPlan(
            self._layers, limits["disk_mb"] << 20, limits["inodes"], self._plan.owner_in_template(1, 0),
            limits["memory_mb"] << 20, limits["cpus"],
        )  # fmt: skip
        note("root: overlay, /proc, /dev, pivot", lambda: mounts.assemble(plan, self._trees))
        note("host name", lambda: socket.sethostname("sandbox"))
        note("network: loopback up", network.loopback_up)
        note("network: lead to the egress", network.intercept)
        note("sandbox's user namespace", lambda: userns.enter(slot, 1000 if self._plan.single else 0))
        note("rlimits", lambda: rlimits.apply(limits))
        note("capabilities, no_new_privs", self._drop)
        note("Landlock", lambda: landlock.restrict([landlock.PathRule("/", landlock.ALL)], scopes=0))
        note("seccomp", lambda: seccomp.install(self._program))

    @staticmethod
    def _drop() -> None:
        capabilities.drop(keep=KEPT)
        capabilities.no_new_privs()


class _Note:
    """Times a step under its name."""

    def __init__(self, times: dict[str, float]) -> None:
        self._times = times

    def __call__(self, name: str, step: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = step()
        self._times[name] = time.perf_counter() - started
        return result


def layers(rounds: int) -> dict[str, float]:
    """The median of each layer, in milliseconds. In a child, because it leaves the host's mount namespace."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            host = Host.prepare(False, {})
            timer = LayerTimer(host)
            all_times = [timer.once(number) for number in range(1, rounds + 1)]
            names = max(all_times, key=len)
            medians = {
                name: statistics.median(times[name] for times in all_times if name in times) * 1000
                for name in names
            }
            os.write(writer, json.dumps(medians).encode())
            host.cgroups.remove()
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answers:
        text = answers.read()
    os.waitpid(pid, 0)
    return dict(json.loads(text)) if text else {}


def overhead(rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of the work in a sandbox and outside, in turns; medians and their ratio."""
    place = OUT / "baseline-venv"
    Baselines(place, "import pandas as pd\ndf = pd.DataFrame({'a': [1]})\ndf.describe()")
    inside: list[dict[str, float]] = []
    outside: list[dict[str, float]] = []
    metadata = {"ringfence.cpus": str(os.cpu_count() or 1), "ringfence.memory_mb": "4096"}
    with serving() as server, Sandbox.create(metadata=metadata, timeout=1800, **server.options) as sandbox:
        sandbox.files.write("/home/user/work.py", WORK)
        with TemporaryDirectory(dir="/dev/shm") as memory:
            script = Path(memory) / "work.py"
            script.write_text(WORK)
            for _ in range(rounds):
                done = sandbox.commands.run("python3 work.py /tmp", timeout=600)
                inside.append(json.loads(done.stdout))
                plain = subprocess.run(
                    [place / "bin" / "python", script, memory], check=True, capture_output=True, text=True
                )
                outside.append(json.loads(plain.stdout))
    return {
        name: {
            "inside": (a := statistics.median(times[name] for times in inside)),
            "outside": (b := statistics.median(times[name] for times in outside)),
            "ratio": a / b,
        }
        for name in inside[0]
    }


def show(figures: dict[str, Any]) -> None:
    """Print the tables."""
    for who, proof in figures["attacks"].items():
        counts = proof["by_category"]
        total = (sum(c for c, _ in counts.values()), sum(n for _, n in counts.values()))
        print(f"\nattacks contained, as {who} (level {proof['level']}): {total[0]} of {total[1]}")
        for category, (contained, of) in sorted(counts.items()):
            print(f"  {category:<20}{contained:>5} of {of}")
        for one in proof["got_through"]:
            print(f"  got through: {one}")
    print("\nlayers at create, median ms")
    for name, milliseconds in figures["layers_ms"].items():
        print(f"  {name:<36}{milliseconds:>9.3f}")
    print("\nthe same code, seconds               sandbox   without    ratio")
    for name, row in figures["overhead"].items():
        print(f"  {name:<32}{row['inside']:>10.3f}{row['outside']:>10.3f}{row['ratio']:>9.2f}")


def main() -> None:
    """Entry point."""
    options = asked(__doc__, rounds=5, creates=40)
    path = OUT / "isolation.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    who = "root" if os.geteuid() == 0 else "an ordinary user"
    figures = {
        "machine": f"{platform.system()} {platform.release()}, {os.cpu_count()} processors",
        "python": sys.version.split()[0],
        "rounds": options.rounds,
        "creates": options.creates,
        "layers_ms": layers(options.creates),
        "attacks": {**before.get("attacks", {}), who: attacks()},
        "overhead": overhead(options.rounds),
    }
    show(figures)
    write("isolation", figures)


if __name__ == "__main__":
    main()
