"""The tier of isolation that a create request asks for, in its metadata: E2B's API has no field for it.

``ringfence.isolation`` is ``process`` or ``gvisor``. A request can ask for more than its template and the
operator do, never for less.
"""

from collections.abc import Mapping

from ringfence.engine.model import TIERS, Isolation
from ringfence.server.errors import ApiError

KEY = "ringfence.isolation"


def requested(metadata: Mapping[str, str], least: Isolation) -> Isolation:
    """The tier asked for, `least` when none is. Raises ApiError (400): unknown, or less than `least`."""
    text = metadata.get(KEY)
    if text is None:
        return least
    tier = next((tier for tier in TIERS if tier == text), None)
    if tier is None:
        raise ApiError(400, f"metadata {KEY} must be one of {', '.join(TIERS)}, not {text[:40]!r}")
    if TIERS.index(tier) < TIERS.index(least):
        raise ApiError(400, f"metadata {KEY} asks for {tier}, but {least} is the least here")
    return tier
