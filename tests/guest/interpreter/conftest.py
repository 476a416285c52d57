"""Real kernels: one warmed process, a nursery forked from it per test, and the API over HTTP."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from e2b import ConnectionConfig
from e2b_code_interpreter import AsyncSandbox, Sandbox
from packaging.version import Version
from starlette.applications import Starlette

import ringfence.guest.kernel
from ringfence.engine.settings import default_cache_dir
from ringfence.engine.templates.cache import LayerCache
from ringfence.engine.templates.node import ensure_node_modules
from ringfence.guest.config import NODE_MODULES, GuestConfig
from ringfence.guest.interpreter.app import build
from ringfence.guest.interpreter.nursery import NurseryClient
from ringfence.guest.interpreter.pool import KernelPool

_PYTHON = os.environ.get("RINGFENCE_TEST_PYTHON", sys.executable)
_ZYGOTE = """
import json, os, socket, sys
sys.path.insert(0, sys.argv[1])
from ringfence_kernel import nursery, preload
print(json.dumps(preload.preload(json.loads(sys.argv[3]))), flush=True)
requests = socket.socket(fileno=int(sys.argv[2]))
while True:
    data, descriptors, _, _ = socket.recv_fds(requests, 16, 1)
    if not data:
        os._exit(0)
    if os.fork() == 0:
        requests.close()
        nursery.serve(socket.socket(fileno=descriptors[0]))
    os.close(descriptors[0])
"""
_PRELOAD = ["changing", "numpy", "pandas", "matplotlib.pyplot", "PIL.Image", "e2b_charts", "plotly.express"]


@pytest.fixture(scope="session")
def kernel_python() -> str:
    """The Python that kernels run in: RINGFENCE_TEST_PYTHON, or ours when it has IPython."""
    python = _PYTHON
    if subprocess.run([python, "-c", "import IPython, pandas, e2b_charts"], capture_output=True).returncode:
        pytest.skip(f"{python} has no IPython, pandas and e2b_charts; set RINGFENCE_TEST_PYTHON")
    return python


@pytest.fixture(scope="session")
def kernel_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that has the kernel's program as the package it is imported as."""
    directory = tmp_path_factory.mktemp("kernel")
    source = Path(ringfence.guest.kernel.__file__).parent
    shutil.copytree(source, directory / "ringfence_kernel", ignore=shutil.ignore_patterns("__pycache__"))
    return directory


@pytest.fixture(scope="session")
def changing_package(kernel_path: Path) -> Path:
    """The file of a preloaded package, ``changing``, that is version 1. A test that changes it must put it
    back.
    """
    package, info = kernel_path / "changing", kernel_path / "changing-1.dist-info"
    package.mkdir()
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: changing\nVersion: 1\n")
    (info / "top_level.txt").write_text("changing\n")
    (package / "__init__.py").write_text("version = 1\n")
    return package / "__init__.py"


@pytest.fixture(scope="session")
def new_nursery(
    kernel_python: str, kernel_path: Path, changing_package: Path
) -> Iterator[Callable[[], socket.socket]]:
    """Start another nursery and return the guest's end of its socket. The warmed parent is shared."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    arguments = [kernel_python, "-c", _ZYGOTE, str(kernel_path), str(theirs.fileno()), json.dumps(_PRELOAD)]
    env = {**os.environ, "PYTHONPATH": str(kernel_path)}
    process = subprocess.Popen(
        arguments, pass_fds=(theirs.fileno(),), stdout=subprocess.PIPE, text=True, env=env
    )
    theirs.close()
    assert process.stdout is not None
    said = process.stdout.readline()
    assert said, f"the warmed process ended with status {process.wait()}"
    warmed = json.loads(said)
    assert (warmed["failed"], warmed["threads"]) == ({}, 1)

    def new() -> socket.socket:
        guest, nursery = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with nursery:
            socket.send_fds(ours, [b"fork"], [nursery.fileno()])
        return guest

    yield new
    ours.close()
    process.wait(timeout=10)
    process.stdout.close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The directory that contexts start in."""
    directory = tmp_path / "home"
    directory.mkdir()
    return directory


@pytest.fixture(scope="session")
def node_modules() -> str:
    """Where the JavaScript kernel's packages are on this machine; a place that is not there when it cannot
    have them.
    """
    trees = ensure_node_modules(LayerCache(default_cache_dir() / "templates"), print)
    return f"{trees[0]}{NODE_MODULES}" if trees else NODE_MODULES


@pytest.fixture
def config(home: Path, node_modules: str) -> GuestConfig:
    """A guest with one id, as without root, so that no user has to exist."""
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "FROM_SANDBOX": "yes"}
    return GuestConfig(
        "isandbox", "base", env=env, default_workdir=str(home), single_id=True, node_modules=node_modules
    )


@dataclass
class Server:
    """The API on a loopback port, served from a thread with a loop of its own."""

    url: str
    pool: KernelPool
    loop: asyncio.AbstractEventLoop

    def _options(self, token: str | None) -> dict[str, Any]:
        return {
            "sandbox_id": "isandbox",
            "envd_version": Version("0.6.13"),
            "envd_access_token": token,
            "sandbox_domain": None,
            "connection_config": ConnectionConfig(sandbox_url=self.url),
        }

    def sandbox(self, token: str | None = None) -> Sandbox:
        """The official SDK's sandbox object for this server."""
        return Sandbox(**self._options(token))

    def async_sandbox(self, token: str | None = None) -> AsyncSandbox:
        """The same for asyncio."""
        return AsyncSandbox(**self._options(token))


@pytest.fixture
def new_server(new_nursery: Callable[[], socket.socket]) -> Iterator[Callable[[GuestConfig], Server]]:
    """Serve the API for a configuration, until the end of the test."""
    stops: list[Callable[[], None]] = []

    def new(config: GuestConfig) -> Server:
        server, stop = _serve(config, new_nursery())
        stops.append(stop)
        return server

    yield new
    for stop in stops:
        stop()


@pytest.fixture
def server(new_server: Callable[[GuestConfig], Server], config: GuestConfig) -> Server:
    """The API for `config`."""
    return new_server(config)


def _serve(config: GuestConfig, nursery: socket.socket) -> tuple[Server, Callable[[], None]]:
    listener = socket.create_server(("127.0.0.1", 0))
    ready = threading.Event()
    made: list[Server] = []
    uvicorn_server: list[uvicorn.Server] = []

    async def main() -> None:
        client = NurseryClient(nursery)
        pool = KernelPool(config, client)
        pool.start()
        app: Starlette = build(config, pool)
        uvicorn_server.append(uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off")))
        port = listener.getsockname()[1]
        made.append(Server(f"http://127.0.0.1:{port}", pool, asyncio.get_running_loop()))
        ready.set()
        await uvicorn_server[0].serve([listener])
        await pool.aclose()
        client.close()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    ready.wait(10)

    def stop() -> None:
        uvicorn_server[0].should_exit = True
        thread.join(30)
        listener.close()
        assert not thread.is_alive()

    return made[0], stop
