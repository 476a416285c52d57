"""The nursery: a warmed process inside the sandbox that forks a kernel whenever the guest asks for one.

It speaks JSON packets over a SEQPACKET socket; a request to fork carries the kernel's four descriptors. It is
never spoken to by user code: kernels do not inherit the socket.
"""

import array
import errno
import json
import os
import select
import signal
import socket
import traceback
from typing import Any, NoReturn

from . import fresh, main, process, streams
from .reseed import reseed
from .shell import KernelShell

MAX_PACKET = 64 * 1024
_DESCRIPTORS = 4


class Nursery:
    """Forks kernels and says how they ended."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._kernels: dict[int, int] = {}
        self._unwatched: set[int] = set()
        self._wakeup = -1

    def serve(self) -> NoReturn:
        """Answer requests until the guest's end closes; then kill what is left and end."""
        while True:
            for fd, _ in self._poll.poll():
                if fd in self._kernels:
                    self._reap(fd)
                elif fd == self._wakeup:
                    self._reap_unwatched()
                elif not self._receive():
                    self._end()

    def _receive(self) -> bool:
        data, descriptors = _receive(self._socket)
        if not data:
            return False
        try:
            request = json.loads(data)
            if request["op"] == "fork" and len(descriptors) == _DESCRIPTORS:
                self._fork(request, descriptors)
            else:
                self._send({"op": "error", "id": request.get("id", ""), "message": "not a request"})
        finally:
            for fd in descriptors:
                os.close(fd)
        return True

    def _fork(self, request: dict[str, Any], descriptors: list[int]) -> None:
        streams.flush()
        changed = KernelShell.packages.changed()
        anew = bool(request.get("fresh")) or bool(changed)
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self._send({"op": "error", "id": request["id"], "message": f"fork: {error.strerror}"})
            return
        if pid == 0:
            self._socket.detach()
            _become_kernel(request, descriptors, parent, anew)
        self._watch(pid)
        self._send({"op": "forked", "id": request["id"], "pid": pid, "fresh": anew, "changed": changed})

    def _watch(self, pid: int) -> None:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            self._listen_for_children()  # gVisor has no pidfds
            self._unwatched.add(pid)
            os.kill(os.getpid(), signal.SIGCHLD)  # it may have ended already
            return
        self._kernels[pidfd] = pid
        self._poll.register(pidfd, select.POLLIN)

    def _listen_for_children(self) -> None:
        if self._wakeup >= 0:
            return
        self._wakeup, end = os.pipe()
        for fd in (self._wakeup, end):
            os.set_blocking(fd, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(end, warn_on_full_buffer=False)
        self._poll.register(self._wakeup, select.POLLIN)

    def _reap_unwatched(self) -> None:
        os.read(self._wakeup, 4096)
        for pid in list(self._unwatched):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._unwatched.discard(pid)
                self._send({"op": "exited", "pid": pid, "status": status})

    def _reap(self, pidfd: int) -> None:
        pid = self._kernels.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        self._send({"op": "exited", "pid": pid, "status": status})

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._socket.sendall(json.dumps(message).encode())
        except OSError:
            self._end()

    def _end(self) -> NoReturn:
        for pid in (*self._kernels.values(), *self._unwatched):
            os.kill(pid, signal.SIGKILL)
        os._exit(0)


def serve(sock: socket.socket) -> NoReturn:
    """Be the nursery on `sock`, a SEQPACKET socket whose other end is the guest. Never returns.

    Not dumpable itself, so that a kernel with the same id (rootless) cannot look into it.
    """
    process.set_dumpable(False)
    process.set_title(process.TITLE)
    sock.setblocking(True)
    Nursery(sock).serve()


def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """One packet and the descriptors it carried."""
    fds = array.array("i")
    try:
        space = socket.CMSG_SPACE(_DESCRIPTORS * fds.itemsize)
        data, ancillary, _, _ = sock.recvmsg(MAX_PACKET, space, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return b"", []
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    return data, list(fds)


def _become_kernel(request: dict[str, Any], descriptors: list[int], parent: int, anew: bool) -> NoReturn:
    """In the child: everything up to the kernel's first message. What fails is told on its stderr."""
    status = 70
    try:
        process.reset_signals()
        control = process.take_descriptors(*descriptors)
        process.set_environment(request["env"])
        identity = process.Identity(request["uid"], request["gid"], tuple(request["groups"]))
        process.become(identity, request["cwd"], parent)
        if anew:
            fresh.execute(control)
        reseed()
        main.run(control)
    except OSError as error:
        where = f" {error.filename!r}" if error.filename else ""
        os.write(2, f"the kernel could not start: {error.strerror or error}{where}\n".encode())
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)
