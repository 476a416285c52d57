"""When a server is to stop: at a signal, or at the end of the program that started it."""

import asyncio
import os
import signal

_FORCED_EXIT = 130


class Stop:
    """`asked` is set when it is time. A second signal ends the process at once."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    def watch(self, lifeline: int | None) -> None:
        """Watch, on the running loop. lifeline: a pipe of which the other end's owner only holds it open."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        if lifeline is not None:
            os.set_blocking(lifeline, False)
            loop.add_reader(lifeline, self._on_lifeline, lifeline)

    def _on_signal(self) -> None:
        if self.asked.is_set():
            # The launcher sees its channel close and ends every sandbox.
            os._exit(_FORCED_EXIT)
        self.asked.set()

    def _on_lifeline(self, lifeline: int) -> None:
        try:
            ended = not os.read(lifeline, 1024)
        except BlockingIOError:
            return
        except OSError:
            ended = True
        if ended:
            asyncio.get_running_loop().remove_reader(lifeline)
            self.asked.set()
