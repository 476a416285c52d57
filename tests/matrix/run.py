"""``make matrix``: install each package of `packages.toml` in a sandbox of its own, use it, write the table.

Only what is not in ``out/matrix.json`` yet, or failed there, is run; ``--all`` starts over, names choose
some. The table goes to ``docs/reference/PACKAGES.md``. What the system call policy refused is read from the
kernel's log, as far as this user may.
"""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from e2b_code_interpreter import AsyncSandbox

from ringfence.engine.isolation import linux, syscalls

ROOT = Path(__file__).parents[2]
STATE = ROOT / "out" / "matrix.json"
TABLE = ROOT / "docs" / "reference" / "PACKAGES.md"
TEMPLATE = "code-interpreter-v1"
INSTALL_SECONDS, USE_SECONDS = 900, 900
MEMORY_MB, DISK_MB, PIDS, INODES = 4096, 3072, 512, 400_000
_RECORD = re.compile(r"type=1326 .*?\buid=(\d+) .*?comm=(\S+) .*?syscall=(\d+) .*?code=0x(5[0-9a-f]{4})\b")
_VERSION = "import importlib.metadata as m; print(m.version({name!r}))"
Result = dict[str, Any]


@asynccontextmanager
async def serving() -> AsyncIterator[dict[str, str]]:
    """A server that lets sandboxes install packages and has the kernel log refusals; the SDK's options."""
    key = "e2b_" + os.urandom(20).hex()
    ready, ready_end = os.pipe()
    with TemporaryDirectory(prefix="ringfence-matrix-") as directory:
        command = [sys.executable, "-m", "ringfence", "serve", "--port", "0", "--templates", TEMPLATE]
        command += ["--data-dir", directory, "--ready-fd", str(ready_end), "--network-default", "packages"]
        env = {**os.environ, "RINGFENCE_API_KEY": key, "RINGFENCE_SECCOMP_LOG": "1"}
        process = await asyncio.create_subprocess_exec(
            *command, env=env, pass_fds=(ready_end,), stdout=subprocess.DEVNULL
        )
        os.close(ready_end)
        try:
            with os.fdopen(ready) as pipe:
                line = await asyncio.to_thread(pipe.readline)
            if not line:
                raise SystemExit("the server did not start")
            url = json.loads(line)["url"]
            yield {"api_key": key, "api_url": url, "sandbox_url": url}
        finally:
            process.terminate()
            await process.wait()


async def try_package(name: str, entry: dict[str, Any], options: dict[str, str]) -> Result:
    """Install and use one package; what came of it."""
    wanted = {"memory_mb": MEMORY_MB, "disk_mb": DISK_MB, "pids": PIDS, "inodes": INODES}
    metadata = {f"ringfence.{key}": str(entry.get(key, default)) for key, default in wanted.items()}
    sandbox = await AsyncSandbox.create(TEMPLATE, timeout=1800, metadata=metadata, **options)
    since = time.monotonic()
    log_start = _log_position()
    try:
        result = await _install_and_use(sandbox, name, entry)
    except Exception as error:
        result = {"version": "", "verdict": "failed", "output": f"{type(error).__name__}: {error}"[-2000:]}
    finally:
        await sandbox.kill()
    result["refused"] = _refused_since(log_start)
    result["seconds"] = round(time.monotonic() - since, 1)
    return result


async def _install_and_use(sandbox: AsyncSandbox, name: str, entry: dict[str, Any]) -> Result:
    version = await _run(sandbox, f"python3 -c {_quote(_VERSION.format(name=name))}", 60)
    in_template = version[0] == 0 and "install" not in entry
    if not in_template:
        wanted = entry.get("install", name)
        command = f"python3 -m pip install -q --no-cache-dir --only-binary :all: {wanted}"
        code, text = await _run(sandbox, command, INSTALL_SECONDS)
        if code:
            return {"version": "", "verdict": "not installed", "output": text[-2000:]}
        distribution = name if "install" not in entry else _distribution(name, wanted)
        version = await _run(sandbox, f"python3 -c {_quote(_VERSION.format(name=distribution))}", 60)
    await sandbox.files.write("/home/user/use.py", entry["code"])
    code, text = await _run(sandbox, "python3 -W ignore use.py", USE_SECONDS)
    verdict = "works" if code == 0 else "failed"
    where = "in the template" if in_template else "pip install"
    return {
        "version": version[1].strip().splitlines()[-1],
        "from": where,
        "verdict": verdict,
        "output": text[-2000:],
    }


