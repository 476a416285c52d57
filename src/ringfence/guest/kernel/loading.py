"""Loading the state of a kernel, from an image that `saving` has written, in one that has run nothing yet.

The image is a file that several kernels may share. Its large buffers are mapped privately: what none of them
changes is there once. Whatever wrote the image had the rights that this kernel has, so it is unpickled here
and nowhere else.
"""

import gc
import io
import json
import mmap
import os
import pickle
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .saving import MAGIC, VERSION
from .session import put_item, put_surroundings, resume_history
from .shell import KernelShell

_TRAILER = 8 + len(MAGIC)
_MAX_INDEX = 64 << 20
_MEMOIZE = b"\x94"
_SHOWN = 20
_MAX_NOTE = 300


class LoadError(Exception):
    """The image is not one; the message says how so."""


@dataclass
class _Image:
    """An image as it lies in a file, and what its index says."""

    descriptor: int
    start: int
    length: int
    index: dict[str, Any] = field(default_factory=dict)

    def read_index(self) -> None:
        """Read the index. Raises LoadError."""
        end = self.start + self.length
        trailer = os.pread(self.descriptor, _TRAILER, end - _TRAILER) if self.length >= _TRAILER else b""
        size = int.from_bytes(trailer[:8], "little")
        if trailer[8:] != MAGIC or size > min(_MAX_INDEX, self.length - _TRAILER):
            raise LoadError("the saved state is damaged")
        self.index = json.loads(os.pread(self.descriptor, size, end - _TRAILER - size))
        if self.index["version"] != VERSION:
            raise LoadError("the saved state is of another version of Ringfence")
        if tuple(self.index["python"]) != sys.version_info[:2]:
            raise LoadError("the saved state is of another version of Python")

    def map(self, offset: int, size: int) -> memoryview:
        """The bytes there, which can be changed for this process only. `offset` is the start of a page."""
        if not 0 <= offset <= offset + size <= self.length or size <= 0:
            raise LoadError("the saved state is damaged")
        mapped = mmap.mmap(self.descriptor, size, access=mmap.ACCESS_COPY, offset=self.start + offset)
        return memoryview(mapped)

    def buffers(self, first: int = 0) -> Iterator[memoryview]:
        """The buffers from the number `first` on."""
        for offset, size in self.index["buffers"][first:]:
            yield self.map(offset, size)


