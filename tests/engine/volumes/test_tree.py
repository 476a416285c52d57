"""A volume's tree against contents that lead out of it, hang whoever looks, or change meanwhile."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ringfence.core.errors import VolumeError
from ringfence.engine.volumes.tree import MAX_DEPTH, VolumeTree, cleaned

OWN = {"uid": os.getuid() if os.getuid() < 65536 else 0, "gid": os.getgid() if os.getgid() < 65536 else 0}


class Volume:
    """A tree on a plain directory, with a secret beside it that nothing may reach."""

    def __init__(self, place: Path) -> None:
        self.files, self.staging, self.outside = place / "data", place / "staging", place / "outside"
        for path in (self.files, self.staging, self.outside):
            path.mkdir()
        (self.outside / "secret").write_text("secret")
        self._open = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (self.files, self.staging)]
        self.tree = VolumeTree(*self._open)

    def close(self) -> None:
        for descriptor in self._open:
            os.close(descriptor)

    def write(self, path: str, data: bytes = b"new", **options: Any) -> dict[str, Any]:
        descriptor, name = self.tree.stage()
        try:
            os.write(descriptor, data)
            options = {**OWN, "mode": 0o640, "overwrite": True, "parents": False, **options}
            return self.tree.publish(name, path, **options)
        finally:
            os.close(descriptor)
            self.tree.discard(name)

    def read(self, path: str) -> bytes:
        descriptor, entry = self.tree.open_file(path)
        with os.fdopen(descriptor, "rb") as file:
            data = file.read()
        assert len(data) == entry["size"]
        return data


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    made = Volume(tmp_path)
    yield made
    assert os.listdir(made.staging) == [], "something is left in the staging directory"
    assert sorted(os.listdir(made.outside)) == ["secret"]
    assert (made.outside / "secret").read_text() == "secret"
    made.close()


def refused(kind: str) -> Any:
    return pytest.raises(VolumeError, check=lambda error: error.kind == kind)


def test_files_and_directories(volume: Volume) -> None:
    made = volume.write("/a.txt", b"one", mode=0o600)
    assert (made["name"], made["path"], made["type"], made["size"]) == ("a.txt", "/a.txt", "file", 3)
    assert made["mode"] == 0o600
    assert volume.read("a.txt") == b"one"
    assert volume.tree.make_directory("/d", **OWN, mode=0o750, parents=False)["mode"] == 0o750
    volume.write("/d/b", b"x" * 10)
    os.symlink("b", volume.files / "d" / "link")
    listed = list(volume.tree.list("/", 2))
    assert [entry["path"] for entry in listed] == ["/a.txt", "/d", "/d/b", "/d/link"]
    assert listed[3]["type"] == "symlink"
    assert listed[3]["target"] == "b"
    assert [entry["path"] for entry in volume.tree.list("/", 1)] == ["/a.txt", "/d"]
    assert volume.tree.change("/d/link", None, None, 0o444)["mode"] == 0o444
    assert volume.tree.stat("/d/b")["mode"] == 0o444
    assert volume.tree.stat("/")["name"] == "/"
    volume.tree.remove("/d")
    assert os.listdir(volume.files) == ["a.txt"]


def test_what_is_missing_or_in_the_way(volume: Volume) -> None:
    volume.write("/file")
    for call in (volume.tree.stat, volume.tree.open_file, volume.tree.remove):
        with refused("missing"):
            call("/nope")
        with refused("invalid"):
            call("/file/below")
    with refused("missing"):
        volume.write("/no/such/directory")
    with refused("missing"):
        volume.tree.make_directory("/no/such", **OWN, mode=0o755, parents=False)
    with refused("exists"):
        volume.tree.make_directory("/file", **OWN, mode=0o755, parents=True)
    with refused("exists"):
        volume.write("/file", overwrite=False)
    assert volume.read("/file") == b"new"
    volume.tree.make_directory("/d/e/f", **OWN, mode=0o700, parents=True)
    assert volume.tree.stat("/d/e")["mode"] == 0o777
    assert volume.tree.make_directory("/d/e/f", **OWN, mode=0o755, parents=True)["mode"] == 0o700
    with refused("exists"):
        volume.tree.make_directory("/d/e/f", **OWN, mode=0o755, parents=False)
    with refused("invalid"):
        volume.write("/d/e")
    with refused("invalid"):
        volume.tree.open_file("/d")
    with refused("invalid"):
        list(volume.tree.list("/file", 1))
    for root in ("/", "", "..", "/d/.."):
        with refused("invalid"):
            volume.tree.remove(root)
    assert volume.write("/x/y/z", parents=True)["path"] == "/x/y/z"


@pytest.mark.parametrize("path", ["a\0b", "/" + "x/" * 3000, "/" + "n" * 300, "\ud800"])
def test_paths_that_cannot_be(volume: Volume, path: str) -> None:
    for call in (volume.tree.stat, volume.tree.open_file, volume.write):
        with refused("invalid"):
            call(path)


@pytest.mark.parametrize("depth", [0, -1, MAX_DEPTH + 1])
def test_depths_that_cannot_be(volume: Volume, depth: int) -> None:
    with refused("invalid"):
        list(volume.tree.list("/", depth))


@pytest.mark.parametrize("asked", [{"uid": -1}, {"gid": 65536}, {"mode": 0o10000}, {"mode": -1}])
def test_attributes_that_cannot_be(volume: Volume, asked: dict[str, int]) -> None:
    with refused("invalid"):
        volume.write("/f", **asked)
    assert os.listdir(volume.files) == []


def test_no_path_leads_out(volume: Volume) -> None:
    out = str(volume.outside)
    for number, target in enumerate(
        ("../outside", out, "/..", "../../../../../../../../" + out, "/proc/self/root")
    ):
        os.symlink(target, volume.files / f"link{number}")
    os.symlink("../outside/secret", volume.files / "file")
    os.symlink(out + "/secret", volume.files / "absolute")
    os.symlink("/proc/self/cwd", volume.files / "magic")
    for name in ("file", "absolute", "magic/x", *(f"link{number}/secret" for number in range(5))):
        for call in (volume.tree.open_file, lambda path: volume.tree.change(path, None, None, 0o777)):
            with pytest.raises(VolumeError):
                call(name)
    for path in ("../outside/secret", "/../../outside/secret", "a/../../outside/secret"):
        assert cleaned(path).endswith("/outside/secret")
        with refused("missing"):
            volume.tree.open_file(path)
    # To write over a link is to write to where it leads, within the volume.
    with refused("missing"):
        volume.write("/file")
    with refused("missing"):
        volume.write("/absolute")
    volume.tree.make_directory("/outside", **OWN, mode=0o755, parents=False)
    volume.write("/file", b"within")
    assert (volume.files / "outside" / "secret").read_text() == "within"
    assert os.path.islink(volume.files / "file")
    assert volume.read("/link0/secret") == b"within"


def test_links_that_go_round(volume: Volume) -> None:
    os.symlink("b", volume.files / "a")
    os.symlink("a", volume.files / "b")
    os.symlink(".", volume.files / "here")
    with refused("invalid"):
        volume.tree.open_file("/a")
    with refused("invalid"):
        volume.write("/a")
    with refused("invalid"):
        volume.write("/here")
    assert volume.tree.stat("/a")["target"] == "b"
    assert [entry["name"] for entry in volume.tree.list("/", 5)] == ["a", "b", "here"]


@pytest.mark.timeout(20)
def test_nothing_waits_for_a_pipe_or_a_socket(volume: Volume) -> None:
    os.mkfifo(volume.files / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(volume.files / "sock"))
    for name in ("pipe", "sock"):
        with refused("invalid"):
            volume.tree.open_file(name)
        assert volume.tree.stat(name)["type"] == "unknown"
    volume.write("/pipe", b"a file now")
    assert volume.read("/pipe") == b"a file now"
    volume.tree.remove("/sock")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a device")
def test_no_device_is_opened(volume: Volume) -> None:
    os.mknod(volume.files / "zero", 0o666 | 0o020000, os.makedev(1, 5))
    with refused("invalid"):
        volume.tree.open_file("zero")


def test_names_that_are_no_text(volume: Volume) -> None:
    name = os.fsdecode(b"\xff\xfe\n-rf *")
    volume.write(name, b"odd")
    (entry,) = volume.tree.list("/", 1)
    assert entry["name"] == name
    assert volume.read(name) == b"odd"
    volume.tree.remove(name)
    assert os.listdir(volume.files) == []


def test_directories_that_are_deep_and_closed(volume: Volume) -> None:
    top = os.open(volume.files, os.O_RDONLY)
    for _ in range(400):
        os.mkdir("d" * 50, dir_fd=top)
        below = os.open("d" * 50, os.O_RDONLY, dir_fd=top)
        os.close(top)
        top = below
    os.fchmod(top, 0)
    os.close(top)
    assert len(list(volume.tree.list("/", MAX_DEPTH))) == MAX_DEPTH
    volume.tree.remove("d" * 50)
    assert os.listdir(volume.files) == []


@pytest.mark.timeout(60)
def test_a_directory_that_turns_into_a_link_while_it_is_used(volume: Volume) -> None:
    """Whatever comes of each operation, it never reaches what the link leads to."""
    good, spare = volume.files / "good", volume.files / "spare"
    good.mkdir()
    (good / "secret").write_text("harmless")
    os.symlink(volume.outside, spare)
    stop = threading.Event()

    def swap() -> None:
        aside = volume.files / "aside"
        while not stop.is_set():
            good.rename(aside)
            spare.rename(good)
            good.rename(spare)
            aside.rename(good)

    swapper = threading.Thread(target=swap)
    swapper.start()
    done = 0
    try:
        for _ in range(150):
            for call in (
                lambda: volume.read("/good/secret") in (b"harmless", b"new") or pytest.fail("read outside"),
                lambda: volume.write("/good/secret"),
                lambda: volume.tree.change("/good/secret", None, None, 0o666),
                lambda: volume.tree.make_directory("/good/new", **OWN, mode=0o755, parents=False),
                lambda: volume.tree.remove("/good/new"),
                lambda: list(volume.tree.list("/", 3)),
            ):
                try:
                    call()
                    done += 1
                except VolumeError:
                    pass
    finally:
        stop.set()
        swapper.join()
    assert done > 50
