"""A real server as a subprocess, shared by the whole session, and fresh sandboxes on it."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from e2b_code_interpreter import AsyncSandbox, Sandbox

from ringfence.core.ids import new_api_key

TEMPLATES = os.environ.get("RINGFENCE_TEST_TEMPLATES", "base,code-interpreter-v1")
_START_SECONDS = 1800
"""The first start builds the templates."""
_STOP_SECONDS = 30
_KEPT = ("RINGFENCE_CACHE_DIR", "RINGFENCE_TEST_TEMPLATES", "RINGFENCE_TEST_ISOLATION")
ISOLATION = os.environ.get("RINGFENCE_TEST_ISOLATION", "process")
"""The tier of all sandboxes of servers that tests start: process or gvisor; see ``make test-gvisor``."""


@dataclass
class RunningServer:
    """A ``ringfence serve`` process. `options` are for the SDK; `stranger` is the key of another owner."""

    url: str
    key: str
    stranger: str
    process: subprocess.Popen[bytes]
    runtime_dir: Path
    isolation: dict[str, Any] = field(default_factory=dict)
    templates: list[str] = field(default_factory=list)

    @property
    def options(self) -> dict[str, Any]:
        return {"api_key": self.key, "api_url": self.url, "sandbox_url": self.url}

    @property
    def stranger_options(self) -> dict[str, Any]:
        return {**self.options, "api_key": self.stranger}

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def descendants(self) -> set[int]:
        """The pids of all processes below the server's."""
        return set(_descendants(self.process.pid))

    def stop(self) -> int:
        """Stop by SIGTERM; the exit code. Raises AssertionError when anything is left behind."""
        family = _descendants(self.process.pid)
        cgroups = _cgroups_of(family)
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(_STOP_SECONDS)
        left = _await_end(family)
        assert not left, f"processes are left: {left}"
        assert not [path for path in cgroups if path.exists()], "cgroups are left"
        assert str(self.runtime_dir) not in Path("/proc/self/mountinfo").read_text(), "mounts are left"
        assert not self.runtime_dir.exists(), "the runtime directory is left"
        return code


def start_server(data_dir: Path, *, templates: str = TEMPLATES, **environment: str) -> RunningServer:
    """Start a server on a free port and wait until it is ready."""
    ready_read, ready_write = os.pipe()
    # Short, since a Unix socket's path may have 107 bytes at most.
    runtime_dir = Path(tempfile.mkdtemp(prefix="rft-", dir="/tmp"))
    key, stranger = new_api_key(), new_api_key()
    command = [sys.executable, "-m", "ringfence", "serve", "--port", "0", "--ready-fd", str(ready_write)]
    process = subprocess.Popen(
        [*command, "--data-dir", str(data_dir)],
        env={
            **os.environ,
            "RINGFENCE_API_KEY": f"{key},{stranger}",
            "RINGFENCE_TEMPLATES": templates,
            "RINGFENCE_RUNTIME_DIR": str(runtime_dir),
            "RINGFENCE_ISOLATION": ISOLATION,
            **environment,
        },
        pass_fds=[ready_write],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    os.close(ready_write)
    try:
        with os.fdopen(ready_read) as ready:
            account = json.loads(_first_line(ready, process))
    except BaseException:  # the test's time is over while it starts
        process.terminate()
        process.wait(_STOP_SECONDS)
        raise
    return RunningServer(
        account["url"], key, stranger, process, runtime_dir, account["isolation"], account["templates"]
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under gVisor, skip what it cannot do, each for the reason that its mark gives."""
    for item in items if ISOLATION == "gvisor" else ():
        if (mark := item.get_closest_marker("not_under_gvisor")) is not None:
            item.add_marker(pytest.mark.skip(reason=f"under gVisor: {mark.args[0]}"))


@pytest.fixture(scope="session")
def starting() -> Callable[..., RunningServer]:
    """`start_server` itself, for fixtures that stop what they start."""
    return start_server


@pytest.fixture
def launch() -> Iterator[Callable[..., RunningServer]]:
    """`start_server`, for tests that need a server of their own; one that a failed test leaves is ended."""
    started: list[RunningServer] = []

    def start(data_dir: Path, **options: str) -> RunningServer:
        started.append(start_server(data_dir, **options))
        return started[-1]

    yield start
    for running in started:
        if running.process.poll() is None:
            running.process.terminate()
            running.process.wait(_STOP_SECONDS)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = start_server(tmp_path_factory.mktemp("data"))
    yield running
    assert running.stop() == 0


@pytest.fixture
def sandbox(server: RunningServer) -> Iterator[Sandbox]:
    """A fresh sandbox, by the synchronous SDK."""
    made = Sandbox.create("base", **server.options)
    yield made
    made.kill()


@pytest.fixture
async def async_sandbox(server: RunningServer) -> AsyncIterator[AsyncSandbox]:
    """A fresh sandbox, by the asynchronous SDK."""
    made = await AsyncSandbox.create("base", **server.options)
    yield made
    await made.kill()


def _first_line(ready: Any, process: subprocess.Popen[bytes]) -> str:
    readable, _, _ = select.select([ready], [], [], _START_SECONDS)
    line = ready.readline() if readable else ""
    if not line:
        process.kill()
        raise AssertionError(f"the server did not start; its exit code is {process.wait()}")
    return str(line)


def _descendants(pid: int) -> dict[int, str]:
    """All processes below `pid`, with their start times (pids are used again)."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        fields = _stat(int(entry.name))
        if fields:
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: dict[int, str] = {}
    waiting = [pid]
    while waiting:
        for child in children.get(waiting.pop(), []):
            fields = _stat(child)
            if fields:
                found[child] = fields[19]
                waiting.append(child)
    return found


def _stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat behind the name: state, ppid, …; empty when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _await_end(family: dict[int, str]) -> list[int]:
    deadline = time.monotonic() + 10
    while True:
        left = [pid for pid, started in family.items() if (stat := _stat(pid)) and stat[19] == started]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


def _cgroups_of(family: dict[int, str]) -> set[Path]:
    """The cgroup directories of processes that are not in ours."""
    ours = set(Path("/proc/self/cgroup").read_text().splitlines())
    found = set()
    for pid in family:
        try:
            lines = set(Path(f"/proc/{pid}/cgroup").read_text().splitlines())
        except (FileNotFoundError, ProcessLookupError):
            continue
        for line in lines - ours:
            _, controllers, path = line.split(":", 2)
            name = controllers.removeprefix("name=").split(",")[0] if controllers else "."
            if "ringfence-" in path:  # a process that is just ending is shown in the root group
                found.add(Path("/sys/fs/cgroup") / name / path.lstrip("/"))
    return found


@pytest.fixture(scope="session", autouse=True)
def _no_settings_of_the_developer() -> Iterator[None]:
    """Variables that choose a backend or a server must not reach the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("E2B_", "RINGFENCE_")) and name not in _KEPT:
                patch.delenv(name)
        yield
