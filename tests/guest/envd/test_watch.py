import asyncio
import itertools
import os
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from e2b import (
    AsyncSandbox,
    FileNotFoundException,
    FilesystemEvent,
    FilesystemEventType,
    InvalidArgumentException,
    Sandbox,
    SandboxException,
)

CREATE, WRITE, CHMOD = FilesystemEventType.CREATE, FilesystemEventType.WRITE, FilesystemEventType.CHMOD
REMOVE, RENAME = FilesystemEventType.REMOVE, FilesystemEventType.RENAME


def pairs(events: list[FilesystemEvent]) -> list[tuple[str, FilesystemEventType]]:
    return [(event.name, event.type) for event in events]


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not check():
            await asyncio.sleep(0.01)


async def test_stream_of_a_fresh_upload(sandbox: AsyncSandbox, workdir: Path) -> None:
    seen: list[FilesystemEvent] = []
    handle = await sandbox.files.watch_dir(str(workdir), on_event=seen.append)
    await sandbox.files.write(f"{workdir}/file", "x")
    await until(lambda: len(seen) >= 3)
    assert pairs(seen) == [("file", CREATE), ("file", CHMOD), ("file", WRITE)]
    await handle.stop()


async def test_polling_sees_what_was_just_written(sync_sandbox: Sandbox, workdir: Path) -> None:
    def check() -> None:
        handle = sync_sandbox.files.watch_dir(str(workdir))
        for number in range(10):
            sync_sandbox.files.write(f"{workdir}/file{number}", "x")
            name = f"file{number}"
            assert pairs(handle.get_new_events()) == [(name, CREATE), (name, CHMOD), (name, WRITE)]
        assert handle.get_new_events() == []
        handle.stop()
        with pytest.raises(SandboxException):
            handle.get_new_events()

    await asyncio.to_thread(check)


async def test_every_kind(sync_sandbox: Sandbox, workdir: Path) -> None:
    (workdir / "old").touch()
    (workdir / "gone").touch()

    def check() -> None:
        handle = sync_sandbox.files.watch_dir(str(workdir))
        (workdir / "old").rename(workdir / "new")
        (workdir / "gone").unlink()
        (workdir / "new").chmod(0o600)
        (workdir / "new").write_text("x")
        (workdir / "below").mkdir()
        (workdir / "below" / "unseen").touch()
        seen = pairs(handle.get_new_events())
        # Truncating and writing are two events, or one if the kernel could join them.
        assert [event for event, _ in itertools.groupby(seen)] == [
            ("old", RENAME),
            ("new", CREATE),
            ("gone", REMOVE),
            ("new", CHMOD),
            ("new", WRITE),
            ("below", CREATE),
        ]
        handle.stop()

    await asyncio.to_thread(check)


async def test_recursive_follows_new_directories(sync_sandbox: Sandbox, workdir: Path) -> None:
    (workdir / "there" / "deep").mkdir(parents=True)

    def check() -> None:
        handle = sync_sandbox.files.watch_dir(str(workdir), recursive=True)
        (workdir / "there" / "deep" / "a").touch()
        (workdir / "made" / "below").mkdir(parents=True)
        (workdir / "made" / "below" / "b").touch()
        (workdir / "made" / "below" / "full").write_text("written before anybody could watch")
        first = pairs(handle.get_new_events())
        assert ("there/deep/a", CREATE) in first
        assert first.count(("made", CREATE)) == 1
        assert first.count(("made/below", CREATE)) == 1
        assert first.count(("made/below/b", CREATE)) == 1
        assert ("made/below/b", WRITE) not in first
        assert first.index(("made/below/full", CREATE)) < first.index(("made/below/full", WRITE))
        (workdir / "made" / "below" / "c").touch()
        assert pairs(handle.get_new_events())[0] == ("made/below/c", CREATE)
        handle.stop()

    await asyncio.to_thread(check)


async def test_entries(sync_sandbox: Sandbox, workdir: Path) -> None:
    def check() -> None:
        handle = sync_sandbox.files.watch_dir(str(workdir), include_entry=True)
        (workdir / "file").write_text("12345")
        created, *_, written = handle.get_new_events()
        assert created.entry is not None and created.entry.path == f"{workdir}/file"
        assert written.entry is not None and written.entry.size == 5
        (workdir / "file").unlink()
        assert [event.entry for event in handle.get_new_events() if event.type is REMOVE] == [None]
        handle.stop()

    await asyncio.to_thread(check)


async def test_what_cannot_be_watched(sandbox: AsyncSandbox, workdir: Path) -> None:
    (workdir / "file").touch()
    with pytest.raises(FileNotFoundException):
        await sandbox.files.watch_dir(f"{workdir}/none", on_event=print)
    with pytest.raises(InvalidArgumentException):
        await sandbox.files.watch_dir(f"{workdir}/file", on_event=print)


async def test_unknown_watcher(http: httpx.AsyncClient) -> None:
    for method in ("GetWatcherEvents", "RemoveWatcher"):
        answer = await http.post(f"/filesystem.Filesystem/{method}", json={"watcherId": "w1"})
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_too_many_watchers(http: httpx.AsyncClient, workdir: Path) -> None:
    made, answer = [], None
    for _ in range(65):
        answer = await http.post("/filesystem.Filesystem/CreateWatcher", json={"path": str(workdir)})
        if answer.status_code == 200:
            made.append(answer.json()["watcherId"])
    assert answer is not None
    assert (answer.status_code, answer.json()["code"]) == (429, "resource_exhausted")
    for watcher_id in made:
        await http.post("/filesystem.Filesystem/RemoveWatcher", json={"watcherId": watcher_id})


async def test_a_flood_of_events_is_an_error(http: httpx.AsyncClient, workdir: Path) -> None:
    answer = await http.post("/filesystem.Filesystem/CreateWatcher", json={"path": str(workdir)})
    selected = {"watcherId": answer.json()["watcherId"]}
    (workdir / "a").touch()
    for number in range(6000):
        os.rename(workdir / f"{'ab'[number % 2]}", workdir / f"{'ba'[number % 2]}")
    answer = await http.post("/filesystem.Filesystem/GetWatcherEvents", json=selected)
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    await http.post("/filesystem.Filesystem/RemoveWatcher", json=selected)


async def test_closed_streams_free_their_watch(envd, sandbox: AsyncSandbox, workdir: Path) -> None:
    def watches() -> int:
        links = [os.readlink(link) for link in Path(f"/proc/{envd.pid}/fd").iterdir() if link.is_symlink()]
        return links.count("anon_inode:inotify")

    before = watches()
    handle = await sandbox.files.watch_dir(str(workdir), on_event=print)
    assert watches() == before + 1
    await handle.stop()
    await until(lambda: watches() == before)
