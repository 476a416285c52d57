"""Volumes through the official SDK: their API, their contents, and what sandboxes see of them."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from e2b import (
    AsyncVolume,
    NotFoundException,
    SandboxException,
    Volume,
    VolumeException,
    VolumeFileType,
)
from e2b_code_interpreter import AsyncSandbox, Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import RunningServer

SIZE_MB = 24
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/loop-control"),
    reason="a hard limit needs root, loop devices and ext4",
)
if TYPE_CHECKING:
    Options = dict[str, Any]


@pytest.fixture(scope="module")
def volume_server(
    starting: Callable[..., RunningServer], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    # An ordinary user's volumes have no limit; everything else about them is the same.
    running = starting(
        tmp_path_factory.mktemp("volumes"),
        templates="base",
        RINGFENCE_VOLUME_SIZE_MB=str(SIZE_MB),
        RINGFENCE_MAX_VOLUMES="4",
        RINGFENCE_UNBOUNDED_VOLUMES="1",
    )
    yield running
    assert running.stop() == 0


@pytest.fixture(autouse=True)
def address(volume_server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("E2B_VOLUME_API_URL", volume_server.url)


def api(server: RunningServer) -> dict[str, Any]:
    return {"api_key": server.key, "api_url": server.url}


@pytest.fixture
def volume(volume_server: RunningServer) -> Iterator[Volume]:
    made = Volume.create("shared", **api(volume_server))
    yield made
    Volume.destroy(made.volume_id, **api(volume_server))


def sandbox_with(server: RunningServer, mounts: dict[str, Any], **options: Any) -> Sandbox:
    return Sandbox.create("base", volume_mounts=mounts, **server.options, **options)


def refused(status: int) -> Any:
    return pytest.raises(VolumeException, match=f"^{status}: ")


def test_life_of_a_volume(volume_server: RunningServer) -> None:
    options = api(volume_server)
    made = Volume.create("My_volume-1", **options)
    assert made.name == "My_volume-1"
    info = Volume.get_info(made.volume_id, **options)
    assert (info.name, info.token, info.domain) == (made.name, made.token, None)
    assert [(one.volume_id, one.name) for one in Volume.list(**options)] == [(made.volume_id, made.name)]
    assert made.list("/") == []
    again = Volume.connect(made.volume_id, **options)
    again.write_file("a", "1")
    assert made.read_file("/a") == "1"
    assert Volume.destroy(made.volume_id, **options)
    assert not Volume.destroy(made.volume_id, **options)
    assert Volume.list(**options) == []
    with pytest.raises(NotFoundException):
        Volume.connect(made.volume_id, **options)
    with pytest.raises(NotFoundException):
        made.list("/")


@pytest.mark.parametrize("name", ["", "a b", "a/b", "..", "ü", "x" * 129, "a\n"])
def test_names_that_cannot_be(volume_server: RunningServer, name: str) -> None:
    with refused(400):
        Volume.create(name, **api(volume_server))


def test_names_are_used_once_and_their_number_is_limited(
    volume_server: RunningServer, volume: Volume
) -> None:
    options = api(volume_server)
    with pytest.raises(VolumeException, match="already exists"):
        Volume.create("shared", **options)
    more = [Volume.create(f"more-{number}", **options) for number in range(3)]
    try:
        with pytest.raises(Exception, match="maximum number of volumes"):
            Volume.create("one-too-many", **options)
    finally:
        for one in more:
            assert Volume.destroy(one.volume_id, **options)


def test_a_foreign_volume_is_like_an_unknown_one(volume_server: RunningServer, volume: Volume) -> None:
    stranger = {"api_key": volume_server.stranger, "api_url": volume_server.url}
    assert Volume.list(**stranger) == []
    with httpx.Client(base_url=volume_server.url, headers={"X-API-KEY": volume_server.stranger}) as client:
        unknown = "0" * 8 + volume.volume_id[8:]
        for method in ("GET", "DELETE"):
            answers = [client.request(method, f"/volumes/{one}") for one in (volume.volume_id, unknown)]
            assert [answer.status_code for answer in answers] == [404, 404]
            texts = [answer.text.replace(volume.volume_id, unknown) for answer in answers]
            assert texts[0] == texts[1]
    assert not Volume.destroy(volume.volume_id, **stranger)
    with pytest.raises(SandboxException, match="volume 'shared' not found"):
        Sandbox.create("base", volume_mounts={"/d": volume}, **volume_server.stranger_options)
    theirs = Volume.create("shared", **stranger)
    try:
        theirs.write_file("a", "theirs")
        assert not volume.exists("a")
        with httpx.Client(base_url=volume_server.url) as client:
            path = f"/volumecontent/{volume.volume_id}/path?path=/"
            for headers in (
                {},
                {"Authorization": f"Bearer {theirs.token}"},
                {"Authorization": "Bearer x"},
                {"Authorization": f"Basic {volume.token}"},
                {"X-API-KEY": volume_server.key},
            ):
                answer = client.get(path, headers=headers)
                assert answer.status_code == 401
                assert answer.json()["code"] == 401
                answer = client.get(path.replace(volume.volume_id, unknown), headers=headers)
                assert answer.status_code == 401
    finally:
        Volume.destroy(theirs.volume_id, **stranger)


def test_contents(volume: Volume) -> None:
    written = volume.write_file("/a.txt", "grüße")
    assert (written.name, written.path, written.size, written.mode) == ("a.txt", "/a.txt", 7, 0o666)
    assert (written.uid, written.gid, written.type) == (1000, 1000, VolumeFileType.FILE)
    assert abs(written.mtime.timestamp() - time.time()) < 600
    assert volume.read_file("a.txt") == "grüße"
    assert volume.write_file("a.txt", b"\0\xff").size == 2
    assert volume.read_file("a.txt", format="bytes") == b"\0\xff"
    big = os.urandom(3_000_000)
    assert volume.write_file("big", io.BytesIO(big)).size == len(big)
    assert b"".join(volume.read_file("big", format="stream")) == big
    assert volume.write_file("empty", "").size == 0
    assert volume.read_file("empty") == ""
    assert volume.make_dir("d", mode=0o700).mode == 0o700
    volume.write_file("d/x", "x", mode=0o600)
    assert [entry.path for entry in volume.list("/")] == ["/a.txt", "/big", "/d", "/empty"]
    assert [entry.path for entry in volume.list("/d", depth=3)] == ["/d/x"]
    assert "/d/x" in [entry.path for entry in volume.list("/", depth=2)]
    assert volume.update_metadata("d/x", mode=0o444).mode == 0o444
    assert volume.get_info("d").type == VolumeFileType.DIRECTORY
    volume.remove("d")
    assert not volume.exists("d/x")


def test_errors_of_contents(volume: Volume) -> None:
    volume.write_file("file", "1")
    for missing in (
        lambda: volume.read_file("nope"),
        lambda: volume.list("nope"),
        lambda: volume.remove("nope"),
        lambda: volume.get_info("nope"),
        lambda: volume.update_metadata("nope", mode=0o600),
        lambda: volume.write_file("no/such", "x"),
        lambda: volume.make_dir("no/such"),
    ):
        with pytest.raises(NotFoundException):
            missing()
    assert volume.write_file("some/where/new", "x", force=True).path == "/some/where/new"
    assert volume.make_dir("some/where", force=True).type == VolumeFileType.DIRECTORY
    for status, wrong in (
        (409, lambda: volume.write_file("file", "2", force=False)),
        (409, lambda: volume.make_dir("some")),
        (409, lambda: volume.make_dir("file", force=True)),
        (400, lambda: volume.remove("/")),
        (400, lambda: volume.list("/", depth=11)),
        (400, lambda: volume.list("file")),
        (400, lambda: volume.read_file("some")),
        (400, lambda: volume.write_file("some", "x")),
        (400, lambda: volume.write_file("n", "x", uid=-1)),
        (400, lambda: volume.write_file("n", "x", mode=0o10000)),
        (400, lambda: volume.write_file("n" * 300, "x")),
        (400, lambda: volume.update_metadata("file", uid=1 << 40)),
    ):
        with refused(status):
            wrong()
    assert volume.read_file("file") == "1"
    assert not volume.exists("n")


def test_a_request_to_read_that_is_not_whole(volume_server: RunningServer, volume: Volume) -> None:
    volume.write_file("half", "contents")
    head = (
        f"GET /volumecontent/{volume.volume_id}/file?path=half HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {volume.token}\r\nContent-Length: 4\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", volume_server.port), 20) as connection:
        connection.sendall(head.encode())
        time.sleep(0.5)  # so that the server has the head alone
        connection.sendall(b"late")
        received = b""
        while b"contents" not in received:
            more = connection.recv(65536)
            assert more, received
            received += more
    assert received.startswith(b"HTTP/1.1 200 ")


@needs_root
def test_a_file_that_shrinks_while_it_is_read(volume_server: RunningServer, volume: Volume) -> None:
    size = 16 << 20
    volume.write_file("long", b"x" * size)
    with (
        sandbox_with(volume_server, {"/mnt": volume}) as sandbox,
        socket.socket() as connection,
    ):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.settimeout(60)
        connection.connect(("127.0.0.1", volume_server.port))
        connection.sendall(
            f"GET /volumecontent/{volume.volume_id}/file?path=long HTTP/1.1\r\nHost: localhost\r\n"
            f"Authorization: Bearer {volume.token}\r\n\r\n".encode()
        )
        received = len(connection.recv(1000))
        sandbox.commands.run("truncate -s 0 /mnt/long", user="root")
        with pytest.raises(ConnectionResetError):
            while more := connection.recv(65536):
                received += len(more)
        assert received < size


@pytest.mark.parametrize(
    ("method", "query"),
    [
        ("GET", "dir"),
        ("GET", "dir?path=/&depth=x"),
        ("GET", "dir?path=/&path=/"),
        ("POST", "dir?path=/x&force=perhaps"),
        ("POST", "dir?path=/x&uid=1.5"),
        ("PATCH", "path?path=/"),
        ("GET", "path?path=%00"),
        ("GET", "file"),
    ],
)
def test_bad_requests(volume_server: RunningServer, volume: Volume, method: str, query: str) -> None:
    url = f"{volume_server.url}/volumecontent/{volume.volume_id}/{query}"
    body = b"{" if method == "PATCH" else None
    answer = httpx.request(method, url, headers={"Authorization": f"Bearer {volume.token}"}, content=body)
    assert answer.status_code == 400
    assert answer.json()["code"] == 400
    assert answer.json()["message"]


async def test_asynchronously(volume_server: RunningServer) -> None:
    made = await AsyncVolume.create("async", **api(volume_server))
    try:
        await asyncio.gather(*(made.write_file(f"f{number}", str(number)) for number in range(40)))
        assert len(await made.list("/")) == 40
        texts = await asyncio.gather(*(made.read_file(f"f{number}") for number in range(40)))
        assert texts == [str(number) for number in range(40)]
        async with await AsyncSandbox.create(
            "base", volume_mounts={"/mnt/v": made}, **volume_server.options
        ) as sandbox:
            assert await sandbox.files.read("/mnt/v/f7") == "7"
            await sandbox.files.write("/mnt/v/new", "from inside")
        assert await made.read_file("new") == "from inside"
        await made.remove("new")
        assert not await made.exists("new")
    finally:
        assert await AsyncVolume.destroy(made.volume_id, **api(volume_server))


@pytest.mark.not_under_gvisor("Debian 12's runsc does not know a flag that stat of coreutils uses")
def test_sandboxes_share_it(volume_server: RunningServer, volume: Volume) -> None:
    volume.write_file("from-outside", "1")
    with (
        sandbox_with(volume_server, {"/mnt/data": volume}) as one,
        sandbox_with(volume_server, {"/home/user/data": "shared"}) as two,
    ):
        assert one.files.read("/mnt/data/from-outside") == "1"
        one.commands.run("echo 2 > /mnt/data/from-one; sudo sh -c 'echo 3 > /mnt/data/roots'")
        assert two.files.read("data/from-one") == "2\n"
        owners = two.commands.run("stat -c '%U %a' data/* | sort -u").stdout
        if os.geteuid() == 0:
            assert owners == "root 644\nuser 644\nuser 666\n"
            with pytest.raises(Exception, match="denied"):
                two.commands.run("echo no >> data/roots")
        else:  # there is one id
            assert owners == "user 644\nuser 666\n"
        two.run_code("open('/home/user/data/from-kernel', 'w').write('4')")
        assert one.commands.run("cat /mnt/data/from-kernel").stdout == "4"
        # They see each other's writes as they happen, and a lock of one is the other's too.
        watcher = one.files.watch_dir("/mnt/data")
        two.files.write("data/seen", "")
        events: list[str] = []
        deadline = time.monotonic() + 20
        while "seen" not in events and time.monotonic() < deadline:
            events += [event.name for event in watcher.get_new_events()]
        assert "seen" in events
        watcher.stop()
        assert [(m["name"], m["path"]) for m in one.get_info().volume_mounts] == [("shared", "/mnt/data")]
        listed = Sandbox.list(**volume_server.options).next_items()
        assert {m["path"] for info in listed for m in info.volume_mounts} == {"/mnt/data", "/home/user/data"}
    assert volume.read_file("roots") == "3\n"
    assert volume.get_info("roots").uid == (0 if os.geteuid() == 0 else 1000)


@pytest.mark.not_under_gvisor("a volume is no mount of its own in its mountinfo")
def test_what_holds_in_a_mounted_volume(volume_server: RunningServer, volume: Volume) -> None:
    with sandbox_with(volume_server, {"/v": volume}) as sandbox:
        options = sandbox.commands.run("grep ' /v ' /proc/self/mountinfo").stdout
        assert "nosuid,nodev" in options
        if os.geteuid() == 0:  # a plain directory's place on the host can be seen
            assert str(data_dir(volume_server)) not in options
        sandbox.commands.run(
            "cp /usr/bin/id /v/id; sudo chown root /v/id; sudo chmod 4755 /v/id; ln -s /etc /v/conf"
        )
        assert "euid" not in sandbox.commands.run("/v/id").stdout
        for refused_command in (
            "sudo mknod /v/device b 7 0",
            "sudo umount /v",
            "sudo mount -o remount,suid,dev /v",
            "sudo chattr +i /v/id",
            "ls /v/../staging /v/staging /v/lost+found",
        ):
            with pytest.raises(Exception, match=r"denied|permitted|root|superuser|No such|only"):
                sandbox.commands.run(refused_command)
        # `..` of a mount's root is where it is mounted.
        assert (
            sandbox.commands.run("ls -di /v/.. /").stdout.split()[0::2]
            == (sandbox.commands.run("ls -di / /").stdout.split()[0::2])
        )
    # The link that a sandbox has left leads the content API to nothing.
    with pytest.raises(NotFoundException):
        volume.read_file("conf/passwd")
    assert volume.get_info("conf").target == "/etc"
    assert [entry.name for entry in volume.list("/")] == ["conf", "id"]


@pytest.mark.parametrize(
    ("mounts", "reason"),
    [
        ({"/d": "no-such"}, "volume 'no-such' not found"),
        ({"d": "shared"}, "must be absolute"),
        ({"": "shared"}, "cannot be empty"),
        ({"/a/../b": "shared"}, "must not contain"),
        ({"/a/": "shared"}, "must not contain"),
        ({"/": "shared"}, "cannot be mounted at"),
        ({"/proc/sys": "shared"}, "cannot be mounted at"),
        ({"/dev": "shared"}, "cannot be mounted at"),
    ],
)
def test_mounts_that_cannot_be(
    volume_server: RunningServer, volume: Volume, mounts: dict[str, str], reason: str
) -> None:
    with pytest.raises(SandboxException, match=f"^400: .*{reason}"):
        sandbox_with(volume_server, mounts)
    body = {"templateID": "base", "volumeMounts": [{"name": "shared", "path": "/d"}] * 2}
    answer = httpx.post(
        volume_server.url + "/v2/sandboxes", json=body, headers={"X-API-KEY": volume_server.key}
    )
    assert (answer.status_code, "already used" in answer.text) == (400, True)


def test_mounts_within_each_other_and_over_links(volume_server: RunningServer, volume: Volume) -> None:
    other = Volume.create("inner", **api(volume_server))
    try:
        other.write_file("a", "inner")
        with sandbox_with(volume_server, {"/v/deep/er": other, "/v": volume}) as sandbox:
            assert sandbox.files.read("/v/deep/er/a") == "inner"
        assert volume.get_info("deep/er").type == VolumeFileType.DIRECTORY
        assert volume.list("deep/er") == []
        with Sandbox.create("base", **volume_server.options) as sandbox:
            sandbox.commands.run("sudo ln -s /home/user/place /data; mkdir place; sudo ln -s /proc/sys /bad")
            snapshot = sandbox.create_snapshot().snapshot_id
        try:
            with Sandbox.create(
                snapshot, volume_mounts={"/data": other, "/new/place": volume}, **volume_server.options
            ) as sandbox:
                assert sandbox.files.read("/home/user/place/a") == "inner"
                assert sandbox.files.exists("/new/place/deep")
            with pytest.raises(SandboxException, match="cannot be mounted at /bad"):
                Sandbox.create(snapshot, volume_mounts={"/bad": other}, **volume_server.options)
        finally:
            Sandbox.delete_snapshot(snapshot, **volume_server.options)
    finally:
        assert Volume.destroy(other.volume_id, **api(volume_server))


def test_pauses_and_forks_keep_it(volume_server: RunningServer, volume: Volume) -> None:
    with sandbox_with(volume_server, {"/v": volume}) as sandbox:
        sandbox.files.write("/v/a", "1")
        for mode in ("full", "filesystem"):
            sandbox.pause(mode=mode)
            volume.write_file("while-paused", mode)
            sandbox.connect()
            assert sandbox.files.read("/v/while-paused") == mode
            sandbox.files.write("/v/a", mode)
            assert volume.read_file("a") == mode
        snapshot = sandbox.create_snapshot().snapshot_id
        try:
            with Sandbox.create(snapshot, **volume_server.options) as copy:
                # What is on the volume is no part of a snapshot.
                assert copy.commands.run("ls -A /v").stdout == ""
        finally:
            Sandbox.delete_snapshot(snapshot, **volume_server.options)
        answer = httpx.post(
            f"{volume_server.url}/sandboxes/{sandbox.sandbox_id}/fork", json={"timeout": 60},
            headers={"X-API-KEY": volume_server.key}, timeout=60,
        )  # fmt: skip
        forked = Sandbox.connect(answer.json()[0]["sandbox"]["sandboxID"], **volume_server.options)
        with forked:
            forked.files.write("/v/from-fork", "2")
            assert sandbox.files.read("/v/from-fork") == "2"
            assert forked.get_info().volume_mounts == sandbox.get_info().volume_mounts


def test_deleting_a_volume_that_is_mounted(volume_server: RunningServer) -> None:
    options = api(volume_server)
    made = Volume.create("going", **options)
    with sandbox_with(volume_server, {"/v": made}) as sandbox:
        assert Volume.destroy(made.volume_id, **options)
        assert Volume.list(**options) == []
        with pytest.raises(NotFoundException):
            made.list("/")
        # As with an open file: it is there for as long as somebody has it.
        sandbox.files.write("/v/a", "still")
        assert sandbox.files.read("/v/a") == "still"
        fresh = Volume.create("going", **options)
        assert fresh.list("/") == []
        assert Volume.destroy(fresh.volume_id, **options)
    deadline = time.monotonic() + 20
    directory = data_dir(volume_server) / "volumes"
    while list(directory.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(directory.iterdir()) == []


def data_dir(server: RunningServer) -> Path:
    arguments = Path(f"/proc/{server.process.pid}/cmdline").read_bytes().split(b"\0")
    return Path(os.fsdecode(arguments[arguments.index(b"--data-dir") + 1]))


def test_an_upload_that_breaks_off_leaves_nothing(volume_server: RunningServer, volume: Volume) -> None:
    volume.write_file("a", "before")

    def body() -> Iterator[bytes]:
        yield b"x" * 3_000_000
        raise ConnectionAbortedError

    with contextlib.suppress(ConnectionAbortedError):
        httpx.put(
            f"{volume_server.url}/volumecontent/{volume.volume_id}/file?path=/a", content=body(),
            headers={"Authorization": f"Bearer {volume.token}"},
        )  # fmt: skip
    assert volume.read_file("a") == "before"
    assert [entry.name for entry in volume.list("/")] == ["a"]


@needs_root
@pytest.mark.not_under_gvisor("so many small files take longer than the request may")
def test_the_limit_holds(volume_server: RunningServer, volume: Volume) -> None:
    too_much = b"x" * (SIZE_MB << 20)
    with refused(507):
        volume.write_file("big", too_much)
    assert volume.list("/") == []
    with sandbox_with(volume_server, {"/v": volume}) as sandbox:
        with pytest.raises(Exception, match="No space left"):
            sandbox.commands.run(f"dd if=/dev/zero of=/v/big bs=1M count={2 * SIZE_MB}")
        with pytest.raises(Exception, match="No space left"):
            sandbox.commands.run("mkdir /v/many && cd /v/many && seq 200000 | xargs touch", timeout=100)
        image = next((data_dir(volume_server) / "volumes").glob("*.img")).stat()
        assert image.st_size == SIZE_MB << 20
        assert image.st_blocks * 512 <= (SIZE_MB << 20) + 65536
        sandbox.commands.run("rm -r /v/big /v/many && echo fits > /v/small")
    assert volume.read_file("small") == "fits\n"


@needs_root
def test_the_agent_has_no_power_over_the_host(volume_server: RunningServer, volume: Volume) -> None:
    before = volume_server.descendants()
    volume.list("/")
    agents = [
        pid for pid in volume_server.descendants() | before
        if os.path.isdir(f"/proc/{pid}/root/staging")
    ]  # fmt: skip
    assert agents
    for pid in agents:
        status = Path(f"/proc/{pid}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert all(int(uid) > 0x70000000 for uid in fields["Uid"].split() + fields["Gid"].split())
        assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
        assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0b100011011
        for namespace in ("user", "net", "ipc"):
            assert os.readlink(f"/proc/{pid}/ns/{namespace}") != os.readlink(f"/proc/self/ns/{namespace}")
        assert sorted(os.listdir(f"/proc/{pid}/root")) == ["data", "lost+found", "staging"]


def test_they_outlive_the_server_and_leave_nothing(
    launch: Callable[..., RunningServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"templates": "base", "RINGFENCE_VOLUME_SIZE_MB": "16", "RINGFENCE_UNBOUNDED_VOLUMES": "1"}
    first = launch(tmp_path, **settings)
    keys = {"RINGFENCE_API_KEY": f"{first.key},{first.stranger}"}
    monkeypatch.setenv("E2B_VOLUME_API_URL", first.url)
    kept = Volume.create("kept", **api(first))
    kept.write_file("a", "kept")
    going = Volume.create("going", **api(first))
    sandbox = sandbox_with(first, {"/v": kept, "/g": going})
    sandbox.files.write("/v/b", "by a sandbox")
    sandbox.commands.run("sync /v/b")
    assert Volume.destroy(going.volume_id, **api(first))
    if os.geteuid() == 0:
        assert loops(tmp_path) == 2
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    # Started at once: the mounts of the one that was killed may not all be gone yet.
    second = launch(tmp_path, **settings, **keys)
    second.key = first.key
    monkeypatch.setenv("E2B_VOLUME_API_URL", second.url)
    again = Volume.connect(kept.volume_id, **api(second))
    assert again.token == kept.token
    assert (again.read_file("a"), again.read_file("b")) == ("kept", "by a sandbox")
    assert [one.name for one in Volume.list(**api(second))] == ["kept"]
    with sandbox_with(second, {"/v": again}) as sandbox:
        assert sandbox.files.read("/v/b") == "by a sandbox"
    assert len(list((tmp_path / "volumes").iterdir())) == 1
    assert second.stop() == 0
    deadline = time.monotonic() + 20
    while loops(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert loops(tmp_path) == 0


def loops(data: Path) -> int:
    """How many loop devices have a file below `data`."""
    shown = subprocess.run(["losetup", "--all"], capture_output=True, text=True, check=False)
    return shown.stdout.count(str(data))


@pytest.mark.skipif(os.geteuid() == 0, reason="root has hard limits")
def test_an_ordinary_user_must_allow_volumes_without_a_limit(server: RunningServer) -> None:
    with pytest.raises(VolumeException, match="--unbounded-volumes"):
        Volume.create("shared", **api(server))
    features = {feature["name"]: feature for feature in server.isolation["features"]}
    assert not features["volumes"]["in_force"]


def test_what_is_said_about_them(volume_server: RunningServer) -> None:
    (feature,) = volume_server.isolation["features"]
    assert feature["name"] == "volumes"
    assert feature["in_force"]
    assert ("WITHOUT a limit" in feature["detail"]) == (os.geteuid() != 0)
