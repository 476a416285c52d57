"""kill -9 at the worst moments: whatever dies, nothing of it is left, and what serves no more says so."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from e2b_code_interpreter import Sandbox

if TYPE_CHECKING:
    from conftest import RunningServer

Launch = Callable[..., "RunningServer"]
_SECONDS = 30
_BUSY = """
import os, subprocess, time
for _ in range(20):
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
while True:
    open("/tmp/f", "ab").write(b"x" * 100000)
    subprocess.run(["true"])
"""


@dataclass
class Process:
    pid: int
    parent: int
    command: str
    depth: int
    """In how many PID namespaces it is."""
    innermost: int


def look(pid: int) -> Process | None:
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text()
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        inside = re.search(r"^NSpid:(.*)$", status, re.MULTILINE)
        parent = re.search(r"^PPid:\s*(\d+)", status, re.MULTILINE)
        if inside and parent and "State:\tZ" not in status:
            pids = inside[1].split()
            return Process(pid, int(parent[1]), command, len(pids), int(pids[-1]))
    return None


def family(server: RunningServer) -> list[Process]:
    return [one for one in (look(pid) for pid in server.descendants()) if one is not None]


def launcher(server: RunningServer) -> int:
    return next(one.pid for one in family(server) if "engine.launcher.main" in one.command)


def guest_zygote(server: RunningServer) -> int:
    above = launcher(server)
    return min(one.pid for one in family(server) if one.parent == above and "zygote.guest" in one.command)


def kernel_zygote(server: RunningServer) -> int:
    """The oldest of its kind: nurseries are its forks, and the launcher adopts them."""
    above = launcher(server)
    return min(one.pid for one in family(server) if one.parent == above and " -c " in one.command)


def egress(server: RunningServer) -> int:
    return next(one.pid for one in family(server) if "engine.egress.main" in one.command)


def guests(server: RunningServer) -> list[int]:
    return [one.pid for one in family(server) if one.command.split()[:1] == ["init"] and one.innermost == 1]


def cgroups(pids: set[int]) -> set[Path]:
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
                _, controllers, path = line.split(":", 2)
                if "/ringfence-" in path:
                    found.add(Path("/sys/fs/cgroup", controllers.split(",")[0], path.lstrip("/")))
    return {path for path in found if path.exists()}


@contextlib.contextmanager
def load(server: RunningServer, count: int = 3) -> Iterator[list[Sandbox]]:
    """Sandboxes that fork and write, and others that come and go."""
    sandboxes = [Sandbox.create("base", timeout=300, **server.options) for _ in range(count)]
    stop = threading.Event()
    threads = [threading.Thread(target=_ignore, args=(sandbox.run_code, _BUSY)) for sandbox in sandboxes[:-1]]
    threads.append(threading.Thread(target=_come_and_go, args=(server, stop)))
    for thread in threads:
        thread.start()
    time.sleep(1)
    try:
        yield sandboxes
    finally:
        stop.set()
        if server.process.poll() is None:
            for sandbox in sandboxes:
                _ignore(sandbox.kill)
        for thread in threads:
            thread.join(_SECONDS)
        assert not any(thread.is_alive() for thread in threads)


def _ignore(call: Callable[..., Any], *arguments: Any) -> None:
    with contextlib.suppress(Exception):
        call(*arguments)


def _come_and_go(server: RunningServer, stop: threading.Event) -> None:
    while not stop.is_set() and server.process.poll() is None:
        _ignore(lambda: Sandbox.create("base", timeout=60, **server.options).kill())


def gone(pids: set[int]) -> bool:
    return not any(look(pid) for pid in pids)


def wait_for(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def assert_nothing_left(server: RunningServer, pids: set[int], groups: set[Path]) -> None:
    assert wait_for(lambda: gone(pids)), [look(pid) for pid in pids]
    assert wait_for(lambda: not any(path.exists() for path in groups)), "cgroups are left"
    assert wait_for(lambda: not server.runtime_dir.exists()), os.listdir(server.runtime_dir)
    assert str(server.runtime_dir) not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.parametrize("victim", [launcher, guest_zygote, kernel_zygote])
def test_without_its_launcher_or_a_zygote_the_server_ends_and_leaves_nothing(
    launch: Launch, tmp_path: Path, victim: Callable[[RunningServer], int]
) -> None:
    server = launch(tmp_path, templates="base")
    with load(server):
        pids = server.descendants()
        groups = cgroups(pids)
        os.kill(victim(server), signal.SIGKILL)
        pids |= server.descendants()
        assert server.process.wait(_SECONDS) == 1
    assert_nothing_left(server, pids, groups)


def test_a_killed_server_leaves_nothing(launch: Launch, tmp_path: Path) -> None:
    server = launch(tmp_path, templates="base")
    with load(server):
        pids = server.descendants()
        groups = cgroups(pids)
        server.process.send_signal(signal.SIGKILL)
        assert server.process.wait(_SECONDS) == -signal.SIGKILL
    assert_nothing_left(server, pids, groups)


def test_killed_guests_are_announced_and_the_others_go_on(launch: Launch, tmp_path: Path) -> None:
    server = launch(tmp_path, templates="base")
    with load(server) as sandboxes:
        idle = sandboxes[-1]
        idle.run_code("x = 20")
        assert wait_for(lambda: any(one.command.startswith("sleep 1000") for one in family(server)))
        crowded = {_namespace(one.pid) for one in family(server) if one.command.startswith("sleep 1000")}
        busy = [pid for pid in guests(server) if _namespace(pid) in crowded - {""}]
        assert busy
        for pid in busy:
            os.kill(pid, signal.SIGKILL)
        assert wait_for(lambda: gone(set(busy)))
        assert idle.run_code("x + 1").text == "21"
    assert server.stop() == 0


def test_a_killed_kernel_is_told_and_replaced(launch: Launch, tmp_path: Path) -> None:
    server = launch(tmp_path, templates="base")
    sandbox = Sandbox.create("base", timeout=300, **server.options)
    execution = sandbox.run_code("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert execution.error is not None
    assert sandbox.run_code("6 * 7").text == "42"
    assert server.stop() == 0


def test_a_killed_egress_process_costs_connections_only(launch: Launch, tmp_path: Path) -> None:
    server = launch(tmp_path, templates="base")
    sandbox = Sandbox.create("base", timeout=300, **server.options)
    os.kill(egress(server), signal.SIGKILL)
    assert sandbox.run_code("6 * 7").text == "42"
    other = Sandbox.create("base", timeout=300, **server.options)
    assert other.run_code("6 * 7").text == "42"
    assert server.stop() == 0


def _namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


def test_the_end_is_told(launch: Launch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    server = launch(tmp_path, templates="base")
    os.kill(launcher(server), signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.process.wait(_SECONDS)
    assert "the launcher died" in capfd.readouterr().err
