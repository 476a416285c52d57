"""DNS messages (RFC 1035): one question in, one answer out. Only addresses of version 4 are ever answered."""

import socket
import struct
from dataclasses import dataclass

A, ANY = 1, 255
NO_ERROR, FORMAT_ERROR, SERVER_FAILURE, NO_SUCH_NAME, NOT_IMPLEMENTED = 0, 1, 2, 3, 4
TTL = 60
"""Seconds an answer may be kept. The address stays the name's for much longer."""

_HEADER = struct.Struct(">6H")
_IN = 1
_QUERY_MASK = 0xF800  # a response, or an operation other than a standard query
_RECURSION_DESIRED, _RESPONSE, _RECURSION_AVAILABLE = 0x0100, 0x8000, 0x0080
_MAX_NAME = 253
_POINTER = 0xC0


class BadMessageError(Exception):
    """Not a DNS question; `code` is what to answer, None when not even that is worth while."""

    def __init__(self, code: int | None) -> None:
        super().__init__(f"bad DNS message: {code}")
        self.code = code


@dataclass(frozen=True)
class Question:
    """What is asked. `name` is in lower case without the last dot; `raw` is the question as it was sent."""

    number: int
    flags: int
    name: str
    kind: int
    raw: bytes


def parse(data: bytes) -> Question:
    """The question in a message. Raises BadMessageError."""
    if len(data) < _HEADER.size:
        raise BadMessageError(None)
    number, flags, questions, *_ = _HEADER.unpack_from(data)
    if flags & _RESPONSE:
        raise BadMessageError(None)
    if flags & _QUERY_MASK:
        raise BadMessageError(NOT_IMPLEMENTED)
    if questions != 1:
        raise BadMessageError(FORMAT_ERROR)
    labels, end = _labels(data, _HEADER.size)
    if len(data) < end + 4:
        raise BadMessageError(FORMAT_ERROR)
    kind, klass = struct.unpack_from(">HH", data, end)
    if klass != _IN:
        raise BadMessageError(NOT_IMPLEMENTED)
    name = ".".join(labels)
    if len(name) > _MAX_NAME:
        raise BadMessageError(FORMAT_ERROR)
    return Question(number, flags, name.lower(), kind, data[_HEADER.size : end + 4])


def _labels(data: bytes, offset: int) -> tuple[list[str], int]:
    labels: list[str] = []
    while offset < len(data):
        length = data[offset]
        offset += 1
        if length == 0:
            return labels, offset
        if length & _POINTER or offset + length > len(data):
            break
        # A label may hold any byte; what is no ASCII is made a name that no policy allows.
        labels.append(data[offset : offset + length].decode("ascii", "backslashreplace"))
        offset += length
    raise BadMessageError(FORMAT_ERROR)


def answer(question: Question, code: int, address: str | None = None) -> bytes:
    """The answer: a code, and with `address` one A record."""
    records = b""
    if address is not None:
        pointer_to_question = _POINTER << 8 | _HEADER.size
        records = struct.pack(">HHHIH", pointer_to_question, A, _IN, TTL, 4) + socket.inet_aton(address)
    return _head(question.number, question.flags, code, 1, int(bool(records))) + question.raw + records


def refusal(data: bytes, code: int) -> bytes:
    """The answer to a message that is no question, without repeating any of it."""
    number, flags, *_ = _HEADER.unpack_from(data)
    return _head(number, flags, code, 0, 0)


def _head(number: int, flags: int, code: int, questions: int, answers: int) -> bytes:
    flags = _RESPONSE | _RECURSION_AVAILABLE | flags & _RECURSION_DESIRED | code
    return _HEADER.pack(number, flags, questions, answers, 0, 0)
