"""PID 1 of a gVisor sandbox that is there to be written down: when its guest is warm it becomes an image.

No orders come here, so nothing of any sandbox's owner is in the image. It lies in a bounded file system in
memory, from which the launcher takes it: its files are passed as descriptors, read-only.
"""

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ringfence.engine.gvisor.root import IMAGE
from ringfence.engine.gvisor.warden import Warden, start_program
from ringfence.engine.zygote import channel

FILES = ("checkpoint.img", "pages_meta.img", "pages.img")
"""What ``runsc checkpoint`` may write; the first is always there, the others since 2024."""


@dataclass
class Imager(Warden):
    """Has one container written down. checkpoint: the command line that does it."""

    checkpoint: Sequence[str] = ()
    _writer: int = 0

    def on_warm(self) -> None:
        """Write it down."""
        if self._writer == 0:
            null = os.open(os.devnull, os.O_RDONLY)
            self._writer = start_program(self.checkpoint, null, os.dup(self.container.output_end))
            os.close(null)

    def on_end(self, pid: int, code: int) -> None:
        """The kernel ends with the checkpoint, before or after the program that asked for it."""
        if pid != self._writer:
            super().on_end(pid, 0 if self._writer and pid == self.container.pid else code)
        elif code != 0:
            self.fail(f"runsc checkpoint ended with status {code}: {self.container.explanation()}")
        else:
            self._deliver()

    def _deliver(self) -> None:
        found = [name for name in FILES if Path(IMAGE, name).is_file()]
        fds = [os.open(f"{IMAGE}/{name}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC) for name in found]
        channel.send(self.report, {"image": found}, fds)
        signal.alarm(0)
        self.lifeline.recv(1)  # nothing comes but the launcher's end, or ours
        os._exit(0)
