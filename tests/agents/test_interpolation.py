import pytest

from ringfence.agents.interpolation import interpolate
from ringfence.core.errors import ConfigurationError

ENVIRON = {"NAME": "value", "EMPTY": "", "TRICKY": "${NAME}: {a: b}"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("${NAME}", "value"),
        ("a ${NAME} b ${NAME}", "a value b value"),
        ("${EMPTY}", ""),
        ("${EMPTY:-default}", "default"),
        ("${MISSING:-}", ""),
        ("${MISSING:-a b}", "a b"),
        ("${NAME:?needed}", "value"),
        ("$${NAME}", "${NAME}"),
        ("costs 5$$", "costs 5$"),
        ("${TRICKY}", "${NAME}: {a: b}"),
    ],
)
def test_variables_are_replaced(text: str, expected: str) -> None:
    assert interpolate(text, ENVIRON, "place") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("${MISSING}", "place: the variable MISSING is needed"),
        ("${MISSING:?get one at example.com}", "get one at example.com"),
        ("${EMPTY:?say it}", "say it"),
        ("$NAME", "place: a lone"),
        ("${1}", "place: a lone"),
    ],
)
def test_errors_name_the_place(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        interpolate(text, ENVIRON, "place")
