"""Files of the host that several sandboxes are given: none can notice what another does with one."""

import fcntl
import os
import select
from ctypes import CDLL
from pathlib import Path

import pytest

from ringfence.engine.isolation import mounts

F_SETLEASE = 1024
IN_ALL_EVENTS = 0xFFF
LIBC = CDLL(None, use_errno=True)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root, or a launcher, mounts")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a:b").mkdir()
    (tmp_path / "a:b" / "states").write_bytes(b"contents")
    return tmp_path / "a:b"


def test_each_has_an_inode_of_its_own(directory: Path) -> None:
    path = directory / "states"
    before = path.stat()
    one, other = (mounts.open_file(str(directory), "states", str(directory.parent / "empty")) for _ in "ab")
    watch = LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        assert LIBC.inotify_add_watch(watch, f"/proc/self/fd/{other}".encode(), IN_ALL_EVENTS) > 0
        fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(one, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.fcntl(one, F_SETLEASE, fcntl.F_RDLCK)
        with open(f"/proc/self/fd/{one}", "rb") as again:  # a path that its owner has
            assert again.read() == b"contents"
        assert not select.select([watch], [], [], 0)[0], "nobody else sees that"
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nor has the host's own been locked
        assert path.stat().st_atime_ns == before.st_atime_ns
        assert os.pread(other, 100, 0) == b"contents"
        assert select.select([watch], [], [], 0)[0], "one's own are seen"
        for mode in (os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
            with pytest.raises(OSError, match="Read-only"):
                os.close(os.open(f"/proc/self/fd/{one}", mode))
    finally:
        for fd in (one, other, watch):
            os.close(fd)
