"""Run a function in a forked child: isolation calls are one-way, so each test spends a process on them."""

import contextlib
import os
import pickle
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ringfence.engine.isolation import linux

ORDINARY_UID = 65534


class ChildError(AssertionError):
    """The child raised; the message is its traceback."""


def _child(function: Callable[..., Any], args: tuple[Any, ...], uid: int | None, fd: int) -> None:
    try:
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        if uid is not None:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            linux.prctl(linux.PR_SET_DUMPABLE, 1)  # or /proc/self would belong to root
        answer = pickle.dumps((True, function(*args)))
    except BaseException:
        answer = pickle.dumps((False, traceback.format_exc()))
    while answer:
        answer = answer[os.write(fd, answer) :]


def run_in_child(function: Callable[..., Any], *args: Any, uid: int | None = None) -> Any:
    """Call `function` in a forked child (as `uid` if given); return its result, or its death signal as -N."""
    # Not a pipe: one would stay open with every process that the child leaves behind.
    answer = os.memfd_create("answer")
    pid = os.fork()
    if pid == 0:
        try:
            os.setpgid(0, 0)
            _child(function, args, uid, answer)
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    with open(answer, "rb") as stream:
        stream.seek(0)
        answered = stream.read()
    if os.WIFSIGNALED(status):
        return -os.WTERMSIG(status)
    good, value = pickle.loads(answered)
    if not good:
        raise ChildError(value)
    return value


@pytest.fixture
def in_child() -> Callable[..., Any]:
    return run_in_child


@pytest.fixture
def as_user() -> Callable[..., Any]:
    """Like `in_child`, but as an ordinary user; needs root when the tests themselves are not run by one."""
    uid = ORDINARY_UID if os.geteuid() == 0 else None
    return lambda function, *args: run_in_child(function, *args, uid=uid)


def enter_user_namespace(flags: int = 0, inside: int = 0) -> None:
    """Become uid `inside` of a new user namespace, and enter what else `flags` name."""
    uid, gid = os.geteuid(), os.getegid()
    linux.unshare(linux.CLONE_NEWUSER | flags)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{inside} {uid} 1"),
        ("gid_map", f"{inside} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    if flags & linux.CLONE_NEWNS:
        linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)


@pytest.fixture
def user_namespace() -> Callable[..., None]:
    return enter_user_namespace


@pytest.fixture
def public_dir() -> Iterator[Path]:
    """A directory that an ordinary user can enter and write; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o777)
        yield directory
