"""What keeps one sandbox from asking too much, and from filling a log."""

import time
from collections.abc import Callable

from ringfence.engine.egress.dialer import Destination

_QUIET_SECONDS = 5.0
_MOST_REPORTS = 60
_REPORT_SECONDS = 60.0
_MOST_CONTACTS = 200

Report = Callable[[str, str], None]
"""Takes a level (``warning`` or ``info``) and a sentence."""


class Budget:
    """So many per second on average, and a burst of five seconds' worth."""

    def __init__(self, per_second: int) -> None:
        self._rate = per_second
        self._left = float(per_second * 5)
        self._at = time.monotonic()

    def take(self) -> bool:
        """Whether there was one left."""
        now = time.monotonic()
        self._left = min(self._rate * 5.0, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Reports:
    """Passes sentences on, but not the same one twice at once, and not more than anybody would read."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._last: dict[str, float] = {}
        self._since = time.monotonic()
        self._count = 0
        self._contacts: set[Destination] = set()

    def contact(self, destination: Destination) -> None:
        """Note the first connection to each destination."""
        if destination not in self._contacts and len(self._contacts) < _MOST_CONTACTS:
            self._contacts.add(destination)
            self._report("info", f"reached {destination}")

    def give(self, level: str, sentence: str) -> bool:
        """Whether the sentence went out."""
        now = time.monotonic()
        if now - self._since > _REPORT_SECONDS:
            self._since, self._count = now, 0
            self._last.clear()
        if now - self._last.get(sentence, -_QUIET_SECONDS) < _QUIET_SECONDS or self._count > _MOST_REPORTS:
            return False
        self._last[sentence] = now
        self._count += 1
        if self._count > _MOST_REPORTS:
            sentence = "more was refused; the next minute's refusals are listed again"
        self._report(level, sentence)
        return True
