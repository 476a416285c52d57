"""Replaces zygotes that have been forked from often or for long.

All forks of one zygote share what a fork cannot change: the seed of `hash()` and where things lie in memory.
What code in one sandbox learns of that holds for the next one, until the zygote is replaced. A successor is
warmed beside its predecessor, which goes on serving and ends when it has done what it was asked; the
sandboxes that were forked from it stay.
"""

import contextlib
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ringfence.core.errors import RingfenceError
from ringfence.engine.zygote import channel

GUEST = ""
"""Stands for the guest zygote, where a template's name stands for its kernel zygote."""

Started = tuple[int, socket.socket]
"""A zygote's pid and the channel to it."""


@dataclass
class _Use:
    """Of the zygote in service: how often it was forked and since when it serves."""

    forks: int = 0
    since: float = field(default_factory=time.monotonic)


class Rotation:
    """Counts forks and starts successors.

    after, seconds: how many forks, and how long after its start, a zygote is replaced; 0: never for that.
    start: starts a zygote by its name; its first message says that it is ready.
    swap: puts a successor in service. failed: is told of one that could not be put in service.
    """

    def __init__(
        self,
        after: int,
        seconds: float,
        selector: selectors.BaseSelector,
        start: Callable[[str], Started],
        swap: Callable[[str, int, socket.socket], None],
        failed: Callable[[str], None],
    ) -> None:
        self._after = after
        self._seconds = seconds
        self._selector = selector
        self._start = start
        self._swap = swap
        self._failed = failed
        self._uses: dict[str, _Use] = {}
        self._successors: dict[str, Started] = {}

    def forked(self, name: str) -> None:
        """The zygote `name` has been asked for a fork. Starts a successor when it is time.

        When that fails, the one there is goes on as if it were new: nothing of it fails who asked for a fork.
        """
        use = self._uses.setdefault(name, _Use())
        use.forks += 1
        often = self._after and use.forks >= self._after
        long = self._seconds and time.monotonic() - use.since >= self._seconds
        if often or long:
            try:
                self.replace(name)
            except (RingfenceError, OSError) as error:
                text = f"ringfence launcher: no new zygote {name!r} could be started: {error}\n"
                os.write(2, text.encode())
                self._uses[name] = _Use()

    def replace(self, name: str) -> None:
        """Start a successor of the zygote `name`, if there is none yet. Raises RingfenceError, OSError."""
        if name not in self._successors:
            pid, end = self._successors[name] = self._start(name)
            self._selector.register(end, selectors.EVENT_READ, lambda: self._on_message(name, pid, end))

    def _on_message(self, name: str, pid: int, end: socket.socket) -> None:
        if self._successors.get(name) != (pid, end):
            return  # dropped by an earlier event of the same round
        try:
            message, fds = channel.receive(end)
            channel.close_all(fds)
        except (channel.ChannelClosedError, ValueError):
            message = {}
        report = message.get("report")
        failed = report.get("failed") if isinstance(report, dict) else None
        if message.get("ready") is not True or failed:
            os.write(2, f"ringfence launcher: a new zygote {name!r} failed\n".encode())
            self.drop(name)
            self._failed(name)
            return
        self._selector.unregister(end)
        del self._successors[name]
        self._uses[name] = _Use()
        self._swap(name, pid, end)

    def drop(self, name: str) -> None:
        """End a successor that is not in service yet, if there is one, and begin to count anew."""
        self._uses.pop(name, None)
        if (started := self._successors.pop(name, None)) is None:
            return
        pid, end = started
        self._selector.unregister(end)
        end.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def end(self) -> None:
        """End every successor."""
        for name in list(self._successors):
            self.drop(name)
