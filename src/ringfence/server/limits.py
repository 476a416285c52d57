"""Limits that a create request asks for, in its metadata: E2B's API has no field for them.

``ringfence.memory_mb``, ``ringfence.cpus``, ``ringfence.pids``, ``ringfence.disk_mb``, ``ringfence.inodes``
and ``ringfence.open_files`` replace the template's; the operator's ceiling holds for them.
"""

import dataclasses
from collections.abc import Mapping

from ringfence.engine.model import Limits
from ringfence.server.errors import ApiError

PREFIX = "ringfence."
_MOST = 1 << 40


def with_requested(limits: Limits, metadata: Mapping[str, str], max_memory_mb: int | None = None) -> Limits:
    """`limits` with what the metadata ask for. Raises ApiError (400) for what is no positive number, or more
    memory than the operator's `max_memory_mb`.
    """
    asked: dict[str, float] = {}
    for field in dataclasses.fields(Limits):
        text = metadata.get(PREFIX + field.name)
        if text is not None:
            asked[field.name] = _number(PREFIX + field.name, text, whole=field.name != "cpus")
    if max_memory_mb is not None and asked.get("memory_mb", 0) > max_memory_mb:
        raise ApiError(400, f"metadata {PREFIX}memory_mb may be {max_memory_mb} at most on this server")
    return dataclasses.replace(limits, **asked)  # type: ignore[arg-type]


def _number(name: str, text: str, *, whole: bool) -> float:
    try:
        number = int(text) if whole else float(text)
    except ValueError:
        number = 0
    if not 0 < number <= _MOST:
        kind = "whole number" if whole else "number"
        raise ApiError(400, f"metadata {name} must be a {kind} above zero, not {text[:40]!r}")
    return number
