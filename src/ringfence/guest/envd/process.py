"""One process started by a request: its output, its input, its end.

Output is read only as fast as the slowest subscriber takes it, so a process whose output is not read
blocks on its pipe instead of filling the guest's memory. With no subscriber at all (the client hung up) it
is read and dropped, because then the process must go on.
"""

import asyncio
import errno
import os
import signal
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ringfence.guest.connect import ConnectError

CHUNK_BYTES = {"stdout": 32 * 1024, "stderr": 32 * 1024, "pty": 16 * 1024}
"""The most output that goes into one event."""

_HIGH_WATER = 512 * 1024
_LOW_WATER = 128 * 1024

# A process may leave children behind that hold its pipes (`server &`). Its own output is complete once it is
# dead, but that of helpers (`> >(tee log)`) may still come: so the end is reported when the pipes
# close, or when they have been quiet for this long, or after the limit at the latest.
_QUIET_SECONDS = 0.2
_LINGER_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended, in the words of E2B's protocol (those of Go's ``os.ProcessState``)."""

    code: int
    exited: bool
    status: str

    @classmethod
    def from_wait_status(cls, status: int) -> "Exit":
        """Translate what `os.waitpid` gave."""
        code = os.waitstatus_to_exitcode(status)
        if code >= 0:
            return cls(code, True, f"exit status {code}")
        text = (signal.strsignal(-code) or f"{-code}").lower()
        return cls(-1, False, f"signal: {text}" + (" (core dumped)" if os.WCOREDUMP(status) else ""))


class Subscription:
    """One reader of a process's events. Bounded: while it is full, the process's output is not read."""

    def __init__(self, process: "Process") -> None:
        """Made by `Process.subscribe`."""
        self._process = process
        self._chunks: deque[tuple[str, bytearray]] = deque()
        self._wakeup = asyncio.Event()
        self.size = 0

    def push(self, stream: str, data: bytes) -> None:
        """Add output; small pieces are joined, so a million short writes do not become a million events."""
        self.size += len(data)
        if self._chunks:
            last, joined = self._chunks[-1]
            if last == stream and len(joined) + len(data) <= CHUNK_BYTES[stream]:
                joined += data
                return
        self._chunks.append((stream, bytearray(data)))
        self._wakeup.set()

    def wake(self) -> None:
        """Let a waiting `next` look again: the process has ended."""
        self._wakeup.set()

    async def next(self) -> tuple[str, bytes] | None:
        """The next piece of output and its stream; None when the process has ended and all was given."""
        while not self._chunks:
            if self._process.exit is not None:
                return None
            self._wakeup.clear()
            await self._wakeup.wait()
        stream, data = self._chunks.popleft()
        self.size -= len(data)
        if self.size <= _LOW_WATER:
            self._process.resume_reading()
        return stream, bytes(data)

    def close(self) -> None:
        """Stop listening; the process is not held up by this reader any more."""
        self._process.unsubscribe(self)


class _Input:
    """The writing end of standard input or of the terminal: ordered, without blocking the loop."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = asyncio.Lock()
        self._writable: asyncio.Future[None] | None = None
        self._closed = False

    async def write(self, data: bytes) -> None:
        async with self._lock:
            rest = memoryview(data)
            while rest:
                if self._closed:
                    raise ConnectError("failed_precondition", "the input of the process is closed")
                try:
                    rest = rest[os.write(self._fd, rest) :]
                except BlockingIOError:
                    await self._wait_writable()
                except OSError as error:
                    reason = os.strerror(error.errno or errno.EIO).lower()
                    raise ConnectError("failed_precondition", f"error writing input: {reason}") from None

    async def _wait_writable(self) -> None:
        loop = asyncio.get_running_loop()
        self._writable = loop.create_future()
        loop.add_writer(self._fd, self._release)
        try:
            await self._writable
        finally:
            self._writable = None
            if not self._closed:
                loop.remove_writer(self._fd)

    def _release(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    async def finish(self) -> None:
        """Close it after what is being written."""
        async with self._lock:
            self.close(owned=True)

    def close(self, *, owned: bool) -> None:
        """Close now; a waiting `write` fails. `owned`: the descriptor is ours alone and is closed as well."""
        if self._closed:
            return
        self._closed = True
        asyncio.get_running_loop().remove_writer(self._fd)
        self._release()
        if owned:
            os.close(self._fd)


class Process:
    """A running process, or one that has ended not long ago (then `exit` is set)."""

    def __init__(self, pid: int, outputs: dict[int, str], stdin: int | None) -> None:
        """Take over a child just started: `outputs` maps descriptors (non-blocking) to stream names.

        With a terminal the one descriptor is both output and input, and `stdin` is None.
        """
        self.pid = pid
        self.exit: Exit | None = None
        self.timed_out = False
        self._loop = asyncio.get_running_loop()
        self._outputs = outputs
        self._paused = False
        self._subscriptions: set[Subscription] = set()
        self._listeners: list[Callable[[], None]] = []
        self._status: int | None = None
        self._draining_since = self._heard = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._terminal = next((fd for fd, stream in outputs.items() if stream == "pty"), None)
        source = self._terminal if self._terminal is not None else stdin
        self._input = None if source is None else _Input(source)
        for fd in outputs:
            self._loop.add_reader(fd, self._read, fd)

    @property
    def terminal(self) -> int | None:
        """The descriptor of the terminal's master end, None for a process on pipes or one that has ended."""
        return self._terminal if self.exit is None else None

    @property
    def has_terminal(self) -> bool:
        """Whether the process was started on a terminal."""
        return self._terminal is not None

    # -- output -------------------------------------------------------------------------------------

    def subscribe(self) -> Subscription:
        """Begin to receive output from now on."""
        subscription = Subscription(self)
        self._subscriptions.add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Forget a reader."""
        self._subscriptions.discard(subscription)
        self.resume_reading()

    def _read(self, fd: int) -> None:
        stream = self._outputs[fd]
        try:
            data = os.read(fd, CHUNK_BYTES[stream])
        except BlockingIOError:
            return
        except OSError:
            data = b""  # a terminal without a process on it gives EIO
        if not data:
            self._close_output(fd)
            return
        self._heard = self._loop.time()
        for subscription in self._subscriptions:
            subscription.push(stream, data)
        if any(subscription.size >= _HIGH_WATER for subscription in self._subscriptions):
            self._pause()

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            for fd in self._outputs:
                self._loop.remove_reader(fd)

    def resume_reading(self) -> None:
        """Read output again, if no subscriber is full."""
        if self._paused and all(subscription.size < _HIGH_WATER for subscription in self._subscriptions):
            self._paused = False
            self._heard = self._draining_since = self._loop.time()
            for fd in self._outputs:
                self._loop.add_reader(fd, self._read, fd)

    def _close_output(self, fd: int) -> None:
        self._loop.remove_reader(fd)
        del self._outputs[fd]
        if fd != self._terminal or self.exit is not None:
            os.close(fd)
        if not self._outputs and self._status is not None and self.exit is None:
            self._finish()

    # -- the end ------------------------------------------------------------------------------------

    def on_end(self, listener: Callable[[], None]) -> None:
        """Call `listener` once when the process has ended and its output is complete."""
        self._listeners.append(listener)

    def reaped(self, status: int) -> None:
        """Take note of the wait status: the process is dead, its output may not be complete yet."""
        self._status = status
        self._draining_since = self._heard = self._loop.time()
        if self._timer is not None:
            self._timer.cancel()  # of the deadline
        if self._outputs:
            self._timer = self._loop.call_later(_QUIET_SECONDS, self._linger)
        else:
            self._finish()

    def _linger(self) -> None:
        if self.exit is not None:
            return
        now = self._loop.time()
        quiet = now - self._heard >= _QUIET_SECONDS * 0.9
        if self._paused or not (quiet or now - self._draining_since >= _LINGER_SECONDS):
            self._timer = self._loop.call_later(_QUIET_SECONDS, self._linger)
            return
        self._finish()

    def _finish(self) -> None:
        assert self._status is not None
        self.exit = Exit.from_wait_status(self._status)
        if self._timer is not None:
            self._timer.cancel()
        if self._input is not None:
            self._input.close(owned=not self.has_terminal)
        if self._terminal is not None:  # this hangs up whoever is left on it
            self._loop.remove_reader(self._terminal)
            self._outputs.pop(self._terminal, None)
            os.close(self._terminal)
        for subscription in self._subscriptions:
            subscription.wake()
        # Pipes that outlive the process are read on and dropped: their writers must not get SIGPIPE.
        self._subscriptions = set()
        self.resume_reading()
        for listener in self._listeners:
            listener()

    def set_deadline(self, deadline: float) -> None:
        """Kill the process at `deadline`, in seconds of the loop's clock, whoever is listening then."""
        if self._status is None:
            self._timer = self._loop.call_at(deadline, self._expire)

    def _expire(self) -> None:
        self.timed_out = True
        self.kill()

    def kill(self) -> None:
        """Kill the process and all of its session, as far as it did not leave it on purpose."""
        if self._status is not None:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        kill_session(self.pid)

    def terminate(self) -> None:
        """Ask the process (and nobody else) to end, with SIGTERM."""
        if self._status is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    # -- input --------------------------------------------------------------------------------------

    async def write(self, data: bytes, *, to_terminal: bool) -> None:
        """Write all of `data`; waits while the process does not read. Raises `ConnectError`."""
        if to_terminal and not self.has_terminal:
            raise ConnectError("internal", "error writing to tty: tty not assigned to process")
        if self.has_terminal and not to_terminal:
            raise ConnectError("internal", "error writing to stdin: tty assigned to process")
        if self._input is None:
            raise ConnectError("internal", "error writing to stdin: stdin not enabled or closed")
        await self._input.write(data)

    async def close_stdin(self) -> None:
        """Give the process end-of-file on its standard input. Raises `ConnectError` on a terminal."""
        if self.has_terminal:
            raise ConnectError("internal", "cannot close stdin for PTY process: send Ctrl+D (0x04) instead")
        if self._input is not None:
            await self._input.finish()


def kill_session(session: int) -> None:
    """Kill every process of `session`, and those that it forks meanwhile. Reads /proc."""
    killed: set[int] = set()
    while new := _session_members(session) - killed:
        for pid in new:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        killed |= new


def _session_members(session: int) -> set[int]:
    members = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # After the command's name in parentheses: state, parent, process group, session.
            fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            if int(fields[3]) == session and fields[0] not in (b"Z", b"X"):
                members.add(int(entry.name))
        except (OSError, IndexError, ValueError):
            continue  # gone meanwhile
    return members
