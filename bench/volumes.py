"""How fast volumes are; run it as a script.

A file is written and read through the content API, and inside a sandbox, on the volume and on the sandbox's
own writable layer, which is in memory; beside it, on the machine's disk without a sandbox. Ratios are within
the same run. Prints a table and writes ``out/bench/volumes.json``.
"""

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from e2b import Volume
from e2b_code_interpreter import Sandbox
from report import asked, write
from serving import Server, serving

INSIDE = """
import os, time
data = os.urandom(1 << 20)
def write(path, megabytes):
    started = time.perf_counter()
    with open(path, "wb") as file:
        for _ in range(megabytes):
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - started
def read(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    started = time.perf_counter()
    while os.read(descriptor, 1 << 20):
        pass
    os.close(descriptor)
    return time.perf_counter() - started
"""


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def through_the_api(volume: Volume, megabytes: int) -> dict[str, float]:
    """Seconds of an upload and a download."""
    data = os.urandom(megabytes << 20)
    written = timed(lambda: volume.write_file("/api", data, force=True))
    read = timed(lambda: volume.read_file("/api", format="bytes"))
    return {"content API, write": written, "content API, read": read}


def inside(sandbox: Sandbox, megabytes: int) -> dict[str, float]:
    """Seconds of writing (with fsync) and of reading again, on the volume and on the sandbox's own layer."""
    code = (
        f"print([[write(f, {megabytes}), read(f)] for f in ('/v/inside', '/home/user/inside')])"
        "; import os; os.unlink('/home/user/inside')"
    )
    printed = "".join(sandbox.run_code(INSIDE + code, timeout=300).logs.stdout)
    (volume_write, volume_read), (own_write, own_read) = json.loads(printed)
    return {
        "inside, volume, write": volume_write,
        "inside, volume, read": volume_read,
        "inside, own layer, write": own_write,
        "inside, own layer, read": own_read,
    }


def on_the_disk(directory: Path, megabytes: int) -> dict[str, float]:
    """Seconds of the same without a sandbox, on the disk that the volume's image is on."""
    functions: dict[str, Any] = {}
    exec(INSIDE, functions)  # the same code as inside
    path = str(directory / "plain")
    try:
        return {
            "plain disk, write": functions["write"](path, megabytes),
            "plain disk, read": functions["read"](path),
        }
    finally:
        Path(path).unlink()


def small_operations(server: Server, volume: Volume, rounds: int) -> dict[str, float]:
    """Median seconds of small requests, and of starting a sandbox with and without a volume."""

    def median(work: Callable[[], object]) -> float:
        return sorted(timed(work) for _ in range(rounds))[rounds // 2]

    def start(**options: Any) -> None:
        Sandbox.create(**options, **server.options).kill()

    volume.write_file("/small", b"x" * 100)
    return {
        "content API, stat": median(lambda: volume.get_info("/small")),
        "content API, read 100 bytes": median(lambda: volume.read_file("/small")),
        "content API, write 100 bytes": median(lambda: volume.write_file("/small", b"x" * 100)),
        "create and kill a sandbox": median(start),
        "the same with a volume": median(lambda: start(volume_mounts={"/v": volume})),
    }


def measure(rounds: int, megabytes: int) -> dict[str, Any]:
    """All figures: the median of `rounds`, in seconds and MiB per second."""
    series: dict[str, list[float]] = {}
    with serving("base") as server, tempfile.TemporaryDirectory() as directory:
        os.environ["E2B_VOLUME_API_URL"] = server.options["api_url"]
        options = {name: server.options[name] for name in ("api_key", "api_url")}
        created = time.perf_counter()
        volume = Volume.create("bench", **options)
        created = time.perf_counter() - created
        with Sandbox.create(volume_mounts={"/v": volume}, **server.options) as sandbox:
            for _ in range(rounds):
                found = through_the_api(volume, megabytes) | inside(sandbox, megabytes)
                for name, seconds in (found | on_the_disk(Path(directory), megabytes)).items():
                    series.setdefault(name, []).append(seconds)
        small = small_operations(server, volume, 10 * rounds)
        Volume.destroy(volume.volume_id, **options)
    medians = {name: sorted(values)[len(values) // 2] for name, values in series.items()}
    return {
        "machine": f"{platform.machine()}, Linux {platform.release()}, Python {platform.python_version()}",
        "rounds": rounds,
        "megabytes": megabytes,
        "seconds": medians,
        "mib_per_second": {name: megabytes / seconds for name, seconds in medians.items()},
        "small_seconds": {"create a volume": created, **small},
    }


def show(figures: dict[str, Any]) -> None:
    """Print the table, with each rate as a part of the sandbox's own layer's."""
    print(f"\n{figures['machine']}; {figures['megabytes']} MiB, median of {figures['rounds']}\n")
    rates = figures["mib_per_second"]
    for name, rate in rates.items():
        own = rates[f"inside, own layer, {name.rpartition(' ')[2]}"]
        print(f"{name:<30}{rate:>9.0f} MiB/s   {rate / own:6.2f} of the own layer's")
    print()
    for name, seconds in figures["small_seconds"].items():
        print(f"{name:<30}{seconds * 1000:>9.1f} ms")


def main() -> None:
    """Measure, print, and write the JSON."""
    arguments = asked(__doc__, rounds=5, megabytes=100)
    figures = measure(arguments.rounds, arguments.megabytes)
    show(figures)
    write("volumes", figures)


if __name__ == "__main__":
    main()
