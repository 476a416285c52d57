"""What the harder tier costs: the same work in a sandbox of the process tier and in one under gVisor.

Through the official SDK, on one real server on loopback, in one run: create → first result, a warm
``run_code``, system calls, file operations, and arithmetic, which should cost the same. Under gVisor a
sandbox is restored from an image, but for the first of its kind: how long that takes is told beside it.
Prints a table with ratios and writes ``out/bench/gvisor.json``. Needs root and ``runsc``.
"""

import time
from statistics import median
from typing import Any

import httpx
from e2b_code_interpreter import Sandbox
from report import asked, write
from serving import Server, serving

CALLS = 100_000
FILES = 300
_CODE = {
    f"{CALLS} × getppid()": f"import os\nfor _ in range({CALLS}): os.getppid()",
    f"{FILES} files written, read, removed": (
        "import os, tempfile\n"
        "place = tempfile.mkdtemp()\n"
        f"for number in range({FILES}):\n"
        "    path = f'{place}/{number}'\n"
        "    with open(path, 'wb') as file: file.write(b'x' * 4096)\n"
        "    with open(path, 'rb') as file: file.read()\n"
        "    os.unlink(path)\n"
    ),
    "64 MiB written to a file": "open('/home/user/big', 'wb').write(bytes(64 << 20))",
    "20 × a program started": "import subprocess\nfor _ in range(20): subprocess.run(['/bin/true'])",
    "arithmetic": "sum(n * n for n in range(3_000_000))",
}


_COLD = {"ringfence.isolation": "gvisor", "ringfence.disk_mb": "1000"}
"""With a disk of another size than the template's a sandbox is not restored."""
_BIRTH = "create → first result"


def timed(sandbox: Sandbox, code: str) -> float:
    """Seconds of one execution."""
    started = time.perf_counter()
    execution = sandbox.run_code(code, timeout=300)
    if execution.error is not None:
        raise SystemExit(f"it did not work: {execution.error}")
    return time.perf_counter() - started


def born(server: Server, metadata: dict[str, str]) -> tuple[Sandbox, float]:
    """A sandbox and the seconds until it has answered."""
    started = time.perf_counter()
    sandbox = Sandbox.create(metadata=metadata, timeout=600, request_timeout=300, **server.options)
    timed(sandbox, "1 + 1")
    return sandbox, time.perf_counter() - started


def measure(server: Server, tier: str, rounds: int) -> dict[str, float]:
    """Seconds by what was done: the best of `rounds`, except for the creation, which is the median."""
    births, best = [], {}
    for _ in range(rounds):
        sandbox, seconds = born(server, {"ringfence.isolation": tier})
        births.append(seconds)
        try:
            warm = sorted(timed(sandbox, "1 + 1") for _ in range(20))
            found = {"warm run_code(1 + 1)": warm[len(warm) // 2]}
            found |= {name: timed(sandbox, code) for name, code in _CODE.items()}
        finally:
            sandbox.kill()
        best = {name: min(seconds, best.get(name, seconds)) for name, seconds in found.items()}
    return {_BIRTH: median(births), **best}


def measure_cold(server: Server, rounds: int) -> float:
    """The median of the seconds that a sandbox takes that is not restored from an image."""
    births = []
    for _ in range(rounds):
        sandbox, seconds = born(server, _COLD)
        sandbox.kill()
        births.append(seconds)
    return median(births)


def make_image(server: Server) -> float:
    """Have the image made; how many seconds after the first sandbox it was there."""
    born(server, {"ringfence.isolation": "gvisor"})[0].kill()
    started = time.perf_counter()
    while gvisor_of(server)["starts"]["images_in_the_making"]:
        time.sleep(0.1)
    return time.perf_counter() - started


def gvisor_of(server: Server) -> dict[str, Any]:
    """What the server says of the tier."""
    headers = {"X-API-KEY": server.options["api_key"]}
    health = httpx.get(f"{server.options['api_url']}/health", headers=headers).json()
    found: dict[str, Any] = health["isolation"]["gvisor"]
    return found


def main() -> None:
    """Measure both tiers, print, and write the file."""
    arguments = asked(__doc__, rounds=3, template="base")
    rounds = arguments.rounds
    with serving(arguments.template) as server:
        gvisor = gvisor_of(server)
        if not gvisor["available"]:
            raise SystemExit(gvisor["detail"])
        figures: dict[str, Any] = {
            "gvisor": gvisor["detail"],
            "template": arguments.template,
            "rounds": rounds,
            "image made after": make_image(server),
            "cold": measure_cold(server, rounds),
            "seconds": {tier: measure(server, tier, rounds) for tier in ("process", "gvisor")},
        }
    process, hard = figures["seconds"]["process"], figures["seconds"]["gvisor"]
    figures["ratio"] = {name: hard[name] / process[name] for name in process}
    print(f"\n{figures['gvisor']}; template {arguments.template}; {rounds} rounds\n")
    print(f"{'':<36}{'process':>12}{'gVisor':>12}{'ratio':>9}")
    for name, ratio in figures["ratio"].items():
        print(f"{name:<36}{process[name]:>10.4f} s{hard[name]:>10.4f} s{ratio:>8.1f}×")
    print(f"{_BIRTH + ', cold':<36}{'':>14}{figures['cold']:>10.4f} s")
    write("gvisor", figures)


if __name__ == "__main__":
    main()
