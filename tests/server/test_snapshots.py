"""Snapshots and forks through the official SDK, synchronous and asynchronous."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from typing import TYPE_CHECKING

import pytest
from e2b import NotFoundException, SandboxException, SandboxState
from e2b_code_interpreter import AsyncSandbox, Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import RunningServer

HOSTILE = r"""
set -e
mkdir -p ~/tree/deep/er; cd ~/tree
printf x > $'new\nline'; printf x > $'\xff\xfe'; printf x > ./-rf
ln -s /etc/passwd link; ln -s loop loop; ln deep/../$'new\nline' hard
mkfifo pipe; python3 -c "import socket; socket.socket(socket.AF_UNIX).bind('sock')"
truncate -s 900M sparse; printf end | dd of=sparse bs=1 seek=700000000 conv=notrunc status=none
chmod 000 deep/er; chmod 4755 -- -rf; chmod 1777 deep; touch -h -d 2001-02-03 link hard
python3 -c "import os; os.setxattr('hard', 'user.mine', b'\0\1')"
"""
PICTURE = r"""
cd ~/tree && find . -printf '%P|%y|%m|%U|%G|%n|%s|%l|%Ts\n' |
    grep -v '^[^|]*|d|[^|]*|[^|]*|[^|]*|[^|]*|' | sort | md5sum
