"""The saved state of all contexts of a sandbox, as one file: the images of kernels, and what they belong to.

::

    image │ padding │ image │ padding │ … │ table (JSON) │ length of the table │ magic

The guest of the source writes it into a pipe of the host's, and the guest of the copy gets it as a file that
it can only read. The host knows nothing of what is in it.
"""

import json
import mmap
import os
import re
from dataclasses import dataclass
from typing import Any

MAGIC = b"RFstates"
_VERSION = 1
_TRAILER = 8 + len(MAGIC)
_MAX_TABLE = 4 << 20
_MAX_CONTEXTS = 1000
_ID = re.compile(r"[A-Za-z0-9-]{1,64}")


@dataclass(frozen=True)
class KernelState:
    """Where the image of a kernel is: from `start` on, `length` bytes of the file behind `descriptor`."""

    descriptor: int
    start: int
    length: int


@dataclass(frozen=True)
class SavedContext:
    """A context as it was. default: whether it is its language's. lost: its kernel had a state that is not in
    the copy, because only Python's is.
    """

    context_id: str
    language: str
    cwd: str
    default: bool
    lost: bool = False
    state: KernelState | None = None

    def described(self) -> dict[str, Any]:
        """Its row of the table."""
        state = None if self.state is None else [self.state.start, self.state.length]
        return {
            "id": self.context_id, "language": self.language, "cwd": self.cwd, "default": self.default,
            "lost": self.lost, "state": state,
        }  # fmt: skip


def padding(position: int) -> bytes:
    """What is missing up to the next page."""
    return bytes(-position % mmap.PAGESIZE)


def table_of(contexts: list[SavedContext]) -> bytes:
    """The end of the file."""
    data = json.dumps({"version": _VERSION, "contexts": [one.described() for one in contexts]}).encode()
    return data + len(data).to_bytes(8, "little") + MAGIC


def read_contexts(descriptor: int) -> list[SavedContext]:
    """The contexts in a file. Raises ValueError when it is none: the source was free to spoil it."""
    end = os.fstat(descriptor).st_size - _TRAILER
    trailer = os.pread(descriptor, _TRAILER, max(0, end))
    size = int.from_bytes(trailer[:8], "little")
    if end < 0 or trailer[8:] != MAGIC or size > min(_MAX_TABLE, end):
        raise ValueError("no table")
    try:
        table = json.loads(os.pread(descriptor, size, end - size))
        if table["version"] != _VERSION:
            raise ValueError("another version")
        return [_context(descriptor, end, row) for row in table["contexts"][:_MAX_CONTEXTS]]
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError("not a table") from error


def _context(descriptor: int, end: int, row: dict[str, Any]) -> SavedContext:
    context_id, language, cwd = str(row["id"]), str(row["language"]), str(row["cwd"])
    if not _ID.fullmatch(context_id) or len(language) > 256 or len(cwd) > 4096 or "\0" in cwd:
        raise ValueError("not a context")
    state = None
    if row["state"] is not None:
        start, length = map(int, row["state"])
        if start % mmap.PAGESIZE or not 0 <= start < start + length <= end:
            raise ValueError("not a place in the file")
        state = KernelState(descriptor, start, length)
    return SavedContext(context_id, language, cwd, bool(row["default"]), bool(row["lost"]), state)
