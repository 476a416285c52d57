import asyncio
import os
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from e2b import (
    AsyncSandbox,
    AuthenticationException,
    FileNotFoundException,
    FileType,
    InvalidArgumentException,
    Sandbox,
    SandboxException,
)

RPC = "/filesystem.Filesystem/"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="switching users needs root")


async def rpc(http: httpx.AsyncClient, method: str, **message: object) -> tuple[int, dict]:
    response = await http.post(RPC + method, json=message)
    return response.status_code, response.json()


async def test_info(sandbox: AsyncSandbox, workdir: Path) -> None:
    (workdir / "file").write_bytes(b"12345")
    (workdir / "file").chmod(0o640)
    os.utime(workdir / "file", ns=(0, 1_600_000_000_123_456_000))
    info = await sandbox.files.get_info(f"{workdir}/file")
    assert (info.name, info.type, info.path) == ("file", FileType.FILE, f"{workdir}/file")
    assert (info.size, info.mode, info.permissions) == (5, 0o640, "-rw-r-----")
    assert info.modified_time == datetime(2020, 9, 13, 12, 26, 40, 123456, tzinfo=UTC)
    assert info.symlink_target is None and info.metadata is None
    folder = await sandbox.files.get_info(str(workdir))
    assert (folder.type, folder.permissions) == (FileType.DIR, "drwxr-xr-x")
    with pytest.raises(FileNotFoundException):
        await sandbox.files.get_info(f"{workdir}/none")
    with pytest.raises(FileNotFoundException):
        await sandbox.files.get_info(f"{workdir}/file/below")
    assert await sandbox.files.exists(f"{workdir}/file") is True
    assert await sandbox.files.exists(f"{workdir}/none") is False


async def test_special_files(http: httpx.AsyncClient, workdir: Path) -> None:
    os.mkfifo(workdir / "pipe")
    (workdir / "sticky").mkdir()
    (workdir / "sticky").chmod(0o1777)
    (workdir / "setuid").touch()
    (workdir / "setuid").chmod(0o4755)
    shown = {}
    for name in ("pipe", "sticky", "setuid"):
        shown[name] = (await rpc(http, "Stat", path=f"{workdir}/{name}"))[1]["entry"]["permissions"]
    assert shown == {"pipe": "prw-r--r--", "sticky": "dtrwxrwxrwx", "setuid": "urwxr-xr-x"}
    device = (await rpc(http, "Stat", path="/dev/null"))[1]["entry"]
    assert (device["permissions"], device["type"]) == ("Dcrw-rw-rw-", "FILE_TYPE_UNSPECIFIED")


async def test_links(http: httpx.AsyncClient, sandbox: AsyncSandbox, workdir: Path) -> None:
    (workdir / "dir").mkdir(mode=0o750)
    (workdir / "dir").chmod(0o750)
    (workdir / "link").symlink_to("dir")
    (workdir / "second").symlink_to("link")
    (workdir / "broken").symlink_to("nowhere")
    (workdir / "loop").symlink_to("loop")
    entry = (await rpc(http, "Stat", path=f"{workdir}/second"))[1]["entry"]
    assert entry["type"] == "FILE_TYPE_DIRECTORY"
    assert entry["mode"] == 0o750
    assert entry["permissions"] == "Lrwxrwxrwx"
    assert entry["symlinkTarget"] == f"{workdir}/dir"
    assert entry["isSymlink"] is True
    assert entry["size"] == "4"
    assert (await sandbox.files.get_info(f"{workdir}/link")).type is FileType.SYMLINK
    for name in ("broken", "loop"):
        entry = (await rpc(http, "Stat", path=f"{workdir}/{name}"))[1]["entry"]
        assert entry["type"] == "FILE_TYPE_UNSPECIFIED"
        assert "symlinkTarget" not in entry
    assert (await rpc(http, "ListDir", path=f"{workdir}/loop"))[1]["code"] == "failed_precondition"
    assert (await rpc(http, "ListDir", path=f"{workdir}/broken"))[1]["code"] == "not_found"


