"""One kernel process as the guest sees it: its channel, its two output pipes and its end."""

import asyncio
import contextlib
import json
import os
import signal
import socket
from dataclasses import dataclass, field
from typing import Any, Literal

from ringfence.guest.interpreter import events
from ringfence.guest.interpreter.identity import User
from ringfence.guest.interpreter.languages import Language
from ringfence.guest.interpreter.nursery import Forked, KernelStartError, NurseryClient
from ringfence.guest.interpreter.output import OutputPipe, make_pipe
from ringfence.guest.interpreter.run import Run
from ringfence.guest.interpreter.saved import KernelState
from ringfence.guest.interpreter.saving import StateRequest
from ringfence.guest.limits import LimitWatch
from ringfence.guest.memory import MemoryMeter

MAX_LINE = 16 * 1024 * 1024
"""Bytes one message of a kernel may have, and one cell."""
_START_SECONDS = 120.0
_CALL = signal.SIGRTMIN + 13
"""The signal that `ringfence.guest.kernel.interrupts` answers to."""
_MAX_NOTES = 50
_MAX_NOTE = 16 * 1024
_SHUTDOWN_SECONDS = 1.0
_IDLE_OUTPUT = 64 * 1024

_ACKNOWLEDGED = ("started", "display", "error")

StreamName = Literal["stdout", "stderr"]


@dataclass(frozen=True)
class KernelSpec:
    """What kernel to start. `memory` tells whether its end was for want of memory, `limits` what else its
    cells have met.
    """

    language: Language
    user: User
    cwd: str
    env: dict[str, str] = field(repr=False)
    memory: MemoryMeter = field(default_factory=MemoryMeter)
    limits: LimitWatch | None = None


