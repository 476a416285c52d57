"""Pausing and resuming through the official SDK, synchronous and asynchronous."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from e2b import NotFoundException, SandboxException, SandboxQuery, SandboxState, TimeoutException
from e2b_code_interpreter import AsyncSandbox, Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import RunningServer

BOOT_ID = (
    "cat /proc/sys/kernel/random/boot_id 2>/dev/null || "
    "{ [ -e /dev/shm/.boot ] || date +%N > /dev/shm/.boot; cat /dev/shm/.boot; }"
)
"""Under gVisor, which has no boot id, a file of the memory that a boot begins without."""


def connect(server: RunningServer, sandbox: Sandbox, **options: Any) -> Sandbox:
    return Sandbox.connect(sandbox.sandbox_id, **options, **server.options)


def state_of(sandbox: Sandbox) -> SandboxState:
    return sandbox.get_info().state


def wait_for(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def auto(server: RunningServer) -> Iterator[Callable[..., Sandbox]]:
    """Makes sandboxes with a lifecycle; ends them."""
    made = []

    def create(lifecycle: dict[str, Any], **options: Any) -> Sandbox:
        made.append(Sandbox.create("base", lifecycle=lifecycle, **options, **server.options))
        return made[-1]

    yield create
    for sandbox in made:
        sandbox.kill()


def test_a_pause_keeps_everything(server: RunningServer, sandbox: Sandbox) -> None:
    sandbox.run_code("x = 41")
    boot_id = sandbox.commands.run(BOOT_ID).stdout
    process = sandbox.commands.run("sleep 1000", background=True)
    process.disconnect()
    sandbox.files.write("/home/user/a.txt", "kept")

    assert sandbox.pause() is True
    assert state_of(sandbox) == SandboxState.PAUSED
    assert not sandbox.is_running()
    assert sandbox.pause() is False

    resumed = connect(server, sandbox)
    assert resumed.sandbox_id == sandbox.sandbox_id
    assert resumed._envd_access_token == sandbox._envd_access_token
    assert state_of(resumed) == SandboxState.RUNNING
    assert resumed.is_running()
    assert resumed.commands.run(BOOT_ID).stdout == boot_id
    assert process.pid in [one.pid for one in resumed.commands.list()]
    assert resumed.run_code("x + 1").text == "42"
    assert sandbox.files.read("/home/user/a.txt") == "kept"


def test_a_pause_of_the_file_system_is_a_cold_start(server: RunningServer, sandbox: Sandbox) -> None:
    boot_id = sandbox.commands.run(BOOT_ID).stdout
    sandbox.commands.run("sleep 1000", background=True).disconnect()
    sandbox.run_code("x = 41")
    sandbox.commands.run("echo kept > /home/user/a.txt; echo gone > /dev/shm/b")
    sandbox.commands.run("rm /etc/hosts && mkdir /opt/mine && chown user /opt/mine", user="root")
    owners = "stat -c '%U %a %n' /home/user/a.txt /opt/mine"
    before = sandbox.commands.run(owners).stdout

    assert sandbox.pause(mode="filesystem")
    detail = control(server, sandbox).json()
    assert (detail["state"], detail["pauseMode"]) == ("paused", "filesystem")
    assert not sandbox.is_running()

    resumed = connect(server, sandbox)
    assert resumed._envd_access_token == sandbox._envd_access_token
    assert resumed.commands.run(BOOT_ID).stdout != boot_id
    assert resumed.commands.run("cat /home/user/a.txt").stdout == "kept\n"
    assert resumed.commands.run(owners).stdout == before
    assert resumed.commands.run("ls /dev/shm").stdout == ""
    assert not resumed.files.exists("/etc/hosts")
    assert resumed.commands.list() == []
    error = resumed.run_code("x").error
    assert error is not None
    assert error.name == "NameError"
    assert resumed.pause(mode="filesystem")
    assert connect(server, sandbox).commands.run("cat /home/user/a.txt").stdout == "kept\n"


def test_a_full_pause_may_be_rebooted(server: RunningServer, sandbox: Sandbox) -> None:
    boot_id = sandbox.commands.run(BOOT_ID).stdout
    sandbox.files.write("/home/user/a.txt", "kept")
    sandbox.pause()
    resumed = connect(server, sandbox, on_resume="reboot")
    assert resumed.commands.run(BOOT_ID).stdout != boot_id
    assert resumed.files.read("/home/user/a.txt") == "kept"
    again = resumed.commands.run(BOOT_ID).stdout
    assert connect(server, sandbox, on_resume="reboot").commands.run(BOOT_ID).stdout == again


async def test_pause_asynchronously(server: RunningServer, async_sandbox: AsyncSandbox) -> None:
    await async_sandbox.run_code("x = 41")
    assert await async_sandbox.pause()
    assert not await async_sandbox.is_running()
    assert not await async_sandbox.pause()
    resumed = await AsyncSandbox.connect(async_sandbox.sandbox_id, **server.options)
    assert (await resumed.run_code("x + 1")).text == "42"
    await resumed.pause(mode="filesystem")
    await async_sandbox.connect()
    assert (await async_sandbox.run_code("1 + 1")).text == "2"


async def test_many_at_once(server: RunningServer) -> None:
    async def live(number: int) -> None:
        async with await AsyncSandbox.create("base", **server.options) as one:
            await one.files.write("n", f"{number}")
            for mode in ("full", "filesystem"):
                assert await one.pause(mode=mode)
                await one.connect()
                assert await one.files.read("n") == f"{number}"

    await asyncio.gather(*(live(number) for number in range(8)))


def test_what_is_under_way_is_broken_off(server: RunningServer, sandbox: Sandbox) -> None:
    command = sandbox.commands.run("sleep 1000", background=True)
    sandbox.pause()
    with pytest.raises((TimeoutException, SandboxException)):
        command.wait()
    connect(server, sandbox)
    assert [one.pid for one in sandbox.commands.list()] == [command.pid]


def test_a_paused_sandbox_has_no_lease(server: RunningServer, sandbox: Sandbox) -> None:
    sandbox.set_timeout(2)
    sandbox.pause()
    time.sleep(2.5)
    assert state_of(sandbox) == SandboxState.PAUSED
    with pytest.raises(NotFoundException):
        sandbox.set_timeout(10)
    connect(server, sandbox, timeout=60)
    left = sandbox.get_info().end_at.timestamp() - time.time()
    assert 50 < left <= 60


def test_lists_tell_paused_from_running(server: RunningServer, sandbox: Sandbox) -> None:
    def ids(state: SandboxState) -> list[str]:
        pages = Sandbox.list(SandboxQuery(state=[state]), **server.options)
        return [item.sandbox_id for item in pages.next_items()]

    assert sandbox.sandbox_id in ids(SandboxState.RUNNING)
    assert sandbox.sandbox_id not in ids(SandboxState.PAUSED)
    sandbox.pause()
    assert sandbox.sandbox_id not in ids(SandboxState.RUNNING)
    assert sandbox.sandbox_id in ids(SandboxState.PAUSED)
    legacy = httpx.get(f"{server.url}/sandboxes", headers={"X-API-Key": server.key}).json()
    assert sandbox.sandbox_id not in [item["sandboxID"] for item in legacy]


@pytest.mark.parametrize("mode", ["full", "filesystem"])
def test_paused_sandboxes_can_be_killed(server: RunningServer, mode: Any) -> None:
    sandbox = Sandbox.create("base", **server.options)
    sandbox.files.write("/home/user/big", b"x" * 20_000_000)
    sandbox.pause(mode=mode)
    assert sandbox.kill()
    assert not sandbox.kill()
    with pytest.raises(NotFoundException):
        connect(server, sandbox)
    with pytest.raises(NotFoundException):
        sandbox.pause()


def test_strangers_may_not_pause(server: RunningServer, sandbox: Sandbox) -> None:
    with pytest.raises(NotFoundException):
        Sandbox.pause(sandbox.sandbox_id, **server.stranger_options)
    assert sandbox.is_running()


def test_a_guest_that_does_not_answer_may_refuse(server: RunningServer, sandbox: Sandbox) -> None:
    assert sandbox.pause(strict=True)


def test_the_first_generation(server: RunningServer, sandbox: Sandbox) -> None:
    def post(path: str, body: object) -> httpx.Response:
        url = f"{server.url}/sandboxes/{sandbox.sandbox_id}/{path}"
        return httpx.post(url, json=body, headers={"X-API-Key": server.key})

    assert post("resume", {"timeout": 30}).status_code == 409
    assert post("connect", {"timeout": 30}).status_code == 200
    assert post("pause", {}).status_code == 204
    assert post("pause", {}).status_code == 409
    answer = post("resume", {"timeout": 30})
    assert (answer.status_code, answer.json()["sandboxID"]) == (201, sandbox.sandbox_id)
    assert post("pause", {}).status_code == 204
    assert post("connect", {"timeout": 30}).status_code == 201
    assert sandbox.is_running()


def test_the_end_of_the_lease_may_pause(server: RunningServer, auto: Callable[..., Sandbox]) -> None:
    sandbox = auto({"on_timeout": "pause"}, timeout=2)
    lifecycle = sandbox.get_info().lifecycle
    assert lifecycle == {"on_timeout": "pause", "auto_resume": False}
    sandbox.run_code("x = 41")
    wait_for(lambda: state_of(sandbox) == SandboxState.PAUSED)
    assert not sandbox.is_running()
    with pytest.raises(TimeoutException):
        sandbox.commands.run("true")
    assert connect(server, sandbox, timeout=60).run_code("x + 1").text == "42"
    sandbox.set_timeout(0)
    assert state_of(sandbox) == SandboxState.PAUSED


def test_the_end_of_the_lease_may_keep_files_only(
    server: RunningServer, auto: Callable[..., Sandbox]
) -> None:
    sandbox = auto({"on_timeout": {"action": "pause", "mode": "filesystem"}}, timeout=60)
    sandbox.files.write("a", "kept")
    boot_id = sandbox.commands.run(BOOT_ID).stdout
    sandbox.set_timeout(1)
    wait_for(lambda: state_of(sandbox) == SandboxState.PAUSED)
    resumed = connect(server, sandbox)
    assert resumed.files.read("a") == "kept"
    assert resumed.commands.run(BOOT_ID).stdout != boot_id


def test_traffic_resumes(server: RunningServer, auto: Callable[..., Sandbox]) -> None:
    sandbox = auto({"on_timeout": "pause", "auto_resume": True}, timeout=60)
    sandbox.commands.run("python3 -m http.server 8000", background=True).disconnect()
    url = f"http://8000-{sandbox.sandbox_id}.localhost:{server.port}/"
    wait_for(lambda: page(server, sandbox, 8000).status_code == 200)
    sandbox.set_timeout(1)
    wait_for(lambda: state_of(sandbox) == SandboxState.PAUSED)
    assert not sandbox.is_running()
    assert state_of(sandbox) == SandboxState.PAUSED
    assert url
    assert page(server, sandbox, 8000).status_code == 200
    info = sandbox.get_info()
    assert info.state == SandboxState.RUNNING
    assert info.end_at.timestamp() - time.time() > 250
    sandbox.pause()
    assert sandbox.commands.run("echo awake").stdout == "awake\n"


def test_traffic_does_not_resume_unasked(server: RunningServer, sandbox: Sandbox) -> None:
    sandbox.pause()
    answer = page(server, sandbox, 8000)
    assert (answer.status_code, answer.json()["message"]) == (502, "The sandbox was not found")
    assert state_of(sandbox) == SandboxState.PAUSED


@pytest.mark.parametrize(
    "options",
    [
        {"autoPauseMemory": False},
        {"autoPause": True, "autoPauseMemory": False, "autoResume": {"enabled": True}},
    ],
)
def test_lifecycles_that_make_no_sense(server: RunningServer, options: dict[str, Any]) -> None:
    body = {"templateID": "base", **options}
    answer = httpx.post(f"{server.url}/v2/sandboxes", json=body, headers={"X-API-Key": server.key})
    assert answer.status_code == 400


def test_how_many_may_be_paused(launch: Callable[..., RunningServer], tmp_path: Path) -> None:
    server = launch(tmp_path, templates="base", RINGFENCE_MAX_PAUSED="1", RINGFENCE_MAX_SANDBOXES="1")
    one = Sandbox.create("base", **server.options)
    one.pause()
    two = Sandbox.create("base", **server.options)
    with pytest.raises(SandboxException, match="paused"):
        two.pause()
    with pytest.raises(SandboxException, match="maximum"):
        one.connect()
    two.kill()
    one.connect()
    one.pause(mode="filesystem")
    assert server.stop() == 0


def page(server: RunningServer, sandbox: Sandbox, port: int) -> httpx.Response:
    headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": str(port)}
    return httpx.get(server.url, headers=headers)


def control(server: RunningServer, sandbox: Sandbox) -> httpx.Response:
    url = f"{server.url}/sandboxes/{sandbox.sandbox_id}"
    return httpx.get(url, headers={"X-API-Key": server.key})
