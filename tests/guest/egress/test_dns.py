"""Questions and answers, and names' addresses."""

import struct

import pytest

from ringfence.guest.egress import dns
from ringfence.guest.egress.names import Names, is_synthetic


def question(name: bytes, kind: int = dns.A, flags: int = 0x0100, count: int = 1, klass: int = 1) -> bytes:
    """A message with one question."""
    return struct.pack(">6H", 7, flags, count, 0, 0, 0) + name + struct.pack(">HH", kind, klass)


NAME = b"\x03WWW\x07example\x03com\x00"


def test_a_question() -> None:
    parsed = dns.parse(question(NAME) + b"additional")
    assert (parsed.number, parsed.name, parsed.kind) == (7, "www.example.com", dns.A)


def test_answers() -> None:
    parsed = dns.parse(question(NAME))
    answer = dns.answer(parsed, dns.NO_ERROR, "198.18.0.1")
    assert answer[:12] == struct.pack(">6H", 7, 0x8180, 1, 1, 0, 0)
    assert answer.endswith(b"\x00\x04" + bytes([198, 18, 0, 1]))
    assert NAME in answer
    assert dns.answer(parsed, dns.NO_SUCH_NAME)[:4] == struct.pack(">2H", 7, 0x8183)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", None),
        (b"\0" * 11, None),
        (question(NAME, flags=0x8000), None),
        (question(NAME, flags=0x2800), dns.NOT_IMPLEMENTED),
        (question(NAME, klass=3), dns.NOT_IMPLEMENTED),
        (question(NAME, count=2), dns.FORMAT_ERROR),
        (question(NAME, count=0), dns.FORMAT_ERROR),
        (question(NAME)[:-3], dns.FORMAT_ERROR),
        (question(b"\x03ww"), dns.FORMAT_ERROR),
        (question(b"\xc0\x0c"), dns.FORMAT_ERROR),
        (
            question(
                b"\x3f" + b"x" * 63 + b"\x3f" + b"x" * 63 + b"\x3f" + b"x" * 63 + b"\x3f" + b"x" * 63 + b"\0"
            ),
            1,
        ),
    ],
)
def test_what_is_no_question(data: bytes, code: int | None) -> None:
    with pytest.raises(dns.BadMessageError) as caught:
        dns.parse(data)
    assert caught.value.code == code


def test_strange_bytes_make_a_name_that_no_policy_allows() -> None:
    assert dns.parse(question(b"\x02\xff\x00\x00")).name == "\\xff\x00"


def test_names_keep_their_addresses() -> None:
    names = Names()
    first, second = names.address_of("a.test"), names.address_of("b.test")
    assert (names.address_of("a.test"), names.name_of(first), names.name_of(second)) == (
        first,
        "a.test",
        "b.test",
    )
    assert first != second
    assert is_synthetic(first)
    assert not is_synthetic("8.8.8.8")
    assert names.name_of("198.19.255.254") is None


def test_a_full_table_forgets_the_oldest() -> None:
    names = Names(capacity=2)
    first = names.address_of("a.test")
    names.address_of("b.test")
    names.address_of("a.test")
    third = names.address_of("c.test")
    assert names.name_of(first) == "a.test"
    assert names.name_of(third) == "c.test"
    assert names.address_of("b.test") == first
    assert names.name_of(first) == "b.test"