async def test_list_is_depth_first_and_sorted(sandbox: AsyncSandbox, workdir: Path) -> None:
    for name in ("b/y/deep", "b/x", "a", "c"):
        (workdir / name).mkdir(parents=True, exist_ok=True)
    (workdir / "b" / "z").touch()
    (workdir / "d").symlink_to("b")

    async def names(path: str, depth: int) -> list[str]:
        return [entry.path for entry in await sandbox.files.list(path, depth=depth)]

    top = str(workdir)
    assert await names(top, 1) == [f"{top}/{name}" for name in ("a", "b", "c", "d")]
    wanted = ("a", "b", "b/x", "b/y", "b/z", "c", "d")
    assert await names(top, 2) == [f"{top}/{name}" for name in wanted]
    assert f"{top}/b/y/deep" in await names(top, 3)
    assert await names(f"{top}/d", 1) == [f"{top}/d/{name}" for name in ("x", "y", "z")]
    assert await names(f"~/{workdir.name}/b/y", 1) == [f"{top}/b/y/deep"]
    assert await names(f"{top}/c", 1) == []
    with pytest.raises(FileNotFoundException):
        await names(f"{top}/none", 1)
    with pytest.raises(InvalidArgumentException, match="not a directory"):
        await names(f"{top}/b/z", 1)


async def test_names_that_are_not_text(http: httpx.AsyncClient, workdir: Path) -> None:
    name = b"bad\xff\xe2\x80\xa8name"
    (Path(os.fsdecode(os.fsencode(workdir) + b"/" + name))).touch()
    status, answer = await rpc(http, "ListDir", path=str(workdir))
    assert status == 200
    assert answer["entries"][0]["name"] == "bad\ufffd\u2028name"


async def test_too_many_entries(http: httpx.AsyncClient, workdir: Path) -> None:
    for number in range(300):
        (workdir / f"{number:03}").touch()
    answer = (await rpc(http, "ListDir", path=str(workdir)))[1]
    assert [entry["name"] for entry in answer["entries"]] == [f"{number:03}" for number in range(300)]


async def test_make_dir(sandbox: AsyncSandbox, workdir: Path) -> None:
    assert await sandbox.files.make_dir(f"{workdir}/a/b/c") is True
    assert await sandbox.files.make_dir(f"{workdir}/a/b/c") is False
    assert (workdir / "a" / "b").stat().st_mode & 0o777 == 0o755
    (workdir / "file").touch()
    for path in ("file", "file/below"):
        with pytest.raises(InvalidArgumentException):
            await sandbox.files.make_dir(f"{workdir}/{path}")


async def test_a_tree_deeper_than_any_path(sandbox: AsyncSandbox, workdir: Path) -> None:
    current = os.open(workdir, os.O_RDONLY)
    for _ in range(2500):  # more than Python's recursion allows, and than PATH_MAX
        os.mkdir("d" * 8, dir_fd=current)
        below = os.open("d" * 8, os.O_RDONLY, dir_fd=current)
        os.close(current)
        current = below
    os.mkfifo("pipe", dir_fd=current)
    os.close(current)
    assert 0 < len(await sandbox.files.list(str(workdir), depth=10_000)) < 2500
    await sandbox.files.remove(f"{workdir}/{'d' * 8}")
    assert list(workdir.iterdir()) == []


async def test_a_tree_that_cannot_be_removed_says_why(sandbox: AsyncSandbox) -> None:
    with pytest.raises(SandboxException, match="error removing file or directory: "):
        await sandbox.files.remove("/proc/self/attr")


async def test_there_is_no_thread_that_proc_would_show(envd, sandbox: AsyncSandbox, workdir: Path) -> None:
    (workdir / "a" / "b").mkdir(parents=True)
    await sandbox.files.rename(f"{workdir}/a", f"{workdir}/c")
    await sandbox.files.remove(f"{workdir}/c")
    assert os.listdir(f"/proc/{envd.pid}/task") == [str(envd.pid)]


