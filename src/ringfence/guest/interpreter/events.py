"""The events of ``POST /execute``, as E2B's clients read them: one JSON object per line."""

import json
from datetime import UTC, datetime
from typing import Any, Literal

Event = dict[str, Any]

_RESULT_KEYS = {
    "text/plain": "text",
    "text/html": "html",
    "text/markdown": "markdown",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "application/pdf": "pdf",
    "text/latex": "latex",
    "application/json": "json",
    "application/javascript": "javascript",
    "e2b/data": "data",
    "e2b/chart": "chart",
}

KEEPALIVE: Event = {"type": "keepalive"}
END: Event = {"type": "end_of_execution"}


def encode(event: Event) -> bytes:
    """One line. ASCII only: the clients split lines at U+2028, U+0085 and others too, and then parse each
    piece.
    """
    return json.dumps(event, ensure_ascii=True).encode("ascii") + b"\n"


def output(name: Literal["stdout", "stderr"], text: str) -> Event:
    """Text printed by the cell."""
    return {"type": name, "text": text, "timestamp": datetime.now(UTC).isoformat()}


def number_of_executions(count: int) -> Event:
    """The cell's number in its context, from 1."""
    return {"type": "number_of_executions", "execution_count": count}


def error(name: str, value: str, traceback: str = "") -> Event:
    """The exception that ended the cell, or what ended it instead."""
    return {"type": "error", "name": name, "value": value, "traceback": traceback}


def context_state(state: Literal["reset", "lost"], reason: str) -> Event:
    """What became of the context's variables, when they were not kept. E2B's clients ignore it."""
    return {"type": "context_state", "state": state, "reason": reason}


def result(data: dict[str, Any], *, main: bool) -> Event:
    """A MIME bundle as a result; what has no key of its own is in ``extra``."""
    event: Event = {"type": "result"}
    extra: dict[str, Any] = {}
    for mime, value in data.items():
        if value is None:
            continue
        key = _RESULT_KEYS.get(mime)
        if key is None:
            extra[mime] = value
        else:
            event[key] = _unquoted(value) if key == "text" else value
    return {**event, "extra": extra, "is_main_result": main}


def _unquoted(text: Any) -> Any:
    """A string's repr without its quotes, as E2B shows it."""
    if isinstance(text, str) and len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return text
