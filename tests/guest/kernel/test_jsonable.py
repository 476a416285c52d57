"""Values as strict JSON, and MIME bundles within their limits."""

import enum
import json
import math
from datetime import date, datetime, timedelta
from decimal import Decimal

import pytest

from ringfence.guest.kernel import bundle
from ringfence.guest.kernel.jsonable import MAX_NODES, TooLargeError, clean_text, jsonable


class Color(str, enum.Enum):  # noqa: UP042 - as people write it
    RED = "red"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({1: (True, None)}, {"1": [True, None]}),
        ([math.nan, math.inf, -math.inf], [None, None, None]),
        ({date(2024, 1, 2): datetime(2024, 1, 2, 3, 4)}, {"2024-01-02": "2024-01-02T03:04:00"}),
        ([timedelta(1), Decimal("1.5"), 1j], ["1 day, 0:00:00", "1.5", "1j"]),
        (Color.RED, "red"),
        ("\ud800", "\\ud800"),
    ],
)
def test_values(value, expected):
    assert jsonable(value) == expected
    json.dumps(jsonable(value), allow_nan=False)


def test_numpy_values():
    numpy = pytest.importorskip("numpy")
    value = [
        numpy.int64(3),
        numpy.float32(0.5),
        numpy.array([1.0, numpy.nan]),
        numpy.datetime64("2024-01-02"),
    ]
    assert jsonable(value) == [3, 0.5, [1.0, None], "2024-01-02"]


def test_what_has_no_end():
    endless: list[object] = []
    endless.append(endless)
    for value in (endless, list(range(MAX_NODES + 1)), 10**2000):
        with pytest.raises(TooLargeError):
            jsonable(value)


def test_what_has_no_form():
    with pytest.raises(TypeError, match="object"):
        jsonable([object()])


def test_clean_text_keeps_valid_text():
    assert clean_text("ä\u2028") == "ä\u2028"


def test_a_bundle_that_fits_is_kept():
    assert bundle.fit({"text/plain": "a", "image/png": b"\x00", "application/json": {"a": 1}}) == {
        "text/plain": "a",
        "image/png": "AA==",
        "application/json": {"a": 1},
    }


def test_parts_that_are_too_large_are_named():
    fitted = bundle.fit({"text/plain": "x" * (bundle.MAX_PART + 1), "text/html": "y" * (bundle.MAX_PART + 1)})
    assert len(fitted["text/plain"]) < 100_000
    assert "left out" in fitted["text/plain"]
    omitted = fitted["application/vnd.ringfence.omitted+json"]
    assert set(omitted) == {"text/plain", "text/html"}


def test_a_bundle_without_anything_left_says_so():
    assert "object" in bundle.fit({"x/y": object()})["text/plain"]
