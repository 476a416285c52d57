"""Files in real sandboxes: reading, writing, listing, moving, watching, signed addresses, metadata."""

from __future__ import annotations

import asyncio
import gzip
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pytest
from e2b import (
    AuthenticationException,
    FileNotFoundException,
    FilesystemEventType,
    FileType,
    InvalidArgumentException,
    NotFoundException,
    SandboxException,
)
from e2b.sandbox.filesystem.filesystem import WriteEntry

if TYPE_CHECKING:
    from tests.conformance.conftest import Face


@pytest.mark.not_under_gvisor("Debian 12's runsc does not know a flag that stat of coreutils uses")
async def test_write_and_read(sdk: Face, box: Any) -> None:
    written = await sdk(box.files.write, "hello.txt", "Hello, wörld")
    assert (written.path, written.name, written.type) == ("/home/user/hello.txt", "hello.txt", FileType.FILE)
    assert await sdk(box.files.read, "hello.txt") == "Hello, wörld"
    assert await sdk(box.files.read, "/home/user/hello.txt", format="bytes") == "Hello, wörld".encode()
    assert (await sdk(box.commands.run, "stat -c '%U %G %a' hello.txt")).stdout == "user user 644\n"
    await sdk(box.files.write, "hello.txt", b"short")
    assert await sdk(box.files.read, "~/hello.txt") == "short"


async def test_streams(sdk: Face, box: Any) -> None:
    content = bytes(range(256)) * 8192
    await sdk(box.files.write, "big.bin", BytesIO(content))
    if sdk.name == "sync":
        read = await asyncio.to_thread(lambda: b"".join(box.files.read("big.bin", format="stream")))
    else:
        read = b"".join([chunk async for chunk in await box.files.read("big.bin", format="stream")])
    assert read == content


async def test_empty_and_missing(sdk: Face, box: Any) -> None:
    await sdk(box.files.write, "empty", "")
    assert await sdk(box.files.read, "empty") == ""
    with pytest.raises(FileNotFoundException):
        await sdk(box.files.read, "no/such/file")
    with pytest.raises(InvalidArgumentException):
        await sdk(box.files.read, "/home/user")
    with pytest.raises(AuthenticationException, match="nobodysuch"):
        await sdk(box.files.read, "empty", user="nobodysuch")


async def test_gzip(sdk: Face, box: Any) -> None:
    content = "the same again and again\n" * 5000
    await sdk(box.files.write, "zipped.txt", content, gzip=True)
    assert await sdk(box.files.read, "zipped.txt", gzip=True) == content
    assert await sdk(box.files.read, "zipped.txt") == content
    assert (await sdk(box.files.get_info, "zipped.txt")).size == len(content)


async def test_many_at_once(sdk: Face, box: Any) -> None:
    assert await sdk(box.files.write_files, []) == []
    entries = [WriteEntry(path=f"many/{n}/file.txt", data=f"content {n}") for n in range(20)]
    written = await sdk(box.files.write_files, entries)
    assert [info.path for info in written] == [f"/home/user/many/{n}/file.txt" for n in range(20)]
    assert await sdk(box.files.read, "many/7/file.txt") == "content 7"


async def test_other_users(sdk: Face, box: Any) -> None:
    await sdk(box.files.write, "secret.txt", "root's", user="root")
    assert await sdk(box.files.read, "/root/secret.txt", user="root") == "root's"
    assert (await sdk(box.files.get_info, "secret.txt", user="root")).owner == "root"
    await sdk(box.files.make_dir, "/tmp/of-root", user="root")
    assert (await sdk(box.files.get_info, "/tmp/of-root")).group == "root"


async def test_info(sdk: Face, box: Any) -> None:
    await sdk(box.files.write, "dir/test.txt", "test")
    info = await sdk(box.files.get_info, "dir/test.txt")
    assert (info.name, info.path, info.type) == ("test.txt", "/home/user/dir/test.txt", FileType.FILE)
    assert (info.size, info.mode, info.permissions) == (4, 0o644, "-rw-r--r--")
    assert (info.owner, info.group) == ("user", "user")
    assert info.modified_time is not None
    assert info.symlink_target is None
    directory = await sdk(box.files.get_info, "dir")
    assert (directory.type, directory.mode, directory.permissions) == (FileType.DIR, 0o755, "drwxr-xr-x")
    assert directory.size > 0
    await sdk(box.commands.run, "ln -s test.txt link; ln -s nowhere dangling", cwd="/home/user/dir")
    link = await sdk(box.files.get_info, "dir/link")
    assert link.symlink_target == "/home/user/dir/test.txt"
    with pytest.raises(FileNotFoundException):
        await sdk(box.files.get_info, "dir/none")


