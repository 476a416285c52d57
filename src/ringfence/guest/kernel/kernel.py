"""A Python kernel: takes cells from the control channel and runs them in one IPython shell, one after the
other.

Cells run in the main thread. While one without a top-level ``await`` runs, no event loop does, so
``asyncio.run`` works; between cells the kernel's own loop runs, so tasks that a cell left behind go on.
"""

import asyncio
import os
import sys
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from . import bundle, streams
from .channel import Channel, Message
from .copying import CopyRequests
from .interrupts import Interrupts
from .jsonable import clean_text
from .loading import LoadError, load
from .saving import Saver
from .shell import KernelShell

_MAX_TRACEBACK = 256 * 1024
_MAX_ERROR_NAME = 1024
_MAX_ERROR_VALUE = 64 * 1024


class Kernel:
    """One shell, its loop and the channel to the guest. Also the shell's `Sink`."""

    def __init__(self, channel: Channel, shell: KernelShell, interrupts: Interrupts) -> None:
        self._channel = channel
        self._shell = shell
        self._interrupts = interrupts
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._updates: dict[str, dict[str, Any]] = {}
        self._errors = 0
        self._running = False
        self._cancelling = False
        self._cell_env: dict[str, str | None] = {}
        shell.sink = self
        shell.use_loop(self._run_coroutine)

    def serve(self, state: Message | None = None) -> None:
        """Run cells until the guest closes the channel. The guest is told when the first can come.

        state: where the state of another kernel is, ``start`` and ``length``, in the file whose descriptor
        came with it; it is taken on first.
        """
        self._shell.enter_main()
        self._install_loop()
        self._copies = CopyRequests(self._channel, Saver(self._shell), self._situation)
        notes = self._take_on(state) if state else []
        self._interrupts.answer(self._copies.on_call)
        self._channel.send({"event": "ready", "pid": self._pid, "notes": notes})
        while (request := self._next()) is not None:
            if request["op"] == "save":
                self._copies.answer(request)
                continue
            if request["op"] != "execute":
                continue
            self._execute(request)
            if os.getpid() != self._pid:
                os._exit(0)  # the cell forked and its child came back here: there must be no second kernel
        self._shell.user_ns.clear()

    # The state, from one kernel to another

    def _take_on(self, state: Message) -> list[str]:
        descriptor = self._channel.take_descriptor()
        if descriptor is None:
            raise LoadError("the saved state is missing")
        try:
            return load(self._shell, descriptor, int(state["start"]), int(state["length"]))
        finally:
            os.close(descriptor)

    def _situation(self) -> tuple[int, dict[str, str | None]]:
        return self._shell.execution_count, self._cell_env  # IPython counts a cell when it starts

    # Waiting between cells

    def _install_loop(self) -> None:
        if self._loop.is_closed():
            self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)

    def _next(self) -> Message | None:
        while True:
            if (message := self._channel.take()) is not None:
                return message
            if self._channel.closed:
                return None
            try:
                self._loop.run_until_complete(self._arrival())
            except BaseException:
                # A task that some cell left behind stopped or broke the loop; the kernel must wait on.
                sys.excepthook(*sys.exc_info())
                self._install_loop()

    async def _arrival(self) -> None:
        """Return when a message has arrived or the channel is closed."""
        arrived = self._loop.create_future()

        def read() -> None:
            while self._channel.receive():
                pass
            if not arrived.done():
                arrived.set_result(None)

        self._loop.add_reader(self._channel.fileno(), read)
        try:
            await arrived
        finally:
            self._loop.remove_reader(self._channel.fileno())

    # Running a cell

    def _execute(self, request: Message) -> None:
        self._errors = 0
        self._updates.clear()
        self._running = True
        with self._environment(request.get("env") or {}):
            self._run_cell(str(request["code"]), silent=bool(request.get("silent")))
        if os.getpid() != self._pid:
            return
        for data in self._updates.values():
            self.display(data, main=False)
        self._install_loop()
        streams.flush()
        self._running = False
        self._channel.send({"event": "done", "id": request.get("id")})

    def _run_cell(self, code: str, *, silent: bool) -> None:
        result = None
        try:
            with self._interrupts.armed():
                # Inside: from when the guest knows that the cell has started, it may interrupt it.
                self._channel.exchange({"event": "started", "count": self._shell.execution_count})
                result = self._shell.run_cell(code, store_history=not silent, silent=silent)
        except BaseException as error:  # an interrupt that came between IPython's own handlers
            self.error(type(error).__name__, str(error), "")
        failure = result and (result.error_before_exec or result.error_in_exec)
        if failure and not self._errors:
            self.error(type(failure).__name__, str(failure), "")

    @contextmanager
    def _environment(self, env: dict[str, str]) -> Iterator[None]:
        """Set variables, and afterwards put back what they were."""
        before = self._cell_env = {key: os.environ.get(key) for key in env}
        os.environ.update(env)
        try:
            yield
        finally:
            self._cell_env = {}
            for key, value in before.items():
                if value is None:
                    os.environ.pop(key, None)
                else:
                    os.environ[key] = value

    def _run_coroutine(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a cell with a top-level ``await``. When it is interrupted, nothing of it goes on in the
        background.
        """
        self._install_loop()
        task = self._loop.create_task(coroutine)
        try:
            return self._loop.run_until_complete(task)
        except KeyboardInterrupt as caught:
            interrupt = caught
        # Not in the handler above, so that the cell's own traceback does not drag this interrupt along.
        self._cancelling = True
        try:
            task.cancel()
            with suppress(BaseException):
                self._loop.run_until_complete(task)
        finally:
            self._cancelling = False
        raise interrupt

    # What the shell shows

    def display(self, data: dict[str, Any], *, main: bool) -> None:
        """Send a result. A child that the cell forked has no channel: it prints the text instead."""
        if os.getpid() != self._pid:
            print(data.get("text/plain", ""))
            return
        self._send({"event": "display", "data": bundle.fit(data), "main": main})

    def update(self, display_id: str, data: dict[str, Any]) -> None:
        """Keep the newest version; it is shown once, at the end of the cell (E2B's clients cannot replace a
        result).
        """
        self._updates[display_id] = data

    def error(self, name: str, value: str, trace: str) -> None:
        """Send the cell's error; only the first one counts."""
        if os.getpid() != self._pid:
            return
        if self._cancelling and name == "CancelledError":  # it shows where the interrupt met the cell
            name, trace = "KeyboardInterrupt", trace.replace("CancelledError", "KeyboardInterrupt")
        self._errors += 1
        if self._errors > 1:
            return
        self._send(
            {
                "event": "error",
                "name": clean_text(_shorten(name, _MAX_ERROR_NAME)),
                "value": clean_text(_shorten(value, _MAX_ERROR_VALUE)),
                "traceback": clean_text(_shorten(trace, _MAX_TRACEBACK)),
            }
        )

    def _send(self, message: Message) -> None:
        if self._running and threading.current_thread() is threading.main_thread():
            streams.flush()
            self._channel.exchange(message)
        else:
            self._channel.send({**message, "ack": False})


def _shorten(text: str, limit: int) -> str:
    """`text`, or its two ends with the number of characters left out between them."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n… [{len(text) - 2 * half} characters left out] …\n{text[-half:]}"