find . -type d -printf '%P|%m|%U|%T@\n' | sort | md5sum
stat -c '%b' sparse | awk '{print ($1 < 100)}'
python3 -c "import os; print(os.getxattr('hard', 'user.mine'), os.lstat('link').st_mtime)"
dd if=sparse bs=1 skip=700000000 count=3 status=none
"""


@pytest.fixture(autouse=True)
def nothing_before(server: RunningServer) -> None:
    """Other tests share the server, and may leave snapshots."""
    for snapshot_id in ids(server):
        Sandbox.delete_snapshot(snapshot_id, **server.options)


def ids(server: RunningServer) -> list[str]:
    pages = Sandbox.list_snapshots(**server.options)
    return [one.snapshot_id for one in pages.next_items()]


@pytest.mark.not_under_gvisor("Debian 12's runsc does not know a flag that ls of coreutils uses")
def test_start_from_a_snapshot(server: RunningServer, sandbox: Sandbox) -> None:
    sandbox.files.write("/home/user/a.txt", "kept")
    sandbox.commands.run("rm /etc/hosts && rm -r /usr/share/doc && mkdir /usr/share/doc", user="root")
    sandbox.run_code("x = 41")
    snapshot = sandbox.create_snapshot()
    assert snapshot.names == []
    try:
        assert sandbox.run_code("x + 1").text == "42"
        sandbox.files.write("/home/user/a.txt", "changed")
        with Sandbox.create(snapshot.snapshot_id, **server.options) as copy:
            info = copy.get_info()
            assert snapshot.snapshot_id.startswith(info.template_id)
            assert info.state == SandboxState.RUNNING
            assert copy.files.read("/home/user/a.txt") == "kept"
            assert not copy.files.exists("/etc/hosts")
            assert copy.commands.run("ls -A /usr/share/doc").stdout == ""
            assert copy.commands.run("stat -c %U /home/user/a.txt /usr/share/doc").stdout == "user\nroot\n"
            assert copy.run_code("import sys; 6 * 7").text == "42"
            copy.files.write("/home/user/a.txt", "of the copy")
        with Sandbox.create(snapshot.snapshot_id, **server.options) as copy:
            assert copy.files.read("/home/user/a.txt") == "kept"
    finally:
        assert Sandbox.delete_snapshot(snapshot.snapshot_id, **server.options)


@pytest.mark.not_under_gvisor("its files have no attributes of users")
def test_every_kind_of_file_is_copied(server: RunningServer, sandbox: Sandbox) -> None:
    sandbox.commands.run(HOSTILE)
    before = sandbox.commands.run(PICTURE).stdout
    snapshot = sandbox.create_snapshot()
    try:
        with Sandbox.create(snapshot.snapshot_id, **server.options) as copy:
            assert copy.commands.run(PICTURE).stdout == before
    finally:
        Sandbox.delete_snapshot(snapshot.snapshot_id, **server.options)


def test_snapshots_outlive_their_sandbox_and_are_deleted(server: RunningServer) -> None:
    with Sandbox.create("base", **server.options) as sandbox:
        sandbox.files.write("a", "kept")
        snapshot = sandbox.create_snapshot()
    assert snapshot.snapshot_id in ids(server)
    with Sandbox.create(snapshot.snapshot_id, **server.options) as copy:
        assert Sandbox.delete_snapshot(snapshot.snapshot_id, **server.options)
        assert not Sandbox.delete_snapshot(snapshot.snapshot_id, **server.options)
        assert snapshot.snapshot_id not in ids(server)
        # What runs on it goes on, also over a cold start.
        assert copy.files.read("a") == "kept"
        copy.pause(mode="filesystem")
        copy.connect()
        assert copy.files.read("a") == "kept"
    with pytest.raises(SandboxException, match="not found"):
        Sandbox.create(snapshot.snapshot_id, **server.options)


def test_snapshots_of_snapshots(server: RunningServer, sandbox: Sandbox) -> None:
    sandbox.commands.run("echo 1 > one; echo 1 > two; mkdir d; echo 1 > d/one")
    first = sandbox.create_snapshot()
    with Sandbox.create(first.snapshot_id, **server.options) as middle:
        middle.commands.run("rm one; echo 2 > two; rm -r d; mkdir d; echo 2 > d/two")
        second = middle.create_snapshot()
    assert Sandbox.delete_snapshot(first.snapshot_id, **server.options)
    try:
        with Sandbox.create(second.snapshot_id, **server.options) as last:
            assert last.commands.run("ls -A one 2>&1; cat two; ls d; cat d/two").stdout.endswith(
                "2\ntwo\n2\n"
            )
            assert not last.files.exists("one")
    finally:
        assert Sandbox.delete_snapshot(second.snapshot_id, **server.options)


def test_names_lists_and_pages(server: RunningServer, sandbox: Sandbox) -> None:
    name = f"snap-{uuid.uuid4().hex[:12]}"
    sandbox.files.write("a", "1")
    first = sandbox.create_snapshot(name)
    assert name in first.names[0]
    sandbox.files.write("a", "2")
    second = sandbox.create_snapshot(name)
    assert first.snapshot_id == second.snapshot_id
    third = sandbox.create_snapshot(f"{name}:v2")
    fourth = sandbox.create_snapshot()
    made = [fourth.snapshot_id, third.snapshot_id, second.snapshot_id]
    pages = sandbox.list_snapshots(limit=2)
    assert [one.snapshot_id for one in pages.next_items()] == made[:2]
    assert [one.snapshot_id for one in pages.next_items()] == made[2:]
    assert not pages.has_next
    with Sandbox.create(name, **server.options) as copy:
        assert copy.files.read("a") == "2"
        assert copy.get_info().name == name
    for one in made:
        assert Sandbox.delete_snapshot(one, **server.options)
    assert sandbox.list_snapshots().next_items() == []


@pytest.mark.parametrize("name", ["Upper", "../up", "a b", "base", "x" * 200])
def test_names_that_cannot_be(sandbox: Sandbox, name: str) -> None:
    with pytest.raises(SandboxException, match=r"name|String"):
        sandbox.create_snapshot(name)


def test_snapshots_are_their_owners(server: RunningServer, sandbox: Sandbox) -> None:
    snapshot = sandbox.create_snapshot()
    try:
        with pytest.raises(SandboxException):
            Sandbox.create(snapshot.snapshot_id, **server.stranger_options)
        assert not Sandbox.delete_snapshot(snapshot.snapshot_id, **server.stranger_options)
        assert Sandbox.list_snapshots(**server.stranger_options).next_items() == []
        with pytest.raises(NotFoundException):
            Sandbox.create_snapshot(sandbox.sandbox_id, **server.stranger_options)
    finally:
        assert Sandbox.delete_snapshot(snapshot.snapshot_id, **server.options)


def test_a_paused_sandbox_can_be_copied(server: RunningServer, sandbox: Sandbox) -> None:
    sandbox.files.write("a", "kept")
    for mode in ("full", "filesystem"):
        sandbox.pause(mode=mode)
        snapshot = sandbox.create_snapshot()
        assert sandbox.get_info().state == SandboxState.PAUSED
        with Sandbox.create(snapshot.snapshot_id, **server.options) as copy:
            assert copy.files.read("a") == "kept"
        assert Sandbox.delete_snapshot(snapshot.snapshot_id, **server.options)
        sandbox.connect()


def test_a_kill_while_it_is_copied(server: RunningServer) -> None:
    async def both() -> None:
        sandbox = await AsyncSandbox.create("base", **server.options)
        await sandbox.commands.run("mkdir many; cd many; for i in $(seq 3000); do echo $i > $i; done")
        copying = asyncio.create_task(sandbox.create_snapshot())
        await asyncio.sleep(0.05)
        assert await sandbox.kill()
        with contextlib.suppress(SandboxException):
            await copying

    asyncio.run(both())
    for snapshot_id in ids(server):  # when the copy was the quicker one: then it is whole
        with Sandbox.create(snapshot_id, **server.options) as copy:
            assert copy.files.read("many/3000") == "3000\n"
        assert Sandbox.delete_snapshot(snapshot_id, **server.options)
    assert ids(server) == []


def test_snapshots_outlive_the_server(launch: Callable[..., RunningServer], tmp_path: Path) -> None:
    server = launch(tmp_path, templates="base")
    with Sandbox.create("base", **server.options) as sandbox:
        sandbox.files.write("a", "kept")
        sandbox.create_snapshot("lasting")
        gone = sandbox.create_snapshot("gone")
        assert Sandbox.delete_snapshot(gone.snapshot_id, **server.options)
        sandbox.pause(mode="filesystem")
    key = server.key
    assert server.stop() == 0
    assert len(list((tmp_path / "snapshots").iterdir())) == 1
    server = launch(tmp_path, templates="base", RINGFENCE_API_KEY=key)
    options = {**server.options, "api_key": key}
    with Sandbox.create("lasting", **options) as copy:
        assert copy.files.read("a") == "kept"
        assert Sandbox.delete_snapshot("lasting", **options)
        assert len(list((tmp_path / "snapshots").iterdir())) == 1
    wait_until_empty(tmp_path / "snapshots")
    assert server.stop() == 0


def test_how_many_may_be_kept(launch: Callable[..., RunningServer], tmp_path: Path) -> None:
    server = launch(tmp_path, templates="base", RINGFENCE_MAX_SNAPSHOTS="1")
    with Sandbox.create("base", **server.options) as sandbox:
        sandbox.create_snapshot()
        with pytest.raises(SandboxException, match="maximum"):
            sandbox.create_snapshot()
    assert server.stop() == 0


def test_fork(server: RunningServer) -> None:
    given = {"who": "me"}
    with Sandbox.create("base", metadata=given, envs={"GREETING": "hi"}, **server.options) as sandbox:
        sandbox.files.write("a", "kept")
        forks = sandbox.fork(count=3, timeout=60)
        try:
            assert len({one.sandbox_id for one in [sandbox, *forks]}) == 4
            for number, fork in enumerate(forks):
                assert fork.files.read("a") == "kept"
                assert fork.commands.run("echo $GREETING").stdout == "hi\n"
                assert fork.get_info().metadata == given
                assert fork.get_info().template_id == sandbox.get_info().template_id
                fork.files.write("a", f"{number}")
            assert [fork.files.read("a") for fork in forks] == ["0", "1", "2"]
            assert sandbox.files.read("a") == "kept"
            (again,) = forks[0].fork(timeout=60)
            assert again.files.read("a") == "0"
            forks.append(again)
        finally:
            for fork in forks:
                fork.kill()
    assert ids(server) == []


async def test_fork_asynchronously(server: RunningServer, async_sandbox: AsyncSandbox) -> None:
    await async_sandbox.files.write("a", "kept")
    (fork,) = await async_sandbox.fork()
    assert await fork.files.read("a") == "kept"
    assert await fork.kill()
    snapshot = await async_sandbox.create_snapshot()
    copy = await AsyncSandbox.create(snapshot.snapshot_id, **server.options)
    assert await copy.files.read("a") == "kept"
    await copy.kill()
    assert await AsyncSandbox.delete_snapshot(snapshot.snapshot_id, **server.options)


def wait_until_empty(directory: Path) -> None:
    deadline = time.monotonic() + 10
    while list(directory.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