async def test_listing(sdk: Face, box: Any) -> None:
    for path in ("top/one/deep/file", "top/two/file", "top/zero"):
        await sdk(box.files.write, path, "x")

    async def names(depth: int | None = None) -> list[str]:
        options = {} if depth is None else {"depth": depth}
        return [
            entry.path.removeprefix("/home/user/top/")
            for entry in await sdk(box.files.list, "top", **options)
        ]

    assert await names() == ["one", "two", "zero"]
    assert await names(2) == ["one", "one/deep", "two", "two/file", "zero"]
    assert await names(9) == ["one", "one/deep", "one/deep/file", "two", "two/file", "zero"]
    with pytest.raises(InvalidArgumentException):
        await names(0)
    with pytest.raises(InvalidArgumentException):
        await sdk(box.files.list, "top/zero")
    with pytest.raises(FileNotFoundException):
        await sdk(box.files.list, "none")


async def test_making_removing_moving(sdk: Face, box: Any) -> None:
    assert await sdk(box.files.make_dir, "a/b/c") is True
    assert await sdk(box.files.make_dir, "a/b/c") is False
    await sdk(box.files.write, "a/file", "x")
    with pytest.raises(SandboxException):
        await sdk(box.files.make_dir, "a/file")
    moved = await sdk(box.files.rename, "a/file", "else/where")
    assert (moved.path, moved.name) == ("/home/user/else/where", "where")
    assert await sdk(box.files.exists, "else/where")
    assert not await sdk(box.files.exists, "a/file")
    with pytest.raises(FileNotFoundException):
        await sdk(box.files.rename, "a/file", "b")
    await sdk(box.files.remove, "a")
    await sdk(box.files.remove, "a")
    assert not await sdk(box.files.exists, "a")


@pytest.mark.not_under_gvisor("its files have no attributes of users")
async def test_metadata(sdk: Face, box: Any) -> None:
    written = await sdk(box.files.write, "tagged", "x", metadata={"Key": "value", "other": "two words"})
    assert written.metadata == {"key": "value", "other": "two words"}
    assert (await sdk(box.files.get_info, "tagged")).metadata == written.metadata
    (entry,) = [found for found in await sdk(box.files.list, "/home/user") if found.name == "tagged"]
    assert entry.metadata == written.metadata
    await sdk(box.files.rename, "tagged", "renamed")
    assert (await sdk(box.files.get_info, "renamed")).metadata == written.metadata
    await sdk(box.files.write, "renamed", "y")
    assert not (await sdk(box.files.get_info, "renamed")).metadata


