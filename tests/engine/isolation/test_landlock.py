import errno
import os
import signal
import socket
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from ringfence.engine.isolation import capabilities, landlock, linux

ABI = landlock.abi()
needs = {version: pytest.mark.skipif(version > ABI, reason=f"needs ABI {version}") for version in range(1, 8)}


def attempt(action):
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"


def test_the_abi_is_a_number_and_its_rights_grow_with_it():
    assert ABI >= 0
    rights = [landlock.file_rights(version) for version in range(0, 9)]
    assert rights[:2] == [0, 0]
    assert all(earlier & ~later == 0 for earlier, later in pairwise(rights))
    assert rights[-1] == landlock.ALL == 0xFFFF


@needs[2]
def test_only_the_allowed_paths_can_be_written(as_user, public_dir):
    inside, outside = public_dir / "in", public_dir / "out"
    for directory in (inside, outside):
        directory.mkdir()
        directory.chmod(0o777)

    def work(confined):
        if confined:
            capabilities.no_new_privs()
            rules = [landlock.PathRule("/", landlock.READ), landlock.PathRule(str(inside), landlock.ALL)]
            landlock.restrict(rules)
        return [
            attempt(lambda: (inside / f"a{confined}").write_text("x")),
            attempt(lambda: (inside / "sub").mkdir(exist_ok=True)),
            attempt(lambda: (inside / f"a{confined}").rename(inside / "sub" / "moved")),
            attempt(lambda: (outside / f"b{confined}").write_text("x")),
            attempt(lambda: Path("/etc/hostname").read_text()),
        ]

    assert as_user(work, False) == ["done"] * 5
    assert as_user(work, True) == ["done", "done", "done", "EACCES", "done"]


@needs[2]
def test_a_path_without_a_rule_cannot_be_read(as_user):
    def work():
        capabilities.no_new_privs()
        landlock.restrict([landlock.PathRule("/usr"), landlock.PathRule("/dev/null", landlock.ALL)])
        return [
            attempt(lambda: Path("/etc/hostname").read_text()),
            attempt(lambda: os.listdir("/")),
            attempt(lambda: os.listdir("/usr")),
            attempt(lambda: Path("/dev/null").write_text("x")),
            attempt(lambda: Path("/dev/zero").read_bytes),
        ]

    assert as_user(work) == ["EACCES", "EACCES", "done", "done", "done"]


@needs[4]
def test_only_the_allowed_ports_can_be_used(in_child, as_user):
    def work(confined):
        if confined:
            capabilities.no_new_privs()
            landlock.restrict(ports=[landlock.PortRule(9, landlock.CONNECT_TCP)])
        with socket.socket() as first, socket.socket() as second, socket.socket() as third:
            return [
                attempt(lambda: first.connect(("127.0.0.1", 9))),
                attempt(lambda: second.connect(("127.0.0.1", 10))),
                attempt(lambda: third.bind(("127.0.0.1", 0))),
            ]

    assert as_user(work, False) == ["ECONNREFUSED", "ECONNREFUSED", "done"]
    assert as_user(work, True) == ["ECONNREFUSED", "EACCES", "EACCES"]


@needs[6]
def test_signals_do_not_leave_the_scope(as_user):
    def work(confined):
        outsider = os.fork()
        if outsider == 0:
            linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
            signal.pause()
        if confined:
            capabilities.no_new_privs()
            landlock.restrict()
        insider = os.fork()
        if insider == 0:
            linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
            signal.pause()
        return [attempt(partial(os.kill, pid, signal.SIGKILL)) for pid in (outsider, insider)]

    assert as_user(work, False) == ["done", "done"]
    assert as_user(work, True) == ["EPERM", "done"]


@needs[6]
def test_abstract_sockets_of_others_are_out_of_reach(as_user):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0" + f"ringfence-test-{os.getpid()}")
        server.listen()

        def work(confined):
            if confined:
                capabilities.no_new_privs()
                landlock.restrict()
            with socket.socket(socket.AF_UNIX) as client:
                return attempt(lambda: client.connect(server.getsockname()))

        assert as_user(work, False) == "done"
        assert as_user(work, True) == "EPERM"


def test_an_older_kernel_gets_what_it_knows_and_strict_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    assert landlock.restrict([landlock.PathRule("/")]) == 0
    with pytest.raises(OSError, match=r"Landlock ABI 6 \(Linux 6.12\) is needed, this kernel has 0"):
        landlock.restrict([landlock.PathRule("/")], strict=True)


@needs[6]
@pytest.mark.parametrize("pretended", [2, 3, 4, 5])
def test_the_masks_of_older_abis_are_valid(as_user, monkeypatch, pretended):
    monkeypatch.setattr(landlock, "abi", lambda: pretended)

    def work():
        capabilities.no_new_privs()
        return landlock.restrict([landlock.PathRule("/")], [landlock.PortRule(80, landlock.BIND_TCP)])

    assert as_user(work) == pretended


@needs[2]
def test_a_rule_for_a_missing_path_is_an_error(as_user):
    def work():
        capabilities.no_new_privs()
        return attempt(lambda: landlock.restrict([landlock.PathRule("/no/such/path")]))

    assert as_user(work) == "ENOENT"
