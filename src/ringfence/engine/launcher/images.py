"""Taking the image of a warmed gVisor sandbox away: what comes out of it is stored, and is not looked at.

The files lie in the sandbox's memory. A child that has given up all power but that over the sandbox copies
them, up to a bound, to files that nobody else writes to.
"""

import os
import selectors
import stat
from collections.abc import Callable
from typing import Any

from ringfence.engine.gvisor.imaging import FILES
from ringfence.engine.isolation import linux
from ringfence.engine.launcher.helpers import give_up_power, in_child, result_of
from ringfence.engine.launcher.records import SandboxRecord
from ringfence.engine.zygote import channel

_STORE_SECONDS = 120
_CHUNK = 1 << 24


class Images:
    """Stores images. done: is called with the sandbox, whose end it is, and the answer to who asked."""

    def __init__(
        self, selector: selectors.BaseSelector, done: Callable[[SandboxRecord, dict[str, Any]], None]
    ) -> None:
        self._selector = selector
        self._done = done

    def take(self, record: SandboxRecord, names: list[object], fds: list[int]) -> bool:
        """Store files that a sandbox has sent, if it may send such; whether it may. Then `fds` are closed."""
        known = [name for name in FILES if name in names]
        if not known or names != known or len(names) != len(fds) or record.helper >= 0:
            return False
        try:
            self._start(record, known, fds)
        except OSError as error:  # whoever wanted it has taken the place away
            self._done(record, {"error": str(error)})
        finally:
            channel.close_all(fds)
        return True

    def _start(self, record: SandboxRecord, names: list[str], fds: list[int]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        targets: list[int] = []
        try:
            for name in names:
                targets.append(os.open(f"{record.image_place}/{name}", flags, 0o600))
            answer, pid = in_child(lambda: _store(record, fds, targets), record.slot_fd, *fds, *targets)
        finally:
            channel.close_all(targets)
        record.helper = linux.pidfd_open(pid)
        self._selector.register(answer, selectors.EVENT_READ, lambda: self._on_stored(record, answer))

    def _on_stored(self, record: SandboxRecord, answer: int) -> None:
        self._selector.unregister(answer)
        result = result_of(answer)
        os.close(record.helper)
        record.helper = -1
        self._done(record, result)


def _store(record: SandboxRecord, sources: list[int], targets: list[int]) -> dict[str, int]:
    give_up_power(record, _STORE_SECONDS)
    stored = 0
    for source, target in zip(sources, targets, strict=True):
        if not stat.S_ISREG(os.fstat(source).st_mode):
            raise ValueError("it is not made of files")
        at = 0
        while count := os.sendfile(target, source, at, _CHUNK):
            at += count
            stored += count
            if stored > record.image_room:
                raise ValueError(f"it is larger than {record.image_room >> 20} MiB")
    return {"bytes": stored}
