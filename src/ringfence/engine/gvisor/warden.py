"""PID 1 of a gVisor sandbox on the host's side: starts runsc, passes connections in, ends when it ends.

The guest inside is not trusted. What it can send here is four words, each read as a bounded JSON object:
that it is warm, that it serves, that it failed, and why the state of its kernels cannot be saved.
"""

import contextlib
import json
import os
import select
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from ringfence.engine.gvisor.root import PID_FILE
from ringfence.engine.isolation import linux
from ringfence.engine.zygote import channel

_MOST_OUTPUT = 8192
_MOST_ERROR = 3000
_BLOCK = 4096


@dataclass
class Container:
    """A container: the pid of the runsc that starts it, our end of the guest's socket, what runsc says and
    where it says it.
    """

    pid: int
    control: socket.socket
    output: int
    output_end: int
    said: bytes = b""

    @classmethod
    def start(cls, command: Sequence[str]) -> "Container":
        """Start ``runsc run`` or ``runsc restore``."""
        control, inside = channel.pair()
        output, output_end = os.pipe()
        pid = start_program(command, inside.fileno(), output_end)
        inside.close()
        os.set_blocking(output, False)
        return cls(pid, control, output, output_end)

    def read_output(self) -> bool:
        """Take what was written; the first of it is kept. False at its end."""
        try:
            data = os.read(self.output, _BLOCK)
        except BlockingIOError:
            return True
        self.said = (self.said + data)[:_MOST_OUTPUT]
        return bool(data)

    def explanation(self) -> str:
        """What it said, for people."""
        with contextlib.suppress(OSError):
            while self.read_output() and len(self.said) < _MOST_OUTPUT:
                if not select.select([self.output], [], [], 0)[0]:
                    break
        text = self.said.decode("utf-8", "replace").strip()
        return text[-_MOST_ERROR:] or "it said nothing"


def start_program(command: Sequence[str], stdin: int, output: int) -> int:
    """Start a program with these descriptors and no others; its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.dup2(stdin, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        linux.close_range(3)
        os.execve(command[0], list(command), {"PATH": "/", "HOME": "/"})  # noqa: S606
    finally:
        os._exit(127)


@dataclass
class Warden:
    """Watches one container until its end.

    lifeline: what the launcher tells the guest is passed in from there; its end is ours. words: a pipe for
    what the guest says to it. patience: seconds in which it must be ready; 0: any.
    """

    container: Container
    report: socket.socket
    lifeline: socket.socket
    words: int
    doors: dict[str, socket.socket]
    orders: tuple[dict[str, Any], list[int]] | None
    patience: int = 0
    _poll: select.poll = field(default_factory=select.poll)
    _handlers: dict[int, Callable[[], None]] = field(default_factory=dict)

    def run(self) -> NoReturn:
        """Pass things on until the launcher's end closes, or the container ends."""
        reader, writer = socket.socketpair()
        for end in (reader, writer):
            end.setblocking(False)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGALRM, lambda *_: self.fail(f"it was not ready within {self.patience} s"))
        signal.alarm(self.patience)
        self._watch(reader.fileno(), lambda: self._on_child(reader))
        self._watch(self.lifeline.fileno(), self._on_lifeline)
        self._watch(self.container.control.fileno(), self._on_guest)
        self._watch(self.container.output, self._on_output)
        self._reap()
        while True:
            for fd, _ in self._poll.poll():
                if fd in self._handlers:
                    self._handlers[fd]()

    def _watch(self, fd: int, handler: Callable[[], None]) -> None:
        self._handlers[fd] = handler
        self._poll.register(fd, select.POLLIN)

    def _unwatch(self, fd: int) -> None:
        self._poll.unregister(fd)
        del self._handlers[fd]

    def _on_output(self) -> None:
        if not self.container.read_output():
            self._unwatch(self.container.output)

    def _on_guest(self) -> None:
        message = receive(self.container.control)
        if message is None:
            self._unwatch(self.container.control.fileno())  # its end is seen when it is reaped
        elif "warm" in message:
            self.on_warm()
        elif "ready" in message and self.doors:
            signal.alarm(0)
            channel.send(self.report, {"ready": True})
            self.report.close()
            for name, listener in self.doors.items():
                listener.setblocking(False)
                self._watch(listener.fileno(), lambda name=name, door=listener: self._on_door(name, door))  # type: ignore[misc]
            self.doors = {}
        elif "unsaved" in message:
            with contextlib.suppress(OSError):
                os.write(self.words, f"unsaved {message['unsaved']}".encode()[: select.PIPE_BUF])
        elif "error" in message:
            self.fail(str(message["error"]))

    def on_warm(self) -> None:
        """The guest waits: tell it which sandbox it is."""
        if self.orders is not None:
            orders, passed_in = self.orders
            channel.send(self.container.control, orders, passed_in)
            channel.close_all(passed_in)
            self.orders = None

    def _on_lifeline(self) -> None:
        try:
            message, fds = channel.receive(self.lifeline)
        except channel.ChannelClosedError:
            os._exit(0)
        with contextlib.suppress(OSError, channel.ChannelClosedError):
            channel.send(self.container.control, message, fds)
        channel.close_all(fds)

    def _on_door(self, name: str, listener: socket.socket) -> None:
        with contextlib.suppress(OSError, channel.ChannelClosedError):
            connection, _ = listener.accept()
            with connection:  # the guest has its own descriptor of it
                channel.send(self.container.control, {"door": name}, [connection.fileno()])

    def _on_child(self, wakeup: socket.socket) -> None:
        wakeup.recv(_BLOCK)
        self._reap()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                # As PID 1 of the namespace this is the parent of all that runsc has started and left.
                self.fail(f"gVisor's kernel ended: {self.container.explanation()}")
            if pid == 0:
                return
            self.on_end(pid, os.waitstatus_to_exitcode(status))

    def on_end(self, pid: int, code: int) -> None:
        """A child has ended."""
        if pid == self.container.pid and code == 0:
            self.container.pid = int(Path(PID_FILE).read_text())  # now it is the kernel's, our child too
        elif pid == self.container.pid:
            self.fail(f"runsc ended with status {code}: {self.container.explanation()}")

    def fail(self, text: str) -> NoReturn:
        """End it, and say why."""
        if self.doors:  # not ready yet: afterwards the launcher believes nothing that comes from here
            with contextlib.suppress(channel.ChannelClosedError, OSError):
                channel.send(self.report, {"error": f"gVisor: {text[-_MOST_ERROR:]}"})
        else:
            os.write(2, f"gVisor: {text[-_MOST_ERROR:]}\n".encode())  # nowhere, but when debugging
        os._exit(1)


def receive(control: socket.socket) -> dict[str, Any] | None:
    """A message of the guest, which may be anything: one that is not an object is as good as none.

    None at the end of the socket. Descriptors are not taken.
    """
    try:
        data = control.recv(channel.MAX_PACKET)
    except (ConnectionResetError, BrokenPipeError):
        return None
    if not data:
        return None
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}
