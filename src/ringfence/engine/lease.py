"""Leases: until when each sandbox may live, and who is told when that time has come.

Deadlines are given in wall-clock seconds, since that is what a client is shown, but they are measured on the
monotonic clock: setting the machine's clock neither kills sandboxes nor keeps them.
"""

import asyncio
import heapq
import time
from collections.abc import Callable


class Leases:
    """Deadlines of sandboxes, kept in a heap behind a single timer of the event loop.

    `on_expiry` is called with the sandbox id, once per lease, on the loop; it must return at once.
    """

    def __init__(self, on_expiry: Callable[[str], None]) -> None:
        self._on_expiry = on_expiry
        self._deadlines: dict[str, float] = {}
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._deadlines)

    def get(self, sandbox_id: str) -> float | None:
        """The deadline in seconds since the epoch, exactly as it was set; None when there is no lease."""
        return self._deadlines.get(sandbox_id)

    def set(self, sandbox_id: str, deadline: float) -> None:
        """Let the lease end at `deadline` (seconds since the epoch), sooner or later than before."""
        due = asyncio.get_running_loop().time() + (deadline - time.time())
        self._deadlines[sandbox_id] = deadline
        self._due[sandbox_id] = due
        heapq.heappush(self._heap, (due, sandbox_id))
        self._arm()

    def extend(self, sandbox_id: str, deadline: float) -> float:
        """Like `set`, but never shortens. Returns the deadline then in force."""
        current = self._deadlines.get(sandbox_id)
        if current is not None and current >= deadline:
            return current
        self.set(sandbox_id, deadline)
        return deadline

    def cancel(self, sandbox_id: str) -> None:
        """Forget the lease, if there is one; `on_expiry` will not be called for it."""
        self._deadlines.pop(sandbox_id, None)
        self._due.pop(sandbox_id, None)

    def close(self) -> None:
        """Forget every lease."""
        self._deadlines.clear()
        self._due.clear()
        self._arm()

    def _arm(self) -> None:
        self._drop_stale()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heap:
            self._timer = asyncio.get_running_loop().call_at(self._heap[0][0], self._fire)

    def _drop_stale(self) -> None:
        """Remove entries of leases that were moved or cancelled, which stay until they reach the top."""
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)

    def _fire(self) -> None:
        loop = asyncio.get_running_loop()
        expired = []
        # A timer may fire up to the clock's resolution early; such a lease is due as well.
        horizon = loop.time() + time.get_clock_info("monotonic").resolution
        self._drop_stale()
        while self._heap and self._heap[0][0] <= horizon:
            sandbox_id = heapq.heappop(self._heap)[1]
            self.cancel(sandbox_id)
            expired.append(sandbox_id)
            self._drop_stale()
        self._arm()
        for sandbox_id in expired:
            self._on_expiry(sandbox_id)
