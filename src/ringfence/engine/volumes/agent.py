"""The agent of a volume: a process that holds its files and nothing else, and does what the content API asks.

The launcher forks it. It is the root of a user namespace of its own, with host ids that nobody else has, its
root directory is the volume, it has no network, and it keeps five capabilities over the volume's files. Each
request comes with the socket for its answer, and is worked on by a fork: so a slow one holds nobody up, and a
client that hangs up ends only its own.

- ``stat``, ``mkdir``, ``change``: answered by ``entry``;
- ``list``: by ``entries``, in parts, then ``done``;
- ``remove``: by ``done``;
- ``read``: by ``entry``, with the open file beside it;
- ``write``: by an open file; after ``publish`` on the same socket, by its ``entry``. Without that nothing is
  kept.

An error is answered by ``error`` and ``kind``.
"""

import contextlib
import os
import resource
import signal
import socket
from typing import Any

from ringfence.core.errors import VolumeError
from ringfence.engine.isolation import capabilities, landlock, linux, seccomp, userns
from ringfence.engine.launcher import treecopy
from ringfence.engine.volumes.tree import VolumeTree
from ringfence.engine.zygote import channel

FILES, STAGING = "data", "staging"
"""Names of the two directories at the top of a volume."""
_KEPT = frozenset(
    capabilities.NUMBERS[name] for name in ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETPCAP")
)
_MAX_MEMORY = 1 << 30
_MAX_PROCESSES = 64
_MAX_OPEN = 64
_PART_BYTES = 48 * 1024
_ENTRY_BYTES = 200


def run(requests: socket.socket, volume: int, namespace: int, program: bytes, *, single_id: bool) -> None:
    """Become the agent of the volume whose top is open as `volume`; returns when its engine has gone."""
    _leave_the_host(volume, namespace, program, single_id=single_id)
    root, staging = (os.open(name, os.O_RDONLY | os.O_DIRECTORY) for name in (FILES, STAGING))
    for name in os.listdir(staging):  # noqa: PTH208 - of an agent that was killed
        with contextlib.suppress(OSError):
            _remove(staging, name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    tree = VolumeTree(root, staging)
    while True:
        try:
            request, fds = channel.receive(requests)
        except channel.ChannelClosedError:
            return
        try:
            _hand_over(request, fds[0], tree, requests)
        finally:
            channel.close_all(fds)


def _leave_the_host(volume: int, namespace: int, program: bytes, *, single_id: bool) -> None:
    if not single_id:
        os.setgroups([])
    userns.enter(namespace, 1000 if single_id else 0)
    os.fchdir(volume)
    os.chroot(".")
    os.chdir("/")
    os.close(volume)
    os.close(namespace)
    linux.unshare(linux.CLONE_NEWNET | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS)
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)  # forgotten with the change of ids
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    os.umask(0o022)
    for limit, value in (
        (resource.RLIMIT_AS, _MAX_MEMORY),
        (resource.RLIMIT_NOFILE, _MAX_OPEN),
        (resource.RLIMIT_CORE, 0),
        *(() if single_id else ((resource.RLIMIT_NPROC, _MAX_PROCESSES),)),
    ):
        resource.setrlimit(limit, (value, value))
    capabilities.drop(keep=_KEPT)
    capabilities.no_new_privs()
    landlock.restrict([landlock.PathRule("/", landlock.ALL)], ports=())
    seccomp.install(program)


def _remove(staging: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=staging)
    except (IsADirectoryError, PermissionError):
        treecopy.remove(name, dir_fd=staging)


def _hand_over(request: dict[str, Any], reply: int, tree: VolumeTree, requests: socket.socket) -> None:
    agent = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        with socket.socket(fileno=os.dup(reply)) as answer, contextlib.suppress(channel.ChannelClosedError):
            channel.send(answer, {"error": f"the volume is too busy: {error.strerror}", "kind": "busy"})
        return
    if pid:
        return
    try:
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == agent:  # else it has ended, and nothing would end us
            requests.close()
            _answer(socket.socket(fileno=os.dup(reply)), request, tree)
    finally:
        os._exit(0)


def _answer(reply: socket.socket, request: dict[str, Any], tree: VolumeTree) -> None:
    with contextlib.suppress(channel.ChannelClosedError):
        try:
            _OPERATIONS[request.pop("op")](reply, request, tree)
        except VolumeError as error:
            channel.send(reply, {"error": str(error), "kind": error.kind})
        except MemoryError:
            channel.send(reply, {"error": "there is too much of it for one request", "kind": "invalid"})
        except Exception as error:  # a process boundary
            channel.send(reply, {"error": f"the operation failed: {type(error).__name__}", "kind": "broken"})


def _stat(reply: socket.socket, request: dict[str, Any], tree: VolumeTree) -> None:
    channel.send(reply, {"entry": tree.stat(**request)})


def _mkdir(reply: socket.socket, request: dict[str, Any], tree: VolumeTree) -> None:
    channel.send(reply, {"entry": tree.make_directory(**request)})


def _change(reply: socket.socket, request: dict[str, Any], tree: VolumeTree) -> None:
    channel.send(reply, {"entry": tree.change(**request)})


def _remove_path(reply: socket.socket, request: dict[str, Any], tree: VolumeTree) -> None:
    tree.remove(**request)
    channel.send(reply, {"done": True})


def _list(reply: socket.socket, request: dict[str, Any], tree: VolumeTree) -> None:
    part: list[dict[str, Any]] = []
    size = 0
    for entry in tree.list(**request):
        # A byte that is no UTF-8 takes six in JSON; a packet holds the longest entry upon a full part.
        weight = _ENTRY_BYTES + 6 * sum(len(entry.get(key, "")) for key in ("name", "path", "target"))
        if part and size + weight > _PART_BYTES:
            channel.send(reply, {"entries": part})
            part, size = [], 0
        part.append(entry)
        size += weight
    if part:
        channel.send(reply, {"entries": part})
    channel.send(reply, {"done": True})


def _read(reply: socket.socket, request: dict[str, Any], tree: VolumeTree) -> None:
    descriptor, entry = tree.open_file(**request)
    channel.send(reply, {"entry": entry}, [descriptor])


def _write(reply: socket.socket, request: dict[str, Any], tree: VolumeTree) -> None:
    descriptor, name = tree.stage()
    try:
        channel.send(reply, {}, [descriptor])
        os.close(descriptor)
        channel.receive(reply)  # the word that it is complete, or the end
        channel.send(reply, {"entry": tree.publish(name, **request)})
    finally:
        tree.discard(name)


_OPERATIONS = {
    "stat": _stat,
    "mkdir": _mkdir,
    "change": _change,
    "remove": _remove_path,
    "list": _list,
    "read": _read,
    "write": _write,
}
