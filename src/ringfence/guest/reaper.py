"""Collects the exit status of every child: those somebody waits for, and the orphans that PID 1 inherits.

PID 1 of a sandbox becomes the parent of every process whose own parent died. They have to be waited for, or
the process table fills with zombies; but a plain ``waitpid(-1)`` would also swallow the statuses of
children that somebody in this process waits for. So there is one place that waits, and it hands the
statuses on.
"""

import asyncio
import os
import signal


class Reaper:
    """Waits for children on the event loop, without a thread. There must be only one in a process.

    A pid must be registered in the same step of the event loop that created the child (no ``await`` in
    between): statuses are collected by a loop callback, so one can never be lost that way.
    """

    def __init__(self) -> None:
        """Make a reaper that collects nothing before `start`."""
        self._waiting: dict[int, asyncio.Future[int]] = {}

    def start(self) -> None:
        """Begin to collect, on the running event loop. Call once."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self.reap)
        self.reap()

    def close(self) -> None:
        """Stop collecting; for programs that go on after the guest (tests)."""
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)

    def register(self, pid: int) -> "asyncio.Future[int]":
        """A future of the wait status (see `os.waitstatus_to_exitcode`) of the child `pid`, just forked."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting[pid] = future
        return future

    def reap(self) -> None:
        """Collect all children that have ended. Called on SIGCHLD, of which one may stand for many."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            future = self._waiting.pop(pid, None)
            if future is not None and not future.done():
                future.set_result(status)
