"""Turning a Python value into strict JSON: numpy and pandas scalars, dates, NaN, other keys."""

import math
from collections.abc import Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

MAX_NODES = 250_000
"""Values one structure may hold. Past this it would be slow to write, to send and to read."""
_MAX_DEPTH = 100
_MAX_INT_BITS = 4096


class TooLargeError(ValueError):
    """The structure has more values than `MAX_NODES`, or is nested too deeply (or without end)."""


def clean_text(text: str) -> str:
    r"""`text` as valid Unicode: a lone surrogate becomes its ``\udxxx`` escape."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text


def jsonable(value: Any) -> Any:
    """A copy of `value` made only of what JSON has. Raises TooLargeError, or TypeError for a type that has no
    form.
    """
    return _Converter().convert(value, 0)


class _Converter:
    def __init__(self) -> None:
        self._nodes = 0

    def convert(self, value: Any, depth: int) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES or depth > _MAX_DEPTH:
            raise TooLargeError(f"more than {MAX_NODES} values, or nested deeper than {_MAX_DEPTH}")
        if value is None or value is True or value is False:
            return value
        kind = type(value)
        if kind is str:
            return clean_text(value)
        if kind is int:
            return self._int(value)
        if kind is float:
            return value if math.isfinite(value) else None
        if isinstance(value, Mapping):
            return {self._key(key): self.convert(item, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple, set, frozenset)):
            return [self.convert(item, depth + 1) for item in value]
        return self._scalar(value, depth)

    @staticmethod
    def _int(value: int) -> int:
        if value.bit_length() > _MAX_INT_BITS:
            raise TooLargeError("an integer of more than a thousand digits")
        return value

    @staticmethod
    def _key(key: Any) -> str:
        if hasattr(key, "isoformat"):
            return str(key.isoformat())
        return clean_text(str(key))

    def _scalar(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return clean_text(str.__str__(value))  # of an Enum too, whose own str() may be its name
        if type(value).__name__ in ("NaTType", "NAType"):
            return None
        if isinstance(value, (date, time)):
            return value.isoformat()
        if isinstance(value, (timedelta, Decimal)):
            return str(value)
        if hasattr(value, "tolist") and hasattr(value, "dtype"):
            return self._numpy(value, depth)
        if isinstance(value, int):
            return self._int(int(value))
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else None
        if isinstance(value, complex):
            return str(value)
        raise TypeError(f"a value of type {type(value).__name__} has no JSON form")

    def _numpy(self, value: Any, depth: int) -> Any:
        if getattr(value, "size", 1) > MAX_NODES:
            raise TooLargeError(f"an array of {value.size} values")
        if value.dtype.kind in "mM":
            return [str(item) for item in value] if getattr(value, "shape", ()) else str(value)
        plain = value.tolist()
        if type(plain) is type(value):
            raise TypeError(f"a value of type {type(value).__name__} has no JSON form")
        return self.convert(plain, depth + 1)
