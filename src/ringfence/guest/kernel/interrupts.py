"""SIGINT in a kernel: it stops the running cell, never the kernel, and never cuts a message in two."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Interrupts:
    """Turns SIGINT into KeyboardInterrupt while a cell runs, and into nothing otherwise."""

    def __init__(self) -> None:
        self._holders = 0
        self._pending = False

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
        """Within, an interrupt of the main thread waits; it is raised at the end of the block."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
        if self._pending and not self._holders:
            self._pending = False
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def ignored(self) -> Iterator[None]:
        """Within, an interrupt is left to the others in the process group, who get it too."""
        self.disarm()
        yield
