"""What is really in force in a sandbox: Python, packages, limits.

It is found out once, and then told to models. A sandbox's own word is not trusted with what every caller
reads: of its answer only numbers, and versions of packages that are asked for, pass.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any

import httpx
from e2b import CommandExitException, SandboxException
from e2b_code_interpreter import AsyncSandbox

from ringfence.integrations.backend import level_of

PACKAGES = (
    "pandas",
    "numpy",
    "scipy",
    "matplotlib",
    "seaborn",
    "plotly",
    "scikit-learn",
    "statsmodels",
    "polars",
    "pyarrow",
    "torch",
    "requests",
    "beautifulsoup4",
    "openpyxl",
    "pillow",
    "opencv-python",
    "sympy",
)
_VERSION = re.compile(r"\d[0-9A-Za-z.+!_-]{0,23}$")
_PROBE = """
import importlib.metadata as m, json, platform, sys
found = {}
for name in sys.argv[1].split(","):
    try: found[name] = m.version(name)
    except m.PackageNotFoundError: pass
print(json.dumps({"python": platform.python_version(), "packages": found}))
"""


@dataclass(frozen=True)
class Facts:
    """What a session has. None where it is not known; `memory_mb` in MiB."""

    python: str | None = None
    packages: dict[str, str] = field(default_factory=dict)
    cpus: int | None = None
    memory_mb: int | None = None
    isolation: str | None = None


async def find_facts(sandbox: AsyncSandbox, isolation: dict[str, Any] | None) -> Facts:
    """Ask the server about its limits, and a fresh `sandbox` about its Python."""
    said = await _ask(sandbox)
    version = said.get("python")
    versions = said.get("packages")
    cpus = memory = None
    try:
        info = await sandbox.get_info()
        cpus, memory = info.cpu_count or None, info.memory_mb or None
    except (SandboxException, httpx.HTTPError):
        pass
    return Facts(
        python=version if isinstance(version, str) and _VERSION.match(version) else None,
        packages=_trusted(versions if isinstance(versions, dict) else {}),
        cpus=cpus,
        memory_mb=memory,
        isolation=level_of(isolation),
    )


def _trusted(versions: dict[str, Any]) -> dict[str, str]:
    return {
        name: version
        for name in PACKAGES
        if isinstance(version := versions.get(name), str) and _VERSION.match(version)
    }


async def _ask(sandbox: AsyncSandbox) -> dict[str, Any]:
    try:
        # -I: nothing that lies in the working directory is imported.
        ran = await sandbox.commands.run(f"python3 -I -c '{_PROBE}' {','.join(PACKAGES)}", timeout=20)
        said = json.loads(ran.stdout)
    except (SandboxException, CommandExitException, httpx.HTTPError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}
