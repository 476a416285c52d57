"""The JavaScript SDKs, through Node. Their packages are kept in the user's cache between runs."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from platformdirs import user_cache_path

if TYPE_CHECKING:
    from tests.conftest import RunningServer

SUITE = Path(__file__).parents[1] / "js"
INSTALL_SECONDS = 300


@pytest.fixture(scope="session")
def node_modules() -> Path:
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("node and npm are not installed")
    manifest = (SUITE / "package.json").read_bytes()
    place = user_cache_path("ringfence") / "tests" / f"js-{hashlib.sha256(manifest).hexdigest()[:12]}"
    done = place / "node_modules" / ".complete"
    if not done.exists():
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(SUITE / "package.json", place)
        command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--no-package-lock"]
        installed = subprocess.run(
            command, cwd=place, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
        )
        if installed.returncode:
            pytest.skip(f"npm cannot install the SDKs: {installed.stderr[-300:]}")
        done.touch()
    return place / "node_modules"


@pytest.mark.timeout(INSTALL_SECONDS + 300)
def test_the_javascript_sdks(server: RunningServer, node_modules: Path, tmp_path: Path) -> None:
    shutil.copy(SUITE / "package.json", tmp_path)
    shutil.copy(SUITE / "smoke.test.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(node_modules)
    environment = {
        **os.environ,
        "E2B_API_URL": server.url,
        "E2B_SANDBOX_URL": server.url,
        "E2B_VOLUME_API_URL": server.url,
        "E2B_API_KEY": server.key,
    }
    run = subprocess.run(
        ["node", "--test", "--test-reporter=spec", "smoke.test.mjs"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
