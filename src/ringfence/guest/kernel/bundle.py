"""Making a MIME bundle fit to be sent: only strings and JSON, base64 for bytes, nothing larger than its
limit.
"""

import base64
import json
from typing import Any

from .jsonable import clean_text, jsonable

MAX_PART = 8 * 1024 * 1024
"""Characters one representation may have."""
MAX_BUNDLE = 15 * 1024 * 1024
"""Characters of a whole bundle; the rest of a 16 MiB message is for its frame."""
_KEPT_TEXT = 64 * 1024
_OMITTED = "application/vnd.ringfence.omitted+json"


def fit(data: dict[str, Any]) -> dict[str, Any]:
    """A copy of `data` within the limits. What had to be left out is named, with its size, in a part of its
    own.
    """
    kept: dict[str, Any] = {}
    omitted: dict[str, str] = {}
    used = 0
    for mime, value in data.items():
        part, problem = _part(str(mime), value)
        size = _size(part)
        if problem is None and (size > MAX_PART or used + size > MAX_BUNDLE):
            problem = f"{size} characters, the limit is {MAX_PART} each and {MAX_BUNDLE} together"
            part = _shortened(part, size) if mime == "text/plain" else None
            size = _size(part)
        if problem is not None:
            omitted[str(mime)] = problem
        if part is not None:
            kept[str(mime)] = part
            used += size
    if omitted:
        kept[_OMITTED] = omitted
        kept.setdefault("text/plain", "; ".join(f"{mime} left out: {why}" for mime, why in omitted.items()))
    return kept


def _part(mime: str, value: Any) -> tuple[Any, str | None]:
    """The value in a form that can be sent, or None and the reason why there is none."""
    if isinstance(value, str):
        return clean_text(value), None
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(value).decode("ascii"), None
    try:
        return jsonable(value), None
    except (ValueError, TypeError, RecursionError) as error:
        return None, str(error)


def _size(part: Any) -> int:
    if part is None:
        return 0
    return len(part) if isinstance(part, str) else len(json.dumps(part))


def _shortened(text: Any, size: int) -> str:
    head = text[:_KEPT_TEXT] if isinstance(text, str) else ""
    return (
        f"{head}\n… [{size - len(head)} more characters left out: a result may have {MAX_PART}; "
        "print a part of it, or write it to a file]"
    )
