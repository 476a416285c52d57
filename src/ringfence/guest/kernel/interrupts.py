"""Signals of a kernel: SIGINT stops the running cell, never the kernel, and never cuts a message in two."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

CALL = signal.SIGRTMIN + 13
"""The guest's signal that a request waits which even a running cell must let in; programs use it rarely."""


class Interrupts:
    """Turns SIGINT into KeyboardInterrupt while a cell runs, and into nothing otherwise.

    `answer`, called in the main thread when the guest calls, lets a request in between two steps of a cell.
    """

    def __init__(self) -> None:
        self._holders = 0
        self._pending = False
        self._called = False
        self._answer: Callable[[], None] = lambda: None

    def answer(self, work: Callable[[], None]) -> None:
        """From now on, do `work` when the guest calls, but never within a `held` block."""
        self._answer = work
        signal.signal(CALL, self._on_call)

    def _on_call(self, _signal: int, _frame: FrameType | None) -> None:
        if self._holders:
            self._called = True
        else:
            self._answer()

    def _on_cell(self, _signal: int, _frame: FrameType | None) -> None:
        if self._holders:
            self._pending = True
        else:
            raise KeyboardInterrupt

    @staticmethod
    def _on_idle(_signal: int, _frame: FrameType | None) -> None:
        """Nothing runs that could be interrupted. Not SIG_IGN, which subprocesses would inherit."""

    def disarm(self) -> None:
        """SIGINT does nothing until the next `armed` block."""
        signal.signal(signal.SIGINT, self._on_idle)

    @contextlib.contextmanager
    def armed(self) -> Iterator[None]:
        """Within, SIGINT raises KeyboardInterrupt in the main thread, unless user code installs its own
        handler.
        """
        self._pending = False
        signal.signal(signal.SIGINT, self._on_cell)
        try:
            yield
        finally:
            self.disarm()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Within, an interrupt of the main thread, or a call, waits until the end of the block."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
        if self._called and not self._holders:
            self._called = False
            self._answer()
        if self._pending and not self._holders:
            self._pending = False
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def ignored(self) -> Iterator[None]:
        """Within, an interrupt is left to the others in the process group, who get it too."""
        self.disarm()
        yield
