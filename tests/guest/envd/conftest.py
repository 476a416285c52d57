import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from e2b import AsyncSandbox, ConnectionConfig, Sandbox
from packaging.version import Version

SERVER = Path(__file__).with_name("envd_server.py")
ENVD_VERSION = Version("0.6.13")
IS_ROOT = os.geteuid() == 0


@dataclass(frozen=True)
class Envd:
    """A running envd and the directory that stands for its file system."""

    url: str
    root: Path
    token: str | None
    pid: int

    @property
    def home(self) -> Path:
        return self.root / "home" / "user"

    def headers(self) -> dict[str, str]:
        return {} if self.token is None else {"X-Access-Token": self.token}

    def sdk_options(self) -> dict:
        return {
            "sandbox_id": "itest0000000000000000",
            "sandbox_domain": None,
            "envd_version": ENVD_VERSION,
            "envd_access_token": self.token,
            "traffic_access_token": None,
            "connection_config": ConnectionConfig(
                sandbox_url=self.url,
                api_key="e2b_0",
                extra_sandbox_headers=self.headers(),
            ),
        }


def scratch_root() -> Path:
    """A directory with users and homes in it; not pytest's, which only its owner may enter."""
    root = Path(tempfile.mkdtemp(prefix="envd-test-"))
    root.chmod(0o755)
    for name, uid in (("user", 1000), ("root", 0)):
        home = root / "home" / name
        home.mkdir(parents=True)
        home.chmod(0o755 if name == "user" else 0o700)
        if IS_ROOT:
            os.chown(home, uid, uid)
    (root / "passwd").write_text(
        f"root:x:0:0:root:{root}/home/root:/bin/bash\n"
        f"user:x:1000:1000::{root}/home/user:/bin/bash\n"
        "# a comment\nbroken line\nstrange:x:notanumber:1::/:/bin/sh\n"
    )
    (root / "group").write_text("root:x:0:\nuser:x:1000:\nsudo:x:2727:other,user\nstaff:x:50:\n")
    return root


@pytest.fixture(scope="session")
def run_envd() -> Iterator[Callable[..., Envd]]:
    """Starts an envd with the given settings of its configuration."""
    started: list[tuple[subprocess.Popen[str], Path]] = []

    def run(setup: dict | None = None, **settings: object) -> Envd:
        root = scratch_root()
        config = {
            "sandbox_id": "itest0000000000000000",
            "template_id": "base",
            "access_token": None,
            "single_id": not IS_ROOT,
            "env": {"E2B_SANDBOX": "true", "FROM_SANDBOX": "sandbox"},
            **settings,
        }
        setup = {
            "config": config,
            "passwd": str(root / "passwd"),
            "group": str(root / "group"),
            **(setup or {}),
        }
        process = subprocess.Popen(
            [sys.executable, str(SERVER), json.dumps(setup)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "GUEST_SECRET": "must not be seen", "PYTHONWARNINGS": "error"},
        )
        started.append((process, root))
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        return Envd(f"http://127.0.0.1:{port}", root, config["access_token"], process.pid)

    yield run
    statuses = []
    for process, root in started:
        with process:
            process.stdin.close()
            statuses.append(process.wait(timeout=20))
        shutil.rmtree(root)
    assert not any(statuses)


@pytest.fixture(scope="session")
def envd(run_envd: Callable[..., Envd]) -> Envd:
    """An envd that asks for no token, shared by tests that do not change its state."""
    return run_envd()


@pytest.fixture(scope="session")
def guarded(run_envd: Callable[..., Envd]) -> Envd:
    """An envd with an access token."""
    return run_envd(access_token="secret-token")


@pytest.fixture
async def http(envd: Envd) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=envd.url, headers=envd.headers()) as client:
        yield client


@pytest.fixture
def sandbox(envd: Envd) -> AsyncSandbox:
    """The official SDK's view of the shared envd."""
    return AsyncSandbox(**envd.sdk_options())


@pytest.fixture
def sync_sandbox(envd: Envd) -> Sandbox:
    return Sandbox(**envd.sdk_options())


@pytest.fixture
def workdir(envd: Envd) -> Iterator[Path]:
    """A fresh directory of the user's."""
    path = Path(tempfile.mkdtemp(dir=envd.home))
    path.chmod(0o755)
    if IS_ROOT:
        os.chown(path, 1000, 1000)
    yield path
    shutil.rmtree(path, ignore_errors=True)