class Kernel:
    """A running kernel. Make one with `start`; it is of no use any more once `ended` is done.

    ended: becomes a sentence that says how the process ended. used: whether it has a state worth keeping.
    notes: what the user should know of the state it has taken on.
    """

    def __init__(
        self, connection: socket.socket, outputs: tuple[int, int], limits: int, memory: MemoryMeter
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[str] = self._loop.create_future()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._connection = connection
        self._partial = bytearray()
        self._pid = 0
        self._killed_for: str | None = None
        self._memory = memory
        self._oom_kills = memory.oom_kills()
        self._run: Run | None = None
        self._sending = asyncio.Lock()
        self._copy: StateRequest | None = None
        self.used = False
        self.notes: list[str] = []
        self._interrupts = 0
        self._idle: list[tuple[StreamName, str]] = []
        self._idle_room = limits
        self._stdout = OutputPipe(
            outputs[0], lambda text: self._printed("stdout", text), self._allow, self._over
        )
        self._stderr = OutputPipe(
            outputs[1], lambda text: self._printed("stderr", text), self._allow, self._over
        )
        connection.setblocking(False)
        self._loop.add_reader(connection.fileno(), self._readable)

    @classmethod
    async def start(
        cls, nursery: NurseryClient, spec: KernelSpec, state: KernelState | None = None
    ) -> "Kernel":
        """A kernel that is ready for its first cell; with `state`, that of another one, it goes on from
        there. Raises KernelStartError.
        """
        ours, theirs = socket.socketpair()
        stdout, stderr, null = make_pipe(), make_pipe(), os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        kernel = cls(ours, (stdout[0], stderr[0]), _IDLE_OUTPUT, spec.memory)
        try:
            given = (theirs.fileno(), null, stdout[1], stderr[1])
            forked = await nursery.fork(spec.user, spec.cwd, spec.env, given)
        except BaseException:
            kernel._close()
            raise
        finally:
            theirs.close()
            for fd in (null, stdout[1], stderr[1]):
                os.close(fd)
        await kernel._begin(forked, spec.language, state)
        return kernel

    async def _begin(self, forked: Forked, language: Language, state: KernelState | None) -> None:
        self._pid = forked.pid
        forked.exited.add_done_callback(self._exited)
        init: dict[str, Any] = {"op": "init", "language": language.kernel, "spec": language.spec}
        descriptors: tuple[int, ...] = ()
        if state is not None:
            init["state"] = {"start": state.start, "length": state.length}
            descriptors = (state.descriptor,)
            self.used = True
        try:
            await self.send(init, *descriptors)
            await asyncio.wait_for(self._ready, _START_SECONDS)
        except TimeoutError:
            self.kill(f"it was not ready within {_START_SECONDS:.0f} s")
            raise KernelStartError(f"the kernel was not ready within {_START_SECONDS:.0f} s") from None
        except asyncio.CancelledError:
            self.kill("nobody waits for it any more")
            raise

    @property
    def alive(self) -> bool:
        """Whether the process has not ended and is not about to."""
        return not self.ended.done() and self._killed_for is None

    async def begin(self, run: Run) -> None:
        """Hand a cell to the kernel; its events and its end come through `run`."""
        self._stdout.drain()
        self._stderr.drain()
        for name, text in self._idle:
            run.queue.put_nowait(events.output(name, text))
        self._idle.clear()
        self._idle_room = _IDLE_OUTPUT
        if self.ended.done():
            run.finish(self.ended.result())
            return
        self._run = run
        self.used = True
        cell = {"op": "execute", "code": run.code, "env": run.env, "silent": run.silent}
        # A kernel that hears of interrupts late can tell by their number which were for the cells before.
        await self.send({**cell, "interrupts": self._interrupts})

    async def request_state(self, pipe: int, memory: int) -> StateRequest:
        """Ask the kernel to write its state into `pipe`, using at most `memory` bytes. It then stands still
        until `go_on`.
        """
        self._copy = StateRequest()
        if self.ended.done():
            self._copy.ended(self.ended.result())
        await self.send({"op": "save", "room": memory}, pipe)
        return self._copy

    async def go_on(self) -> None:
        """Let a kernel go on that has written its state."""
        if self._copy is not None:
            self._copy = None
            await self.send({"op": "go"})

    def call(self) -> None:
        """Have the kernel look for a request, even in the middle of a cell. Its children are not called."""
        if self._pid and not self.ended.done():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self._pid, _CALL)

    def note(self, text: str) -> None:
        """Tell the user of the cell that runs something of our own; nothing when none runs."""
        if self._run is not None and self._run.started:
            self._run.note(text)

    def interrupt(self) -> None:
        """SIGINT for the kernel and what it started in its process group, once the cell has started."""
        if self._run is not None:
            self._run.interrupted = True
            if self._run.started:
                self._signal(signal.SIGINT)

    def kill(self, reason: str) -> None:
        """SIGKILL for the kernel and its process group; `reason` completes "killed because …"."""
        if self._killed_for is None:
            self._killed_for = reason
        self._signal(signal.SIGKILL)

    async def shut_down(self) -> None:
        """Ask the kernel to end, so that files it has open are written; kill it when it does not."""
        if self.ended.done():
            return
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)
        await asyncio.wait([self.ended], timeout=_SHUTDOWN_SECONDS)
        self.kill("it was shut down")
        await asyncio.wait([self.ended], timeout=_SHUTDOWN_SECONDS)

    def _signal(self, number: signal.Signals) -> None:
        if self._pid and not self.ended.done():
            self._interrupts += number == signal.SIGINT
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pid, number)

    async def send(self, message: dict[str, Any], *descriptors: int) -> None:
        """Send a message, and with its first byte the descriptors."""
        line = json.dumps(message).encode("ascii") + b"\n"
        async with self._sending:
            # A kernel that has ended does not matter here: that is told when its exit status comes.
            with contextlib.suppress(OSError):
                if descriptors:
                    line = line[await self._send_first(line, descriptors) :]
                await self._loop.sock_sendall(self._connection, line)

    async def _send_first(self, line: bytes, descriptors: tuple[int, ...]) -> int:
        while True:
            try:
                return socket.send_fds(self._connection, [line], descriptors)
            except BlockingIOError:
                await asyncio.sleep(0.01)

    # What comes from the kernel

    def _allow(self, count: int) -> int:
        if self._run is not None:
            return self._run.allow(count)
        allowed = min(count, self._idle_room)
        self._idle_room -= allowed
        return allowed

    def _over(self, dropped: int) -> None:
        if self._run is not None:
            self._run.over(dropped)

    def _printed(self, name: StreamName, text: str) -> None:
        if self._run is None:
            self._idle.append((name, text))
        else:
            self._run.queue.put_nowait(events.output(name, text))

    def _readable(self) -> None:
        try:
            data = self._connection.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._connection.fileno())
            if not self.ended.done():
                self._loop.call_later(_SHUTDOWN_SECONDS, self._abandoned)
            return
        self._partial += data
        *lines, rest = self._partial.split(b"\n")
        self._partial = bytearray(rest)
        if len(rest) > MAX_LINE:
            self.kill(f"it sent a message of more than {MAX_LINE} bytes")
        for line in lines:
            self._receive(bytes(line))

    def _abandoned(self) -> None:
        """The channel is closed; a kernel that still lives cannot be used any more."""
        self.kill("the code closed the connection that the kernel is controlled by")

    def _receive(self, line: bytes) -> None:
        try:
            message = json.loads(line.decode("utf-8"), parse_constant=lambda _: None)
            self._dispatch(message, len(line))
            if message["event"] in _ACKNOWLEDGED and message.get("ack", True):
                self._connection.send(b'{"op":"ack"}\n')
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError):
            self.kill("it sent something on its control channel that is no message")

    def _dispatch(self, message: dict[str, Any], size: int) -> None:
        self._stdout.drain()
        self._stderr.drain()
        kind = message["event"]
        run = self._run
        if kind == "ready" and not self._ready.done():
            self.notes = [str(note)[:_MAX_NOTE] for note in list(message.get("notes", ()))[:_MAX_NOTES]]
            self._ready.set_result(None)
        elif kind in ("saving", "saved"):
            if self._copy is not None:
                self._copy.heard(message)
        elif run is None:
            return
        elif kind == "started":
            self._started(run, int(message["count"]))
        elif kind == "display":
            run.show(events.result(dict(message["data"]), main=bool(message["main"])), size)
        elif kind == "error":
            texts = (str(message[key]) for key in ("name", "value", "traceback"))
            run.fail(events.error(*texts))
        elif kind == "done":
            self._stdout.finish()
            self._stderr.finish()
            self._run = None
            run.finish(None)

    def _started(self, run: Run, count: int) -> None:
        run.started = True
        if not run.silent:
            run.queue.put_nowait(events.number_of_executions(count))
        if run.interrupted:
            self._signal(signal.SIGINT)

    def _exited(self, exited: asyncio.Future[int]) -> None:
        self._loop.remove_reader(self._connection.fileno())
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, signal.SIGKILL)  # what it leaves behind would hold its pipes
        with contextlib.suppress(OSError):
            while data := self._connection.recv(1 << 18):
                self._partial += data
        for line in self._partial.split(b"\n")[:-1]:
            self._receive(bytes(line))
        self._stdout.finish()
        self._stderr.finish()
        starved = self._memory.oom_kills() > self._oom_kills
        ending = _describe(exited.result(), self._killed_for, self._memory.describe() if starved else None)
        if not self.ended.done():
            self.ended.set_result(ending)
        if self._copy is not None:
            self._copy.ended(ending)
        if not self._ready.done():
            said = "".join(text for _, text in self._idle).strip()
            self._ready.set_exception(KernelStartError(said or f"the kernel did not start: {ending}"))
        run, self._run = self._run, None
        self._close()
        if run is not None:
            run.finish(ending)

    def _close(self) -> None:
        self._loop.remove_reader(self._connection.fileno())
        self._stdout.close()
        self._stderr.close()
        self._connection.close()


def _describe(status: int, killed_for: str | None, out_of_memory: str | None) -> str:
    """How a process with this wait status ended, as a sentence without its subject."""
    if killed_for is not None:
        return f"was killed because {killed_for}"
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exited with status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if -code == signal.SIGKILL and out_of_memory is not None:
        return out_of_memory
    return f"was ended by {name}"
