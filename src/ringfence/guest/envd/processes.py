"""``process.Process``: commands and terminals, over Connect."""

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from starlette.routing import Route

from ringfence.guest.config import GuestConfig
from ringfence.guest.connect import (
    Call,
    ClientStreamEndpoint,
    ConnectError,
    Message,
    ServerStreamEndpoint,
    UnaryEndpoint,
)
from ringfence.guest.envd import fields
from ringfence.guest.envd.process import Process
from ringfence.guest.envd.spawn import set_window_size
from ringfence.guest.envd.start import Starter, WindowSize
from ringfence.guest.envd.users import UserDatabase, call_user
from ringfence.guest.limits import LimitWatch, Mark

EXIT_RETENTION_SECONDS = 30.0
"""How long a late `Connect` still learns how a process ended."""

_MAX_ENDED = 1000
_DEFAULT_KEEPALIVE_SECONDS = 90
_SIGNALS = {"SIGNAL_SIGKILL": 9, "SIGNAL_SIGTERM": 15, "9": 9, "15": 15}


@dataclass(frozen=True, slots=True)
class _Entry:
    process: Process
    config: Message
    tag: str | None
    mark: Mark | None = None


def keepalive_seconds(call: Call) -> float:
    """How often the client wants a sign of life on an idle stream, in seconds."""
    value = call.headers.get("keepalive-ping-interval", "")
    if value.isascii() and value.isdigit() and int(value[:9]) > 0:
        return float(value[:9])
    return float(_DEFAULT_KEEPALIVE_SECONDS)