def load(shell: KernelShell, descriptor: int, start: int, length: int) -> list[str]:
    """Take on the state in the image at `start` of an open file; what the user should know, as lines.

    Raises LoadError, and whatever a damaged pickle can raise: then this kernel is of no use.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        image = _Image(descriptor, start, length)
        image.read_index()
        return _notes(image.index["left_out"], _Loader(shell, image).load())
    finally:
        if collects:
            gc.enable()


class _Loader:
    """Loads one piece after the other, all with one memo."""

    def __init__(self, shell: KernelShell, image: _Image) -> None:
        self._shell = shell
        self._image = image
        self._pieces = [tuple(piece) for piece in image.index["pieces"]]
        self._starts = [piece[2] for piece in self._pieces] + [image.index["end"]]
        self._data = image.map(0, image.index["end"])
        self._failed: list[tuple[str, str]] = []

    def load(self) -> list[tuple[str, str]]:
        """Load everything; what could not be, with the reason."""
        unpickler = self._unpickler(0)
        surroundings = unpickler.load()
        self._failed += [("", note) for note in put_surroundings(self._shell, surroundings)]
        for number, (kind, name, *_) in enumerate(self._pieces[1:], start=1):
            try:
                put_item(self._shell, kind, name, unpickler.load())
            except MemoryError:
                raise
            except Exception as error:
                shown = f"Out[{name}]" if kind == "output" else str(name)
                self._failed.append((shown, _reason(error)))
                if number + 1 < len(self._pieces):
                    unpickler = self._after(number, unpickler)
        resume_history(self._shell)
        return self._failed

    def _unpickler(self, number: int, memo: "_Memo | None" = None) -> pickle.Unpickler:
        memo = memo or _Memo({})
        raw = _Raw([memoryview(memo.pickle() if memo.entries else b""), self._data[self._starts[number] :]])
        source = io.BufferedReader(raw, 1 << 16)
        buffers = self._image.buffers(self._pieces[number][3])
        return _Unpickler(source, buffers, memo)

    def _after(self, number: int, failed: pickle.Unpickler) -> pickle.Unpickler:
        """An unpickler for what comes after the piece `number`, which could not be loaded.

        Pieces refer to each other by the number that an object has in the memo, and each new one gets the
        next number. So the memo must be as large as if the piece had been loaded. What it lacks is filled up
        at numbers that are never asked for; a piece that refers to what is missing fails as well.
        """
        start, end = self._starts[number : number + 2]
        before = _count_memoized(bytes(self._data[self._starts[0] : start]))
        expected = before + _count_memoized(bytes(self._data[start:end]))
        known = {index: value for index, value in failed.memo.copy().items() if index < before}
        beyond = expected + _upper_bound(self._data[end:])
        filling = [(beyond + index, None) for index in range(expected - len(known))]
        unpickler = self._unpickler(number + 1, _Memo({**known, **dict(filling)}))
        unpickler.load()
        return unpickler


class _Memo:
    """A memo as a pickle, since there is no other way to give an unpickler one."""

    def __init__(self, entries: dict[int, Any]) -> None:
        self.entries = entries

    def pickle(self) -> bytes:
        """Each object is asked for by its number and put there; the value of the whole is None."""
        parts = [b"\x80\x05"]
        parts += [b"J%sQr%s0" % ((index.to_bytes(4, "little"),) * 2) for index in self.entries]
        return b"".join([*parts, b"N."])


class _Unpickler(pickle.Unpickler):
    """An unpickler that can start with a memo."""

    def __init__(self, source: Any, buffers: Iterator[memoryview], memo: _Memo) -> None:
        super().__init__(source, buffers=buffers)
        self._entries = memo.entries

    def persistent_load(self, pid: Any) -> Any:
        """An entry of the memo. The pickles of an image have no persistent ids."""
        return self._entries[pid]


def _count_memoized(data: bytes) -> int:
    """How many objects the pickles in `data`, one after the other, put into the memo."""
    import pickletools

    source, count = io.BytesIO(data), 0
    while source.tell() < len(data):
        count += sum(opcode.name == "MEMOIZE" for opcode, _, _ in pickletools.genops(source))
    return count


def _upper_bound(data: memoryview) -> int:
    """No fewer than the objects that the pickles in `data` put into the memo."""
    step = 1 << 20
    return sum(bytes(data[at : at + step]).count(_MEMOIZE) for at in range(0, len(data), step))


class _Raw(io.RawIOBase):
    """Reads one piece of memory after the other."""

    def __init__(self, pieces: list[memoryview]) -> None:
        self._pieces = pieces

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, target: Any) -> int:
        """Fill `target`, or as much of it as there is data for."""
        view = memoryview(target)
        while len(self._pieces) > 1 and not self._pieces[0]:
            self._pieces.pop(0)
        part = self._pieces[0][: len(view)]
        self._pieces[0] = self._pieces[0][len(part) :]
        view[: len(part)] = part
        return len(part)


def _reason(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError) and "Memo value not found" in str(error):
        return "it holds something of one of these"
    return f"{type(error).__name__}: {error}"[:_MAX_NOTE]


def _notes(left_out: list[list[str]], failed: list[tuple[str, str]]) -> list[str]:
    lines = []
    named = [(str(name), str(reason)) for name, reason in left_out] + [pair for pair in failed if pair[0]]
    if named:
        shown = "; ".join(f"{name} ({reason[:_MAX_NOTE]})" for name, reason in named[:_SHOWN])
        more = f"; and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
        lines.append(
            f"This context is a copy. It has all variables but these, which cannot be copied: {shown}{more}"
        )
    return lines + [f"In this copy, {note}" for name, note in failed if not name][:_SHOWN]
