import errno
import os
import signal
from pathlib import Path

import pytest

from ringfence.engine.isolation import linux

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts on the host need root")


def test_an_error_names_the_call_and_the_target(tmp_path):
    with pytest.raises(OSError, match=r"mount tmpfs on .*/absent: ") as caught:
        linux.mount("tmpfs", tmp_path / "absent", "tmpfs")
    assert caught.value.errno in (errno.ENOENT, errno.EPERM)


def test_an_error_has_the_subclass_of_its_errno():
    with pytest.raises(ProcessLookupError, match="pidfd_open pid 4194304"):
        linux.pidfd_open(4194304)


def test_mount_and_umount_in_an_own_namespace(as_user, user_namespace):
    def work():
        user_namespace(linux.CLONE_NEWNS)
        linux.mount("tmpfs", "/tmp", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "size=64k,mode=755")
        (Path("/tmp") / "file").write_text("x")
        seen = os.listdir("/tmp")
        linux.umount("/tmp", linux.MNT_DETACH)
        return seen, "file" in os.listdir("/tmp")

    assert as_user(work) == (["file"], False)


def test_pivot_root_leaves_nothing_of_the_old_root(as_user, user_namespace):
    def work():
        user_namespace(linux.CLONE_NEWNS)
        linux.mount("tmpfs", "/mnt", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "size=64k,mode=755")
        os.chdir("/mnt")
        linux.pivot_root(".", ".")
        linux.umount(".", linux.MNT_DETACH)
        os.chdir("/")
        return os.listdir("/")

    assert as_user(work) == []


@needs_root
def test_the_new_mount_api_makes_and_attaches_a_read_only_tmpfs(in_child):
    def work():
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
        fs = linux.fsopen("tmpfs")
        linux.fsconfig(fs, linux.FSCONFIG_SET_STRING, "size", "64k")
        linux.fsconfig(fs, linux.FSCONFIG_CMD_CREATE)
        tree = linux.fsmount(fs, linux.MOUNT_ATTR_NOSUID)
        linux.move_mount(tree, "", linux.AT_FDCWD, "/mnt")
        Path("/mnt/before").touch()
        copy = linux.open_tree(linux.AT_FDCWD, "/mnt", linux.OPEN_TREE_CLONE)
        linux.mount_setattr(copy, attr_set=linux.MOUNT_ATTR_RDONLY)
        linux.move_mount(copy, "", linux.AT_FDCWD, "/mnt")
        try:
            Path("/mnt/after").touch()
        except OSError as error:
            return os.listdir("/mnt"), error.errno

    assert in_child(work) == (["before"], errno.EROFS)


def test_setns_joins_the_namespace_of_a_pidfd(as_user):
    def work():
        linux.unshare(linux.CLONE_NEWUSER)
        ready, done = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
            linux.unshare(linux.CLONE_NEWUTS)
            os.write(ready[1], b"x")
            os.read(done[0], 1)
            os._exit(0)
        os.read(ready[0], 1)
        before = os.readlink("/proc/self/ns/uts")
        linux.setns(linux.pidfd_open(pid), linux.CLONE_NEWUTS)
        joined = os.readlink("/proc/self/ns/uts")
        theirs = os.readlink(f"/proc/{pid}/ns/uts")
        os.write(done[1], b"x")
        os.waitpid(pid, 0)
        return joined == theirs, joined != before

    assert as_user(work) == (True, True)


def test_a_pidfd_signals_its_process_and_no_later_one(in_child):
    def work():
        pid = os.fork()
        if pid == 0:
            linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
            signal.pause()
        fd = linux.pidfd_open(pid)
        linux.pidfd_send_signal(fd, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        with pytest.raises(ProcessLookupError):
            linux.pidfd_send_signal(fd, signal.SIGKILL)
        return os.WTERMSIG(status)

    assert in_child(work) == signal.SIGKILL


def test_close_range_closes_from_the_given_number_on(in_child):
    def work():
        top = os.dup(0)
        high = os.open("/dev/null", os.O_RDONLY)
        keep = os.dup2(high, 200)
        for fd in (300, 301):
            os.dup2(high, fd)
        linux.close_range(keep + 1)
        return top >= 0, [fd for fd in (200, 300, 301) if os.path.exists(f"/proc/self/fd/{fd}")]

    assert in_child(work) == (True, [200])


def test_openat2_refuses_to_leave_the_directory(tmp_path):
    root = os.open(tmp_path, os.O_PATH)
    try:
        with pytest.raises(OSError, match="openat2 /etc/passwd"):
            linux.openat2(root, "/etc/passwd", os.O_RDONLY, resolve=0x10)  # RESOLVE_IN_ROOT
    finally:
        os.close(root)


def test_capget_agrees_with_proc():
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    effective, permitted, inheritable = linux.capget()
    assert [effective, permitted, inheritable] == [int(status[f"Cap{x}"], 16) for x in ("Eff", "Prm", "Inh")]


def test_prctl_returns_its_value_and_names_its_operation():
    assert linux.prctl(linux.PR_GET_DUMPABLE) in (0, 1, 2)
    with pytest.raises(OSError, match="prctl 99999: Invalid argument"):
        linux.prctl(99999)