async def test_users_from_a_pipe_are_none(run_envd) -> None:
    envd = run_envd()
    (envd.root / "passwd").rename(envd.root / "passwd.old")
    os.mkfifo(envd.root / "passwd")
    async with asyncio.timeout(10):
        with pytest.raises(AuthenticationException, match="user"):
            await AsyncSandbox(**envd.sdk_options()).files.list("/")


async def test_remove(sandbox: AsyncSandbox, workdir: Path) -> None:
    (workdir / "a" / "b").mkdir(parents=True)
    (workdir / "a" / "b" / "file").touch()
    (workdir / "keep").touch()
    (workdir / "a" / "link").symlink_to(workdir / "keep")
    (workdir / "link").symlink_to(workdir / "a")
    await sandbox.files.remove(f"{workdir}/link")
    assert (workdir / "a").is_dir()
    await sandbox.files.remove(f"{workdir}/a")
    await sandbox.files.remove(f"{workdir}/a")
    assert sorted(path.name for path in workdir.iterdir()) == ["keep"]


async def test_rename(sandbox: AsyncSandbox, workdir: Path) -> None:
    (workdir / "old").write_text("x")
    info = await sandbox.files.rename(f"{workdir}/old", f"{workdir}/new/place")
    assert (info.name, info.path, info.type) == ("place", f"{workdir}/new/place", FileType.FILE)
    assert (workdir / "new" / "place").read_text() == "x"
    with pytest.raises(FileNotFoundException):
        await sandbox.files.rename(f"{workdir}/old", f"{workdir}/other/place")
    assert not (workdir / "other").exists()


@needs_root
async def test_what_is_made_belongs_to_the_user(sandbox: AsyncSandbox, workdir: Path) -> None:
    async def owner(path: str) -> tuple[str | None, str | None]:
        info = await sandbox.files.get_info(path, user="root")
        return info.owner, info.group

    await sandbox.files.write(f"{workdir}/a/b/file", "x")
    await sandbox.files.make_dir(f"{workdir}/c/d")
    for path in ("a", "a/b", "a/b/file", "c", "c/d"):
        assert await owner(f"{workdir}/{path}") == ("user", "user")
    await sandbox.files.write(f"{workdir}/a/b/file", "y", user="root")
    assert await owner(f"{workdir}/a/b/file") == ("root", "root")
    os.chown(workdir / "c", 4711, 4712)
    assert await owner(f"{workdir}/c") == ("4711", "4712")


async def test_paths(sandbox: AsyncSandbox, workdir: Path) -> None:
    (workdir / "file").write_text("x")
    for path in (
        f"{workdir.name}/file",
        f"~/{workdir.name}/file",
        f"./{workdir.name}/../{workdir.name}/file",
    ):
        assert (await sandbox.files.get_info(path)).path == f"{workdir}/file"
    with pytest.raises(InvalidArgumentException):
        await sandbox.files.get_info("~other/file")
    with pytest.raises(InvalidArgumentException):
        await sandbox.files.get_info("a\0b")
    with pytest.raises(InvalidArgumentException):
        await sandbox.files.get_info("/" + "x" * 300)


async def test_unknown_user(sandbox: AsyncSandbox) -> None:
    with pytest.raises(AuthenticationException, match="invalid username: 'nobody-here'"):
        await sandbox.files.list("/", user="nobody-here")


async def test_sync_sdk(sync_sandbox: Sandbox, workdir: Path) -> None:
    def check() -> None:
        sync_sandbox.files.write(f"{workdir}/file", "text")
        assert [entry.name for entry in sync_sandbox.files.list(str(workdir))] == ["file"]
        assert sync_sandbox.files.read(f"{workdir}/file") == "text"
        sync_sandbox.files.remove(f"{workdir}/file")
        assert not sync_sandbox.files.exists(f"{workdir}/file")

    await asyncio.to_thread(check)