def _distribution(name: str, wanted: str) -> str:
    names = [re.split(r"[\[<>=]", part)[0] for part in wanted.split()]
    return name if name in names else names[0]


async def _run(sandbox: AsyncSandbox, command: str, seconds: int) -> tuple[int, str]:
    from e2b.sandbox.commands.command_handle import CommandExitException

    try:
        done = await sandbox.commands.run(command, timeout=seconds, request_timeout=seconds + 30)
    except CommandExitException as error:
        return error.exit_code, f"{error.stdout}\n{error.stderr}"
    return 0, done.stdout + done.stderr


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\"'\"'") + "'"


def _log_position() -> str:
    return (_kernel_log() or [""])[-1]


def _kernel_log() -> list[str]:
    done = subprocess.run(["dmesg"], capture_output=True, text=True, check=False)
    return done.stdout.splitlines()


def _refused_since(position: str) -> list[str]:
    """The calls that were refused, from the kernel's log: those of other sandboxes at the same time too."""
    names = {number: name for name, number in syscalls.NUMBERS[linux.ARCH].items()}
    found = set()
    lines = _kernel_log()
    start = lines.index(position) + 1 if position in lines else 0
    for line in lines[start:]:
        if match := _RECORD.search(line):
            found.add(names.get(int(match[3]), f"call {match[3]}"))
    return sorted(found)


def write_table(entries: dict[str, Any], results: dict[str, Result]) -> None:
    """The documentation's page."""
    rows = []
    for name in sorted(entries, key=str.lower):
        if name in results:
            result = results[name]
            refused = ", ".join(f"`{call}`" for call in result.get("refused", [])) or "–"
            verdict = result["verdict"]
            if verdict != "works":
                verdict += f": {result['output'].strip().splitlines()[-1][:120]}"
            cells = [name, result.get("version", ""), entries[name]["does"], verdict, refused]
            rows.append("| " + " | ".join(cells) + " |")
    works = sum(result["verdict"] == "works" for result in results.values())
    head = (ROOT / "tests" / "matrix" / "head.md").read_text()
    TABLE.write_text(head.format(works=works, total=len(rows)) + "\n".join(rows) + "\n")


async def run(entries: dict[str, Any], chosen: list[str], at_once: int) -> dict[str, Result]:
    """Run the chosen ones, some at once, keeping the state after each."""
    results: dict[str, Result] = json.loads(STATE.read_text()) if STATE.exists() else {}
    places = asyncio.Semaphore(at_once)
    STATE.parent.mkdir(exist_ok=True)
    async with serving() as options, asyncio.TaskGroup() as group:

        async def one(name: str) -> None:
            async with places:
                results[name] = await try_package(name, entries[name], options)
            said = " ".join(results[name]["output"].split())
            print(
                f"{name:24} {results[name]['version']:12} {results[name]['verdict']:14} {said[-90:]}",
                flush=True,
            )
            STATE.write_text(json.dumps(results, indent=1))

        for name in chosen:
            group.create_task(one(name))
    return results


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="packages to run; none: those that have no good result yet")
    parser.add_argument("--all", action="store_true", help="run all of them again")
    parser.add_argument("--at-once", type=int, default=1, help="how many sandboxes at once")
    options = parser.parse_args()
    entries = tomllib.loads(Path(__file__).with_name("packages.toml").read_text())
    state: dict[str, Result] = json.loads(STATE.read_text()) if STATE.exists() else {}
    pending = [name for name in entries if state.get(name, {}).get("verdict") != "works"]
    chosen = options.names or (list(entries) if options.all else pending)
    results = asyncio.run(run(entries, chosen, options.at_once)) if chosen else state
    results = {name: result for name, result in results.items() if name in entries}
    write_table(entries, results)
    bad = [name for name, result in results.items() if result["verdict"] != "works"]
    print(f"{len(results) - len(bad)} of {len(results)} work; {TABLE.relative_to(ROOT)} is written")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
