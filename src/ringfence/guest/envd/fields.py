"""Reading fields of proto3 JSON messages, as tolerantly as the mapping demands.

Both spellings of a name (``watcherId``, ``watcher_id``) are valid, numbers may come as strings, ``null``
means absent, bytes are base64 of either alphabet with or without padding.
Every function raises `ConnectError` with ``invalid_argument`` for a value of a wrong type.
"""

import base64
import binascii
import re
from typing import Any

from ringfence.guest.connect import ConnectError, Message

_UPPER = re.compile(r"[A-Z]")


def _value(message: Message, name: str) -> Any:
    value = message.get(name)
    if value is None:
        value = message.get(_UPPER.sub(lambda letter: "_" + letter.group().lower(), name))
    return value


def _wrong(name: str, wanted: str) -> ConnectError:
    return ConnectError("invalid_argument", f"field '{name}' must be {wanted}")


def has(message: Message, name: str) -> bool:
    """Whether the field is there (and not null)."""
    return _value(message, name) is not None


def text(message: Message, name: str) -> str:
    """A string; absent is empty."""
    value = _value(message, name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _wrong(name, "a string")
    return value


def optional_text(message: Message, name: str) -> str | None:
    """A string; absent is None."""
    return text(message, name) if has(message, name) else None


def flag(message: Message, name: str, default: bool = False) -> bool:
    """A boolean."""
    value = _value(message, name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise _wrong(name, "a boolean")
    return value


def integer(message: Message, name: str) -> int:
    """An unsigned 32-bit integer, as number or string; absent is 0."""
    value = _value(message, name)
    if value is None:
        return 0
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 10:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 32:
        raise _wrong(name, "an unsigned 32-bit integer")
    return value


def submessage(message: Message, name: str) -> Message:
    """A message; absent is the empty one."""
    value = _value(message, name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _wrong(name, "an object")
    return value


def texts(message: Message, name: str) -> list[str]:
    """A list of strings; absent is empty."""
    value = _value(message, name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _wrong(name, "a list of strings")
    return value


def text_map(message: Message, name: str) -> dict[str, str]:
    """A map of strings to strings; absent is empty."""
    value = _value(message, name)
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise _wrong(name, "a map of strings")
    return value


def data(message: Message, name: str) -> bytes:
    """Bytes; absent is empty."""
    value = text(message, name).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise _wrong(name, "base64") from None
