"""Installing packages into a session's sandbox."""

import asyncio
import re
import shlex
from dataclasses import dataclass

import httpx
from e2b import CommandExitException, SandboxException, TimeoutException
from e2b_code_interpreter import AsyncSandbox
from mcp.server.mcpserver.exceptions import ToolError

from ringfence.integrations.mcp.servers.executor.commands import kill_later
from ringfence.integrations.mcp.servers.executor.output import shorten

INSTALL_SECONDS = 540.0
_TEXT_LIMIT = 3000
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_REQUIREMENT = re.compile(
    rf"{_NAME}(?:\[[A-Za-z0-9._, -]*\])?\s*(?:(?:[<>=!~]=?|===)[A-Za-z0-9.*+!,<>=~ -]+)?$"
)
_FILE = re.compile(r"(?:\.{0,2}/)?[\w./+-]+\.(?:whl|tar\.gz|zip)$")
_INSTALLED = re.compile(r"^Successfully installed (.+)$", re.MULTILINE)
_OFFLINE = (
    "Temporary failure in name resolution",
    "Name or service not known",
    "NameResolutionError",
    "NewConnectionError",
    "Network is unreachable",
    "Connection refused",
)
# Which of the installed distributions Python already has in memory, in another version perhaps.
_LOADED = """
import importlib, importlib.metadata, sys
importlib.invalidate_caches()
__rf_names = {names!r}
for __rf_name in __rf_names:
    try:
        __rf_tops = {{str(file).split('/')[0] for file in importlib.metadata.files(__rf_name) or ()}}
    except importlib.metadata.PackageNotFoundError:
        continue
    if any(top in sys.modules for top in __rf_tops):
        print(__rf_name)
del __rf_names
globals().pop('__rf_name', None), globals().pop('__rf_tops', None)
None
"""


@dataclass
class Installation:
    """What pip did. `installed` are names with versions; `offline`: the index could not be reached."""

    ok: bool
    installed: list[str]
    text: str
    offline: bool = False


def check_packages(packages: list[str]) -> list[str]:
    """The requirements, trimmed; a `ToolError` for what is not a name with versions or a file's path."""
    checked = [package.strip() for package in packages]
    if not checked:
        raise ToolError("Name at least one package.")
    for package in checked:
        if not (_REQUIREMENT.match(package) or _FILE.match(package)):
            raise ToolError(
                f"{package!r} is not a package: give names with optional versions, like 'polars' or "
                "'httpx[http2]>=0.27', or the path of a wheel in the sandbox. Options are not taken."
            )
    return checked


async def install(
    sandbox: AsyncSandbox, packages: list[str], seconds: float = INSTALL_SECONDS
) -> Installation:
    """Run pip for `packages`, at most `seconds`; a cancelled one is killed.

    Errors of the connection are raised, pip's are reported.
    """
    names = " ".join(shlex.quote(package) for package in packages)
    options = "--no-input --disable-pip-version-check --progress-bar off --retries 1"
    command = f"python3 -m pip install {options} -- {names}"
    running = await sandbox.commands.run(command, background=True, timeout=seconds)
    try:
        ran = await running.wait()
        output, ok = f"{ran.stdout}\n{ran.stderr}", True
    except CommandExitException as error:
        output, ok = f"{error.stdout}\n{error.stderr}", False
    except TimeoutException:
        return Installation(False, [], f"pip took longer than {seconds:.0f} s and was ended")
    except asyncio.CancelledError:
        kill_later(running)
        raise
    found = _INSTALLED.search(output)
    return Installation(
        ok,
        found.group(1).split() if found else [],
        shorten(_without_noise(output), _TEXT_LIMIT)[0],
        offline=not ok and any(mark in output for mark in _OFFLINE),
    )


def _without_noise(output: str) -> str:
    noise = ("Requirement already satisfied", "Defaulting to user installation", "Looking in")
    lines = [line for line in output.splitlines() if line.strip() and not line.startswith(noise)]
    return "\n".join(lines)


async def loaded_before(sandbox: AsyncSandbox, installed: list[str]) -> list[str]:
    """Which of the installed distributions (``name-version``) the session's Python had imported before."""
    if not installed:
        return []
    names = [name.rpartition("-")[0] for name in installed]
    try:
        execution = await sandbox.run_code(_LOADED.format(names=names), timeout=30)
    except (SandboxException, httpx.HTTPError):
        return []
    said = set("".join(execution.logs.stdout).split())
    return [name for name in names if name in said]