class ProcessService:
    """All processes that were started through envd."""

    def __init__(
        self, config: GuestConfig, users: UserDatabase, starter: Starter, limits: LimitWatch | None = None
    ) -> None:
        """Start processes with `starter`, for the users in `users`; `limits` tells why they failed."""
        self._limits = limits
        self._config = config
        self._users = users
        self._starter = starter
        self._live: dict[int, _Entry] = {}
        self._ended: dict[int, _Entry] = {}

    def routes(self) -> list[Route]:
        """The service's methods as routes."""
        prefix = "/process.Process/"
        unary = {
            "List": self.list,
            "SendInput": self.send_input,
            "SendSignal": self.send_signal,
            "CloseStdin": self.close_stdin,
            "Update": self.update,
        }
        return [
            *(Route(prefix + name, UnaryEndpoint(handler)) for name, handler in unary.items()),
            Route(prefix + "Start", ServerStreamEndpoint(self.start)),
            Route(prefix + "Connect", ServerStreamEndpoint(self.connect)),
            Route(prefix + "StreamInput", ClientStreamEndpoint(self.stream_input)),
        ]

    async def start(self, request: Message, call: Call) -> AsyncIterator[Message]:
        """Start a process and follow it. It goes on when the client hangs up, but not past the deadline."""
        user = call_user(self._users, self._config.default_user, call.headers.get("authorization"))
        tag = fields.optional_text(request, "tag")
        mark = self._limits.mark() if self._limits else None
        process = await self._starter.start(request, user)
        if call.deadline is not None:
            process.set_deadline(call.deadline)
        entry = _Entry(process, fields.submessage(request, "process"), tag, mark)
        self._remember(entry)
        async for event in self._follow(process, call):
            yield event
        if process.timed_out:
            raise ConnectError("deadline_exceeded", "the command was killed: its timeout ran out")
        for event in self._ending(entry):
            yield event

    def _remember(self, entry: _Entry) -> None:
        pid = entry.process.pid
        self._ended.pop(pid, None)
        self._live[pid] = entry
        entry.process.on_end(lambda: self._retire(entry))

    def _retire(self, entry: _Entry) -> None:
        pid = entry.process.pid
        del self._live[pid]
        # Without the request, which may be large.
        entry = _Entry(entry.process, {}, entry.tag, entry.mark)
        self._ended[pid] = entry
        if len(self._ended) > _MAX_ENDED:
            del self._ended[next(iter(self._ended))]
        asyncio.get_running_loop().call_later(EXIT_RETENTION_SECONDS, self._forget, entry)

    def _forget(self, entry: _Entry) -> None:
        if self._ended.get(entry.process.pid) is entry:
            del self._ended[entry.process.pid]

    async def connect(self, request: Message, call: Call) -> AsyncIterator[Message]:
        """Follow a process that runs, or learn how one ended a moment ago."""
        entry = self._find(fields.submessage(request, "process"), self._live, self._ended)
        async for event in self._follow(entry.process, call):
            yield event
        for event in self._ending(entry):
            yield event

    def _ending(self, entry: _Entry) -> Iterator[Message]:
        """The end of a process; before it, when it failed, which limits it met, as output of its own."""
        process = entry.process
        if self._limits and entry.mark and process.exit and process.exit.code != 0:
            stream, end = ("pty", "\r\n") if process.has_terminal else ("stderr", "\n")
            for sentence in self._limits.since(entry.mark):
                data = base64.b64encode((sentence + end).encode()).decode("ascii")
                yield {"event": {"data": {stream: data}}}
        yield _end_event(process)

    async def _follow(self, process: Process, call: Call) -> AsyncIterator[Message]:
        interval = keepalive_seconds(call)
        subscription = process.subscribe()
        try:
            yield {"event": {"start": {"pid": process.pid}}}
            while True:
                try:
                    async with asyncio.timeout(interval):
                        item = await subscription.next()
                except TimeoutError:
                    yield {"event": {"keepalive": {}}}
                    continue
                if item is None:
                    break
                stream, data = item
                yield {"event": {"data": {stream: base64.b64encode(data).decode("ascii")}}}
        finally:
            subscription.close()

    def _find(self, selector: Message, *tables: dict[int, _Entry]) -> _Entry:
        if fields.has(selector, "pid"):
            pid = fields.integer(selector, "pid")
            for table in tables:
                if pid in table:
                    return table[pid]
            raise ConnectError("not_found", f"process with pid {pid} not found")
        if not fields.has(selector, "tag"):
            raise ConnectError("invalid_argument", "no process is selected: neither pid nor tag")
        tag = fields.text(selector, "tag")
        for table in tables:
            for entry in table.values():
                if entry.tag == tag:
                    return entry
        raise ConnectError("not_found", f"process with tag {tag} not found")

    def _live_process(self, request: Message) -> Process:
        return self._find(fields.submessage(request, "process"), self._live).process

    async def list(self, request: Message, call: Call) -> Message:
        """The processes that run."""
        return {"processes": [_info(entry) for entry in self._live.values()]}

    async def send_input(self, request: Message, call: Call) -> Message:
        """Write to standard input or the terminal."""
        await self._write(self._live_process(request), fields.submessage(request, "input"))
        return {}

    async def _write(self, process: Process, given: Message) -> None:
        for name in ("stdin", "pty"):
            if fields.has(given, name):
                await process.write(fields.data(given, name), to_terminal=name == "pty")
                return
        raise ConnectError("unimplemented", "invalid input: neither stdin nor pty")

    async def stream_input(self, requests: AsyncIterator[Message], call: Call) -> Message:
        """Write many pieces in order."""
        process: Process | None = None
        async for request in requests:
            if fields.has(request, "start"):
                process = self._live_process(fields.submessage(request, "start"))
            elif fields.has(request, "data"):
                if process is None:
                    raise ConnectError("invalid_argument", "input came before the start event")
                data = fields.submessage(request, "data")
                await self._write(process, fields.submessage(data, "input"))
        return {}

    async def send_signal(self, request: Message, call: Call) -> Message:
        """Kill a process with its session, or send it SIGTERM."""
        process = self._live_process(request)
        number = _SIGNALS.get(str(request.get("signal")))
        if number == 9:
            process.kill()
        elif number == 15:
            process.terminate()
        else:
            raise ConnectError("unimplemented", f"invalid signal: {request.get('signal')}")
        return {}

    async def close_stdin(self, request: Message, call: Call) -> Message:
        """End standard input."""
        await self._live_process(request).close_stdin()
        return {}

    async def update(self, request: Message, call: Call) -> Message:
        """Resize the terminal."""
        process = self._live_process(request)
        if fields.has(request, "pty"):
            size = WindowSize.from_pty(fields.submessage(request, "pty"))
            if process.terminal is None:
                raise ConnectError("internal", "error resizing tty: tty not assigned to process")
            set_window_size(process.terminal, size.columns, size.rows)
        return {}


def _info(entry: _Entry) -> Message:
    info: Message = {"config": entry.config, "pid": entry.process.pid}
    if entry.tag is not None:
        info["tag"] = entry.tag
    return info


def _end_event(process: Process) -> Message:
    assert process.exit is not None
    end: Message = {
        "exitCode": process.exit.code,
        "exited": process.exit.exited,
        "status": process.exit.status,
    }
    if process.exit.code != 0:
        end["error"] = process.exit.status
    return {"event": {"end": end}}
