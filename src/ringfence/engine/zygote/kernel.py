"""The kernel zygote: a template's own Python with the template's packages imported, which forks kernel
nurseries.

It runs third-party code, so it holds no privilege on the host: it lives in the template's user namespace, in
a read-only view of the template's root, with its own (empty) network. It has power over the sandboxes of its
template only, which it needs to join them. This module runs in the template's Python, where no other part of
Ringfence is installed: it may import nothing but the standard library, `channel` and the isolation package.
"""

import contextlib
import errno
import functools
import importlib
import os
import select
import signal
import socket
import sys
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn

from ringfence.engine.isolation import capabilities, landlock, linux, rlimits, seccomp, userns
from ringfence.engine.zygote import channel

_KEPT = frozenset(capabilities.NUMBERS[name] for name in ("KILL", "SETGID", "SETUID", "SETPCAP"))
# What it takes to join a sandbox: its namespaces, then its ids. The joining child gets the rest in there.
_ZYGOTE_KEPT = _KEPT | {capabilities.NUMBERS[name] for name in ("SYS_ADMIN", "SYS_CHROOT")}
_OWN_PACKAGE = "ringfence"
_SANDBOX_IS_GONE = (
    errno.ENODEV,
    errno.ENOMEM,
    errno.ESRCH,
)  # join a dead cgroup, fork into a dead PID namespace


def serve(requests: socket.socket, program: bytes) -> None:
    """Preload as the first message says, then fork a nursery for each request until the launcher ends."""
    from ringfence_kernel import nursery, preload

    first, _ = channel.receive(requests)
    modules = first["preload"]
    later = _later_steps(modules, preload.preload) if first["gradual"] else deque()
    report = preload.preload(modules[:1] if later else modules)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks: the launcher adopts them
    channel.send(requests, {"ready": True, "report": report})
    while True:
        if later and not select.select([requests], [], [], 0)[0]:
            later.popleft()()
            continue
        try:
            request, fds = channel.receive(requests)
        except channel.ChannelClosedError:
            return
        if os.fork() == 0:
            requests.close()
            _join(request, fds, program, nursery.serve)
            os._exit(0)
        channel.close_all(fds)


def _later_steps(modules: list[str], preload: Callable[[list[str]], object]) -> deque[Callable[[], object]]:
    """What is left to warm up when the first module is there: one import at a time, between requests."""

    def load(name: str) -> None:
        with contextlib.suppress(Exception):  # the last step tries again and reports
            importlib.import_module(name)

    def finish() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        preload(modules)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    return deque([*(functools.partial(load, name) for name in modules[1:]), finish])


def _join(
    request: dict[str, Any], fds: list[int], program: bytes, run: Callable[[socket.socket], NoReturn]
) -> None:
    """Enter a sandbox and serve as its nursery.

    `fds`: its namespaces, its user namespace, the socket, the cgroups.
    """
    count = request["namespaces"]
    namespaces, (sandbox_ns, nursery), procs = fds[:count], fds[count : count + 2], fds[count + 2 :]
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for fd in procs:
            os.write(fd, b"0")
        for fd in namespaces:
            linux.setns(fd)
        if os.fork():
            return  # joining a PID namespace is for one's children
        os.setsid()
        os.chdir("/")
        userns.enter(sandbox_ns, 1000 if request["single_id"] else 0)
        _settle(nursery, request, program)
        _forget_ourselves()
        run(socket.socket(fileno=3))
    except BaseException as error:
        if not (isinstance(error, OSError) and error.errno in _SANDBOX_IS_GONE):
            with contextlib.suppress(Exception):
                traceback.print_exc()
        os._exit(1)


def _settle(nursery: int, request: dict[str, Any], program: bytes) -> None:
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1) if request["debug"] else (0, 1, 2):
        os.dup2(null, fd)
    if nursery != 3:
        os.dup2(nursery, 3)
    linux.close_range(4)
    rlimits.apply(request["limits"], bound_memory=request["bound_memory"])
    capabilities.drop(keep=_KEPT)
    capabilities.no_new_privs()
    landlock.restrict([landlock.PathRule("/", landlock.ALL)], scopes=0)
    seccomp.install(program, request["filter_flags"])


def _forget_ourselves() -> None:
    # The user's Python is the template's: none of our modules, and no path to them.
    for name in [name for name in sys.modules if name == _OWN_PACKAGE or name.startswith(_OWN_PACKAGE + ".")]:
        del sys.modules[name]
    sys.path[:] = [entry for entry in sys.path if entry != CODE_PATH]


CODE_PATH = "/run/ringfence"


def main() -> None:
    """Entry point; argv: the channel's descriptor, the descriptor of a file with the seccomp program."""
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with open(int(sys.argv[2]), "rb") as file:
        program = file.read()
    _confine()
    fd = int(sys.argv[1])
    sys.argv[:] = [""]
    serve(socket.socket(fileno=fd), program)


def _confine() -> None:
    """Before any third-party code runs: only the power to join sandboxes is left, and their filter."""
    capabilities.drop(keep=_ZYGOTE_KEPT)
    capabilities.no_new_privs()
    seccomp.install(seccomp.build(policy=seccomp.ZYGOTE))