def fetch(url: str, data: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    request = urllib.request.Request(url, data=data, headers=headers)
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


async def test_signed_downloads(sdk: Face, box: Any) -> None:
    await sdk(box.files.write, "signed ü.txt", "for all who have the address")
    for expiration in (None, 120):
        options = {} if expiration is None else {"use_signature_expiration": expiration}
        url = box.download_url("signed ü.txt", "user", **options)
        assert await asyncio.to_thread(fetch, url) == (200, b"for all who have the address")
    expired = box.download_url("signed ü.txt", "user", use_signature_expiration=-120)
    status, body = await asyncio.to_thread(fetch, expired)
    assert (status, json.loads(body)) == (401, {"code": 401, "message": "signature is already expired"})
    assert (await asyncio.to_thread(fetch, box.download_url("other.txt") + "x"))[0] == 401


async def test_signed_uploads(sdk: Face, box: Any) -> None:
    url = box.upload_url("uploaded.txt", "user", use_signature_expiration=60)
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nsent\r\n--b--\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    status, body = await asyncio.to_thread(fetch, url, form, **headers)
    assert (status, json.loads(body)) == (
        200, [{"path": "/home/user/uploaded.txt", "name": "uploaded.txt", "type": "file"}],
    )  # fmt: skip
    zipped = box.upload_url("zipped.txt", "user")
    headers = {"Content-Type": "application/octet-stream", "Content-Encoding": "gzip"}
    assert (await asyncio.to_thread(fetch, zipped, gzip.compress(b"packed"), **headers))[0] == 200
    assert await sdk(box.files.read, "uploaded.txt") == "sent"
    assert await sdk(box.files.read, "zipped.txt") == "packed"
    assert (await asyncio.to_thread(fetch, box.download_url("uploaded.txt"), form, **headers))[0] == 401


@pytest.mark.not_under_gvisor("there is no boot id")
async def test_files_of_proc(sdk: Face, box: Any) -> None:
    boot_id = await sdk(box.files.read, "/proc/sys/kernel/random/boot_id")
    assert len(boot_id.strip()) == 36
    assert (await sdk(box.files.read, "/proc/sys/kernel/random/boot_id")) == boot_id


async def watching(sdk: Face, box: Any, path: str, **options: Any) -> tuple[Any, Callable[[], Any]]:
    """A watch, and a function that gives what happened until now."""
    if sdk.name == "sync":
        handle = await sdk(box.files.watch_dir, path, **options)

        async def polled() -> list[Any]:
            return list(await sdk(handle.get_new_events))

        return handle, polled
    seen: list[Any] = []
    handle = await box.files.watch_dir(path, on_event=seen.append, **options)

    async def heard() -> list[Any]:
        await asyncio.sleep(0.2)
        found, seen[:] = list(seen), []
        return found

    return handle, heard


async def test_watching(sdk: Face, box: Any) -> None:
    await sdk(box.files.make_dir, "watched")
    handle, events = await watching(sdk, box, "watched")
    await sdk(box.files.write, "watched/new.txt", "content")
    found = await events()
    assert [(event.type, event.name) for event in found] == [
        (FilesystemEventType.CREATE, "new.txt"),
        (FilesystemEventType.CHMOD, "new.txt"),
        (FilesystemEventType.WRITE, "new.txt"),
    ]
    await sdk(box.files.rename, "watched/new.txt", "watched/renamed.txt")
    assert FilesystemEventType.RENAME in [event.type for event in await events()]
    await sdk(box.files.remove, "watched/renamed.txt")
    assert [event.type for event in await events()] == [FilesystemEventType.REMOVE]
    await sdk(handle.stop)


async def test_watching_recursively(sdk: Face, box: Any) -> None:
    await sdk(box.files.make_dir, "watched/old")
    handle, events = await watching(sdk, box, "watched", recursive=True)
    await sdk(box.files.write, "watched/old/file", "x")
    await sdk(box.files.make_dir, "watched/new")
    names = {(event.type, event.name) for event in await events()}
    await sdk(box.files.write, "watched/new/file", "x")
    names |= {(event.type, event.name) for event in await events()}
    assert {
        (FilesystemEventType.WRITE, "old/file"),
        (FilesystemEventType.CREATE, "new"),
        (FilesystemEventType.WRITE, "new/file"),
    } <= names
    await sdk(handle.stop)


async def test_watching_with_entries(sdk: Face, box: Any) -> None:
    await sdk(box.files.make_dir, "watched")
    handle, events = await watching(sdk, box, "watched", include_entry=True)
    await sdk(box.files.write, "watched/file", "1234")
    written = [event for event in await events() if event.type == FilesystemEventType.WRITE]
    assert (written[0].entry.path, written[0].entry.size) == ("/home/user/watched/file", 4)
    await sdk(handle.stop)


async def test_what_cannot_be_watched(sdk: Face, box: Any) -> None:
    await sdk(box.files.write, "file", "x")
    with pytest.raises(SandboxException):
        await watching(sdk, box, "file")
    with pytest.raises(NotFoundException):
        await watching(sdk, box, "nowhere")


async def test_a_full_disk(sdk: Face, box: Any) -> None:
    free = int((await sdk(box.commands.run, "df --output=avail -B1 /home/user | tail -1")).stdout)
    fill = f"fallocate -l {free - (1 << 20)} filler"
    await sdk(box.commands.run, fill)
    with pytest.raises(SandboxException, match=r"507|space|storage"):
        await sdk(box.files.write, "toobig", b"x" * (4 << 20))
    await sdk(box.files.remove, "filler")
    await sdk(box.files.write, "toobig", b"x" * (4 << 20))
