"""Any Jupyter kernel, behind our control channel: starts the process its kernelspec names and translates.

Jupyter's messaging protocol 5: https://jupyter-client.readthedocs.io/en/stable/messaging.html
"""

import os
import re
import signal
import time
from typing import Any

from . import bundle, jupyter_env, streams
from .channel import Channel, Message
from .interrupts import Interrupts
from .jsonable import clean_text
from .jupyter_wire import Client, KernelGoneError

_START_SECONDS = 115.0
_END_SECONDS = 0.7
_MAX_TRACEBACK = 256 * 1024
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class JupyterKernel:
    """One kernel process and the connections to it. What it prints itself, past the protocol, is the cell's
    output too.
    """

    def __init__(self, channel: Channel, interrupts: Interrupts, directory: str) -> None:
        self._channel = channel
        self._interrupts = interrupts
        self._client = Client(directory)
        self._count = 1
        self._errors = 0
        self._updates: dict[str, dict[str, Any]] = {}

    def serve(self) -> None:
        """Run cells until the guest closes the channel or the kernel ends."""
        signal.signal(signal.SIGINT, self._interrupted)
        try:
            self._client.start(_START_SECONDS)
            self._silently(jupyter_env.at_start(self._client.language, dict(os.environ)))
        except KernelGoneError as error:
            os.write(2, f"{error}\n".encode())
            self._client.kill()
            os._exit(70)
        self._client.forward_output()
        self._channel.send({"event": "ready", "pid": os.getpid()})
        try:
            while (request := self._next()) is not None:
                self._execute(request)
        except KernelGoneError:
            self._end_as(self._client.wait())
        self._client.shut_down(_END_SECONDS)

    def _interrupted(self, _signal: int, _frame: object) -> None:
        self._client.interrupt()

    def _next(self) -> Message | None:
        """The next cell; what the kernel says meanwhile, of its own accord, is passed on."""
        while True:
            if (message := self._channel.take()) is not None:
                return message
            if self._channel.closed:
                return None
            for descriptor in self._client.wait_readable([self._channel]):
                if descriptor is self._channel:
                    while self._channel.receive():
                        pass
            for reply in self._client.messages():
                self._broadcast(reply, running=False)

    def _execute(self, request: Message) -> None:
        self._errors = 0
        self._updates.clear()
        self._channel.exchange({"event": "started", "count": self._count})
        self._count += 1
        env = request.get("env") or {}
        try:
            before, after = jupyter_env.around_cell(self._client.language, env)
        except ValueError as error:
            self._error("EnvironmentError", str(error), [])
        else:
            self._silently(before)
            self._run(str(request["code"]))
            self._silently(after)
        for data in self._updates.values():
            self._display(data, main=False, running=True)
        self._client.drain_output()
        streams.flush()
        self._channel.send({"event": "done", "id": request.get("id")})

    def _run(self, code: str) -> None:
        """Run one cell: it is over when the kernel has replied and, after all output, is idle again."""
        for message in self._client.execute(code, silent=False):
            if message["header"]["msg_type"] != "execute_reply":
                self._broadcast(message, running=True)
                continue
            content = message["content"]
            if content.get("status") == "error" and not self._errors:
                self._error(str(content.get("ename")), str(content.get("evalue")), content.get("traceback"))
            elif content.get("status") in ("abort", "aborted") and not self._errors:
                self._error("ExecutionAborted", "the kernel did not run the cell", [])

    def _silently(self, code: str) -> None:
        if code:
            for _ in self._client.execute(code, silent=True):
                pass

    def _broadcast(self, message: dict[str, Any], *, running: bool) -> None:
        kind, content = message["header"]["msg_type"], message["content"]
        if kind == "stream":
            fd = 2 if content.get("name") == "stderr" else 1
            _write(fd, clean_text(str(content.get("text", ""))))
        elif kind in ("display_data", "execute_result"):
            self._display(content.get("data") or {}, main=kind == "execute_result", running=running)
        elif kind == "update_display_data":
            self._updates[str((content.get("transient") or {}).get("display_id"))] = content.get("data") or {}
        elif kind == "error" and running:
            self._error(str(content.get("ename")), str(content.get("evalue")), content.get("traceback"))

    def _display(self, data: dict[str, Any], *, main: bool, running: bool) -> None:
        self._client.drain_output()
        message = {"event": "display", "data": bundle.fit(data), "main": main}
        if running:
            self._channel.exchange(message)
        else:
            self._channel.send({**message, "ack": False})

    def _error(self, name: str, value: str, trace: object) -> None:
        self._errors += 1
        if self._errors > 1:
            return
        lines = trace if isinstance(trace, list) else []
        text = _COLOURS.sub("", "\n".join(map(str, lines)))
        if len(text) > _MAX_TRACEBACK:
            text = f"{text[:_MAX_TRACEBACK]}\n… [{len(text) - _MAX_TRACEBACK} characters left out]"
        event = {"event": "error", "name": name, "value": clean_text(_COLOURS.sub("", value)[:65536])}
        self._channel.exchange({**event, "traceback": clean_text(text)})

    def _end_as(self, status: int) -> None:
        """End as the kernel did, so that the guest says what happened to it."""
        self._client.drain_output()
        self._client.clean_up()
        if status < 0:
            signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
            os.kill(os.getpid(), -status)
            time.sleep(1)
        os._exit(status if status >= 0 else 128 - status)


def _write(fd: int, text: str) -> None:
    data = memoryview(text.encode("utf-8", "replace"))
    while data:
        data = data[os.write(fd, data) :]
