"""A Jupyter kernel's process and the messages to and from it: shell, iopub and control, over loopback."""

import contextlib
import ctypes
import hashlib
import hmac
import json
import os
import re
import secrets
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from .zmtp import Connection, ProtocolError

_DELIMITER = b"<IDS|MSG>"
_CHANNELS = ("shell", "iopub", "stdin", "control", "hb")
_PR_SET_PDEATHSIG = 1
_RETRY_SECONDS = 0.05
_SAID = 16 * 1024

_libc = ctypes.CDLL(None)

Reply = dict[str, Any]


class KernelGoneError(Exception):
    """The kernel's process did not start, or has ended. The message says what it printed."""


class Waitable(Protocol):
    """Something with a descriptor."""

    def fileno(self) -> int:
        """The descriptor."""


class Client:
    """One kernel, from the directory of its kernelspec. `language`: the kernel's, in lower case."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._spec: dict[str, Any] = json.loads(Path(directory, "kernel.json").read_text("utf-8"))
        self.language = str(self._spec.get("language", "")).lower()
        self._by_message = self._spec.get("interrupt_mode") == "message"
        self._key = secrets.token_hex(16).encode()
        self._session = secrets.token_hex(16)
        self._files = tempfile.mkdtemp(prefix="kernel-")
        self._said = bytearray()
        self._forward = False
        self._tells_all = False
        self._pipes: dict[int, int] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._shell: Connection
        self._iopub: Connection
        self._control: Connection | None = None

    # Its process

    def start(self, timeout: float) -> None:
        """Start the process and wait until it answers. Raises KernelGoneError."""
        deadline = time.monotonic() + timeout
        ports = _free_ports(len(_CHANNELS))
        connection: dict[str, Any] = {
            "transport": "tcp",
            "ip": "127.0.0.1",
            "key": self._key.decode(),
            "signature_scheme": "hmac-sha256",
            "kernel_name": os.path.basename(self._directory),
            **{f"{name}_port": port for name, port in zip(_CHANNELS, ports, strict=True)},
        }
        path = Path(self._files, "connection.json")
        path.write_text(json.dumps(connection), "utf-8")
        self._spawn(str(path))
        self._shell = self._connect("DEALER", ports[0], deadline)
        self._iopub = self._connect("SUB", ports[1], deadline)
        self._control = self._connect("DEALER", ports[3], deadline)
        self._greet(deadline)

    def _spawn(self, connection_file: str) -> None:
        values = {"connection_file": connection_file, "resource_dir": self._directory, "prefix": "/usr/local"}
        argv = [
            re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), str(word))
            for word in self._spec["argv"]
        ]
        env = {
            **os.environ,
            **{name: os.path.expandvars(str(v)) for name, v in self._spec.get("env", {}).items()},
        }
        outputs = [os.pipe() for _ in range(2)]
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=outputs[0][1],
                stderr=outputs[1][1],
                env=env,
                preexec_fn=self._in_child,
            )
        except OSError as error:
            raise KernelGoneError(f"{argv[0]}: {error.strerror}") from None
        finally:
            for _, write in outputs:
                os.close(write)
        self._pipes = {outputs[0][0]: 1, outputs[1][0]: 2}
        self._pidfd = os.pidfd_open(self._process.pid)

    def _in_child(self) -> None:
        """In the group that the guest signals, unless interrupts are messages; not outliving the bridge."""
        if self._by_message:
            os.setpgid(0, 0)
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def _connect(self, kind: str, port: int, deadline: float) -> Connection:
        while True:
            try:
                return Connection(kind, ("127.0.0.1", port), max(0.1, deadline - time.monotonic()))
            except (OSError, ProtocolError) as error:
                if time.monotonic() > deadline:
                    raise KernelGoneError(f"the kernel does not answer: {error}") from None
                self._pump(self._poll([self._pidfd, *self._pipes], _RETRY_SECONDS))

    def _greet(self, deadline: float) -> None:
        """Ask who it is until both the answer and its broadcast have come: a subscription takes a moment."""
        replied = heard = False
        while not (replied and heard):
            if time.monotonic() > deadline:
                raise KernelGoneError("the kernel does not answer")
            asked = self._send(self._shell, "kernel_info_request", {})
            again = time.monotonic() + 1
            while not (replied and heard) and time.monotonic() < again:
                self.wait_readable([], 0.2)
                for message in self.messages():
                    mine = message["parent_header"].get("msg_id") == asked
                    heard = heard or (mine and message["header"]["msg_type"] == "status")
                    if message["header"]["msg_type"] == "kernel_info_reply":
                        replied = True
                        info = message["content"].get("language_info") or {}
                        self._tells_all = message["content"].get("implementation") == "ipython"
                        self.language = str(info.get("name", self.language)).lower()

    def interrupt(self) -> None:
        """Tell the kernel by message, if that is its way; a signal it got with this process."""
        if self._by_message and self._control is not None:
            self._send(self._control, "interrupt_request", {})

    def shut_down(self, seconds: float) -> None:
        """Ask the kernel to end; after `seconds` at most, kill it."""
        if self._control is not None:
            with contextlib.suppress(OSError):
                self._send(self._control, "shutdown_request", {"restart": False})
                self._poll([self._pidfd], seconds)
        self.kill()

    def kill(self) -> None:
        """End the process now."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self.drain_output()
        self.clean_up()

    def wait(self) -> int:
        """The exit status of the process that has ended, or will because its connections did; negative: by a
        signal.
        """
        if self._process is None:
            return 1
        if not self._poll([self._pidfd], 1.0):
            self._process.kill()
        return self._process.wait()

    def clean_up(self) -> None:
        """Remove the connection file."""
        shutil.rmtree(self._files, ignore_errors=True)

    # What it prints

    def forward_output(self) -> None:
        """From now on, what the process prints goes to our own output; what it said so far is forgotten.

        Not that of ipykernel, which also sends it as messages.
        """
        self._forward = True

    def drain_output(self) -> None:
        """Pass on what it has printed up to now."""
        while ready := [fd for fd in self._poll(list(self._pipes), 0) if fd in self._pipes]:
            self._pump(ready)

    def _pump(self, ready: Sequence[int]) -> None:
        for fd in ready:
            if fd not in self._pipes:
                continue
            data = os.read(fd, 65536)
            if not data:
                del self._pipes[fd]
                os.close(fd)
            elif self._forward:
                while data and not self._tells_all:
                    data = data[os.write(self._pipes[fd], data) :]
            else:
                self._said = (self._said + data)[-_SAID:]
        if self._pidfd in ready and not self._forward:
            self.drain_output()
            said = bytes(self._said).decode("utf-8", "replace").strip()
            raise KernelGoneError(said or f"the kernel ended with status {self.wait()}")

    # Messages

    def execute(self, code: str, *, silent: bool) -> Iterator[Reply]:
        """Run code and give everything the kernel says until it is idle again. Raises KernelGoneError."""
        content = {
            "code": code,
            "silent": silent,
            "store_history": not silent,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": False,
        }
        asked = self._send(self._shell, "execute_request", content)
        replied = idle = False
        while not (replied and idle):
            self.wait_readable([])
            for message in self.messages():
                kind = message["header"]["msg_type"]
                if message["parent_header"].get("msg_id") == asked:
                    replied = replied or kind == "execute_reply"
                    idle = idle or (kind == "status" and message["content"].get("execution_state") == "idle")
                yield message

    def wait_readable(self, others: Sequence[Waitable], timeout: float | None = None) -> list[Waitable]:
        """Wait for a message, for output of the process (which is dealt with) or for one of `others`; returns
        those of them that are ready. Raises KernelGoneError when the process has ended.
        """
        numbers = {other.fileno(): other for other in others}
        sources = {connection.fileno(): connection for connection in (self._iopub, self._shell)}
        if self._control is not None:
            sources[self._control.fileno()] = self._control
        ready = self._poll([self._pidfd, *self._pipes, *sources, *numbers], timeout)
        self._pump(ready)
        for fd in ready:
            if fd in sources:
                try:
                    sources[fd].receive()
                except (OSError, ProtocolError):
                    raise KernelGoneError("the kernel closed its connection") from None
        if ready == [self._pidfd]:
            raise KernelGoneError("the kernel has ended")
        return [numbers[fd] for fd in ready if fd in numbers]

    def messages(self) -> Iterator[Reply]:
        """What has arrived: broadcasts first, because they belong before the reply."""
        for connection in (self._iopub, self._shell):
            while (frames := connection.take()) is not None:
                message = self._decode(frames)
                if message is not None:
                    yield message
        if self._control is not None:
            while self._control.take() is not None:
                pass

    def _send(self, connection: Connection, kind: str, content: dict[str, Any]) -> str:
        """Send a message and return its id. Raises KernelGoneError."""
        identity = secrets.token_hex(16)
        header = {
            "msg_id": identity,
            "session": self._session,
            "username": "user",
            "date": datetime.now(UTC).isoformat(),
            "msg_type": kind,
            "version": "5.3",
        }
        parts = [json.dumps(part).encode() for part in (header, {}, {}, content)]
        try:
            connection.send([_DELIMITER, self._sign(parts), *parts])
        except OSError:
            raise KernelGoneError("the kernel closed its connection") from None
        return identity

    def _sign(self, parts: Sequence[bytes]) -> bytes:
        return hmac.new(self._key, b"".join(parts), hashlib.sha256).hexdigest().encode()

    def _decode(self, frames: list[bytes]) -> Reply | None:
        """The message in `frames`, or None when it is none of this kernel's."""
        try:
            start = frames.index(_DELIMITER)
            signature, *parts = frames[start + 1 : start + 6]
            if not hmac.compare_digest(signature, self._sign(parts)):
                return None
            header, parent, _, content = (json.loads(part) for part in parts)
        except (ValueError, RecursionError):
            return None
        header.setdefault("msg_type", "")
        return {"header": header, "parent_header": parent or {}, "content": content or {}}

    @staticmethod
    def _poll(descriptors: Sequence[int], timeout: float | None) -> list[int]:
        poll = select.poll()
        for fd in descriptors:
            poll.register(fd, select.POLLIN)
        return [fd for fd, _ in poll.poll(None if timeout is None else timeout * 1000)]


def _free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on at this moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
