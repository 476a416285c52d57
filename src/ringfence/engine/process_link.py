"""A process of ours that does what the engine asks over a channel, as the launcher and the egress do."""

import asyncio
import contextlib
import itertools
import socket
import sys
from collections.abc import Callable
from typing import Any

from ringfence.core import errors
from ringfence.core.errors import LauncherError, RingfenceError
from ringfence.engine.outbox import Outbox
from ringfence.engine.zygote import channel

ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"}
"""All that such a process gets of variables: no secrets."""


async def start_process(module: str) -> tuple[socket.socket, asyncio.subprocess.Process]:
    """Run `module` with the number of its end of a channel as argument; our end, and the process."""
    ours, theirs = channel.pair()
    ours.setblocking(False)
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-m", module, str(theirs.fileno()), pass_fds=[theirs.fileno()],
            stdin=asyncio.subprocess.DEVNULL, stdout=sys.stderr, env=ENVIRONMENT, start_new_session=True,
        )  # fmt: skip
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return ours, process


class ProcessLink:
    """Requests to the process and its events.

    name: what errors call it. answer_seconds: after which an answer is given up; None: never.
    stop_seconds: how long it may take to end before it is killed.
    """

    def __init__(
        self,
        end: socket.socket,
        process: asyncio.subprocess.Process,
        name: str,
        *,
        stop_seconds: float,
        answer_seconds: float | None = None,
    ) -> None:
        self._channel = end
        self._process = process
        self._name = name
        self._stop_seconds = stop_seconds
        self._answer_seconds = answer_seconds
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._loop = asyncio.get_running_loop()
        self._outbox = Outbox(end)
        self.alive = True
        self.on_event: Callable[[dict[str, Any]], None] = lambda _: None
        self._loop.add_reader(end, self._readable)

    async def call(self, verb: str, *fds: int, **arguments: Any) -> dict[str, Any]:
        """Ask the process to do `verb`, which it does even if the caller is cancelled; it gets `fds` too.

        Its answer. Raises the error that it names; LauncherError when it has ended or does not answer.
        """
        if not self.alive:
            raise LauncherError(f"the {self._name} has ended")
        number = next(self._numbers)
        future: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._waiting[number] = future
        try:
            self._outbox.send({"request": number, "verb": verb, **arguments}, fds)
            async with asyncio.timeout(self._answer_seconds):
                answer = await future
        except (OSError, ValueError) as error:
            raise LauncherError(f"the {self._name} does not answer: {error}") from error
        finally:
            del self._waiting[number]
        if "error" in answer:
            raise _error_of(answer)
        return answer

    def tell(self, verb: str, **arguments: Any) -> bool:
        """Ask the process to do `verb`, without an answer; whether it was there."""
        with contextlib.suppress(OSError):
            if self.alive:
                self._outbox.send({"request": 0, "verb": verb, **arguments})
                return True
        return False

    def _readable(self) -> None:
        while self.alive:
            try:
                message, fds = channel.receive(self._channel)
            except BlockingIOError:
                return
            except (channel.ChannelClosedError, ValueError):
                self._close()
                self._lost()
                return
            channel.close_all(fds)
            if "reply" not in message:
                self.on_event(message)
                continue
            number = message["reply"]
            future = self._waiting.get(number) if isinstance(number, int) else None
            if future is not None and not future.done():
                future.set_result(message)

    def _lost(self) -> None:
        """It has ended without being asked to."""

    def _close(self) -> None:
        if not self.alive:
            return
        self.alive = False
        self._outbox.close()
        self._loop.remove_reader(self._channel)
        self._channel.close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(LauncherError(f"the {self._name} has ended; why is on standard error"))

    async def aclose(self) -> None:
        """Close the channel, and wait for the process to end and all that it started."""
        self._close()
        try:
            await asyncio.wait_for(self._process.wait(), self._stop_seconds)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


def _error_of(answer: dict[str, Any]) -> RingfenceError:
    kind = getattr(errors, str(answer.get("kind")), LauncherError)
    if not (isinstance(kind, type) and issubclass(kind, RingfenceError)):
        kind = LauncherError
    return kind(answer["error"])
