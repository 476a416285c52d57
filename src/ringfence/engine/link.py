"""The engine's end of the channel to its launcher."""

import asyncio
import contextlib
import itertools
import socket
import sys
from collections.abc import Callable
from typing import Any

from ringfence.core import errors
from ringfence.core.errors import LauncherError, RingfenceError
from ringfence.engine.zygote import channel

_STOP_SECONDS = 20
_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"}


async def sweep() -> None:
    """Remove the cgroups of a launcher that could not do it itself, because it was killed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-m", "ringfence.engine.launcher.sweep", stdin=asyncio.subprocess.DEVNULL,
        stdout=sys.stderr, env=_ENVIRONMENT, start_new_session=True,
    )  # fmt: skip
    try:
        await asyncio.wait_for(process.wait(), _STOP_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()


class LauncherLink:
    """Requests to the launcher and its events.

    The launcher gets an empty environment and one descriptor: no secrets.
    """

    def __init__(self, channel_end: socket.socket, process: asyncio.subprocess.Process) -> None:
        self._channel = channel_end
        self._process = process
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self.on_event: Callable[[dict[str, Any]], None] = lambda _: None
        self._loop.add_reader(channel_end, self._readable)

    @classmethod
    async def start(cls) -> "LauncherLink":
        """Start the launcher process."""
        ours, theirs = channel.pair()
        ours.setblocking(False)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-m", "ringfence.engine.launcher.main", str(theirs.fileno()),
                pass_fds=[theirs.fileno()], stdin=asyncio.subprocess.DEVNULL, stdout=sys.stderr,
                env=_ENVIRONMENT, start_new_session=True,
            )  # fmt: skip
        finally:
            theirs.close()
        return cls(ours, process)

    async def call(self, verb: str, *fds: int, **arguments: Any) -> dict[str, Any]:
        """Ask the launcher to do `verb`; it gets `fds` beside the request.

        Its answer. Raises the error it names, or LauncherError when it is dead.
        """
        if self._closed:
            raise LauncherError("the launcher has ended")
        number = next(self._numbers)
        future: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._waiting[number] = future
        try:
            await self._send({"request": number, "verb": verb, **arguments}, fds)
            return await future
        finally:
            self._waiting.pop(number, None)

    async def _send(self, message: dict[str, Any], fds: tuple[int, ...]) -> None:
        while True:
            try:
                channel.send(self._channel, message, fds)
                return
            except BlockingIOError:
                await asyncio.sleep(0.001)
            except channel.ChannelClosedError as error:
                raise LauncherError("the launcher has ended") from error

    def _readable(self) -> None:
        while True:
            try:
                message, fds = channel.receive(self._channel)
            except BlockingIOError:
                return
            except (channel.ChannelClosedError, ValueError):
                self._lost()
                return
            channel.close_all(fds)
            if "reply" in message:
                self._settle(message)
            else:
                self.on_event(message)

    def _settle(self, message: dict[str, Any]) -> None:
        future = self._waiting.get(message["reply"])
        if future is None or future.done():
            return
        if "error" not in message:
            future.set_result(message)
            return
        kind = getattr(errors, str(message.get("kind")), LauncherError)
        if not (isinstance(kind, type) and issubclass(kind, RingfenceError)):
            kind = LauncherError
        future.set_exception(kind(message["error"]))

    def _lost(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._channel)
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(LauncherError("the launcher died; its message is on standard error"))
        self.on_event({"event": "launcher-died"})

    async def aclose(self) -> None:
        """Close the channel and wait for the launcher to end all that it started."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._channel)
        self._channel.close()
        try:
            await asyncio.wait_for(self._process.wait(), _STOP_SECONDS)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
