"""``Idempotency-Key``: a create that is sent twice makes one sandbox."""

import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from ringfence.server.errors import ApiError

_KEY = re.compile(r"^[a-z0-9-]{1,255}$")
_KEEP_SECONDS = 24 * 3600
_MAX_ENTRIES = 10_000


@dataclass
class _Entry:
    fingerprint: bytes
    at: float
    answer: dict[str, Any] | None = None


class Idempotency:
    """Answers already given, by owner and key; bounded, and kept for a day."""

    def __init__(self) -> None:
        self._entries: OrderedDict[tuple[str, str], _Entry] = OrderedDict()

    async def run(
        self, owner: str, key: str, fingerprint: bytes, work: Callable[[], Awaitable[dict[str, Any]]]
    ) -> dict[str, Any]:
        """The answer of `work`, which runs once for an owner's `key`; a failure is not kept.

        fingerprint: a digest of the request. Raises ApiError: 400 for a malformed key, 409 while the first
        request is still running, 422 when the key was used for another request.
        """
        if not _KEY.match(key):
            raise ApiError(400, "Idempotency-Key must be 1 to 255 lowercase letters, digits and hyphens")
        self._forget_old()
        known = self._entries.get((owner, key))
        if known is not None:
            return _replay(known, fingerprint)
        entry = self._entries[(owner, key)] = _Entry(fingerprint, time.monotonic())
        try:
            entry.answer = await work()
        finally:
            if entry.answer is None:
                del self._entries[(owner, key)]
        return entry.answer

    def _forget_old(self) -> None:
        horizon = time.monotonic() - _KEEP_SECONDS
        while self._entries:
            name, oldest = next(iter(self._entries.items()))
            over = len(self._entries) >= _MAX_ENTRIES
            if oldest.answer is None or not (over or oldest.at < horizon):
                return
            del self._entries[name]


def _replay(entry: _Entry, fingerprint: bytes) -> dict[str, Any]:
    if entry.fingerprint != fingerprint:
        raise ApiError(
            422,
            "Idempotency-Key was already used for a different request",
            error_code="idempotency_request_mismatch",
        )
    if entry.answer is None:
        raise ApiError(
            409, "a request with this Idempotency-Key is still running", error_code="idempotency_in_progress"
        )
    return entry.answer
