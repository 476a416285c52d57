"""An SDK of the first generation, which creates through ``POST /sandboxes``, in an environment of its own.

Its packages are installed by uv once and kept in the user's cache.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uv
from platformdirs import user_cache_path

if TYPE_CHECKING:
    from tests.conftest import RunningServer

REQUIREMENTS = ("e2b==2.45.1", "e2b-code-interpreter==2.9.1")
SCRIPT = Path(__file__).with_name("older_sdk.py")
INSTALL_SECONDS = 300


@pytest.fixture(scope="session")
def older_python() -> Path:
    """The interpreter of an environment with `REQUIREMENTS`."""
    name = hashlib.sha256(" ".join((*REQUIREMENTS, sys.version)).encode()).hexdigest()[:12]
    place = user_cache_path("ringfence") / "tests" / f"python-{name}"
    python = place / "bin" / "python"
    if not (place / ".complete").exists():
        shutil.rmtree(place, ignore_errors=True)
        tool = uv.find_uv_bin()
        for command in (
            [tool, "venv", "--quiet", "--python", sys.executable, str(place)],
            [tool, "pip", "install", "--quiet", "--python", str(python), *REQUIREMENTS],
        ):
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
            )
            if done.returncode:
                pytest.skip(f"the older SDK cannot be installed: {done.stderr[-300:]}")
        (place / ".complete").touch()
    return python


@pytest.mark.timeout(INSTALL_SECONDS + 200)
def test_an_older_sdk(server: RunningServer, older_python: Path) -> None:
    environment = {
        **os.environ,
        "E2B_API_URL": server.url,
        "E2B_SANDBOX_URL": server.url,
        "E2B_API_KEY": server.key,
    }
    run = subprocess.run(
        [str(older_python), str(SCRIPT)],
        env=environment, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-5000:]
    assert run.stdout.endswith("all well\n")
