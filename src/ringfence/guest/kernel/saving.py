"""Writing the state of a Python kernel to a pipe, as an image that `loading` can map.

The image is what a memory snapshot would have kept of the kernel: one pickle for all of the namespace, in
pieces that share their memo, so that references between variables stay shared. Large buffers are not in the
pickle but follow it, each on a page of its own::

    pieces │ padding │ buffer │ padding │ buffer │ … │ index (JSON) │ length of the index │ magic

The index names each piece and where it starts, where the buffers are, and what was left out and why. Buffers
go into the pipe by reference (vmsplice(2)); the kernel stands still until the host has read them.
"""

import contextlib
import ctypes
import gc
import json
import mmap
import os
import resource
import sys
from collections.abc import Callable, Iterator
from typing import Any

from .pickling import pickler_class
from .session import Baseline, Item, items_of, surroundings_of
from .shell import KernelShell

MAGIC = b"RFkernel"
VERSION = 1
_OWN_PAGES = 64 * 1024
"""Bytes from which a buffer gets pages of its own."""
_MOST_BUFFERS = 16_000
"""A process may have some 65,000 mappings."""
_DEPTH = 3000
"""Calls that pickling may nest: enough for deep data, and far from the end of the stack."""
_ATTEMPTS = 3
_MAX_REASON = 200

_libc = ctypes.CDLL(None, use_errno=True)


class SaveError(Exception):
    """The state cannot be saved; the message says why."""


class SaveAborted(BaseException):
    """The guest does not wait any longer."""


class Pipe:
    """The end of a pipe that the image goes into. `position` is how many bytes have."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.position = 0

    def write(self, data: Any, /) -> int:
        """Write `data`, a bytes-like object, whole; its length."""
        view = memoryview(data).cast("B")
        size = len(view)
        while view:
            view = view[os.write(self._descriptor, view) :]
        self.position += size
        return size

    def align(self) -> None:
        """Pad with zeros up to the next page."""
        self.write(bytes(-self.position % mmap.PAGESIZE))

    def give(self, view: memoryview) -> None:
        """Write `view` without copying it: it must not change until the pipe was read."""
        done = self._splice(view)
        self.position += done
        self.write(view[done:])

    def _splice(self, view: memoryview) -> int:
        """How many bytes the system took by reference; where it does not do that, zero."""
        address, size, done = _address(view), len(view), 0
        while done < size:
            part = _Part(address + done, size - done)
            count = _libc.vmsplice(self._descriptor, ctypes.byref(part), ctypes.c_ulong(1), ctypes.c_uint(0))
            if count <= 0 and ctypes.get_errno() != 4:  # EINTR
                break
            done += max(count, 0)
        return done


class _Part(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


class _Buffer(ctypes.Structure):
    """The beginning of CPython's ``Py_buffer``, and room for the rest."""

    _fields_ = (("base", ctypes.c_void_p), ("rest", ctypes.c_byte * 120))


def _address(view: memoryview) -> int:
    """Where the bytes of `view`, which may be read-only, are."""
    buffer = _Buffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(view), ctypes.byref(buffer), 0)
    address = int(buffer.base or 0)
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
    return address


class _Nowhere:
    """A sink for attempts."""

    def write(self, data: Any, /) -> int:
        """Forget `data`."""
        return memoryview(data).nbytes


class Saver:
    """Saves the state of one kernel, as often as it is asked."""

    def __init__(self, shell: KernelShell) -> None:
        self._shell = shell
        self._baseline = Baseline(shell)
        self._buffers: list[memoryview] = []

    def save(self, descriptor: int, *, room: int, count: int, cell_env: dict[str, str | None]) -> int:
        """Write an image to the pipe `descriptor`; its length. Raises SaveError.

        room: bytes of memory that doing so may take. count: the number of the next cell. cell_env: variables
        of the cell that runs, with what they were before it.
        """
        pipe = Pipe(descriptor)
        around = surroundings_of(self._shell, self._baseline, count=count, cell_env=cell_env)
        first: Item = ("surroundings", None, around)
        try:
            with _bounded(room):
                self._write(pipe, first)
        except MemoryError:
            raise SaveError("there is not enough memory left in the sandbox to copy its variables") from None
        except BrokenPipeError:
            raise SaveError("the copy was broken off; it may have grown too large") from None
        except ImportError as error:
            raise SaveError(_missing(error)) from None
        finally:
            self._buffers.clear()
        return pipe.position

    def _write(self, pipe: Pipe, first: Item) -> None:
        left_out: dict[tuple[str, Any], str] = {}
        for _ in range(_ATTEMPTS):
            items = [first, *items_of(self._shell, self._baseline)]
            items = [item for item in items if item[:2] not in left_out]
            pieces = self._pieces(pipe, items, left_out)
            if pieces is not None:
                self._finish(pipe, pieces, left_out)
                return
        raise SaveError("its variables change while they are copied")

    def _pieces(
        self, pipe: Pipe, items: list[Item], left_out: dict[tuple[str, Any], str]
    ) -> list[tuple[str, Any, int, int]] | None:
        """Write the pickle of each item: kind, name, start, and the number of its first buffer.

        None when one could not be pickled: then everything that cannot is in `left_out`, and what was written
        is of no use, since what comes later may refer to it.
        """
        self._buffers.clear()
        pickler = self._pickler(pipe)
        pieces = []
        for number, (kind, name, value) in enumerate(items):
            pieces.append((kind, name, pipe.position, len(self._buffers)))
            try:
                pickler.dump(value)
            except (MemoryError, BrokenPipeError):
                raise
            except Exception as error:
                left_out[kind, name] = _reason(error)
                self._try(items[number + 1 :], left_out)
                return None
        return pieces

    def _try(self, items: list[Item], left_out: dict[tuple[str, Any], str]) -> None:
        """Find out what else cannot be pickled."""
        for kind, name, value in items:
            try:
                self._pickler(_Nowhere()).dump(value)
            except MemoryError:
                raise
            except Exception as error:
                left_out[kind, name] = _reason(error)
            self._buffers.clear()

    def _pickler(self, sink: Any) -> Any:
        return pickler_class()(sink, self._keep_in, self._shell.user_module)

    def _keep_in(self, buffer: Any) -> bool:
        """Whether a buffer stays in the pickle; else it is kept for later."""
        try:
            view: memoryview = buffer.raw()
        except BufferError:
            return True
        if view.nbytes < _OWN_PAGES or len(self._buffers) >= _MOST_BUFFERS:
            return True
        self._buffers.append(view)
        return False

    def _finish(
        self, pipe: Pipe, pieces: list[tuple[str, Any, int, int]], left_out: dict[tuple[str, Any], str]
    ) -> None:
        end = pipe.position
        places = []
        for view in self._buffers:
            pipe.align()
            places.append((pipe.position, view.nbytes))
            pipe.give(view)
        reasons = [(_shown(kind, name), reason) for (kind, name), reason in left_out.items()]
        index = {
            "version": VERSION,
            "python": list(sys.version_info[:2]),
            "pieces": [
                (kind, name if isinstance(name, (str, int)) else None, *rest) for kind, name, *rest in pieces
            ],
            "end": end,
            "buffers": places,
            "left_out": reasons,
        }
        data = json.dumps(index).encode()
        pipe.write(data + len(data).to_bytes(8, "little") + MAGIC)


def _shown(kind: str, name: Any) -> str:
    return f"Out[{name}]" if kind == "output" else str(name)


def _reason(error: Exception) -> str:
    try:
        text = str(error)
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text}"[:_MAX_REASON]


def _missing(error: ImportError) -> str:
    if error.name == "cloudpickle":
        return "the package cloudpickle, which copies variables, is not installed in this sandbox"
    return f"its variables cannot be copied: {_reason(error)}"


@contextlib.contextmanager
def _bounded(room: int) -> Iterator[None]:
    """Within, taking more than `room` bytes of memory is a MemoryError, nesting is bounded, and nothing is
    collected.
    """
    collects, depth = gc.isenabled(), sys.getrecursionlimit()
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    gc.disable()
    _attempt(sys.setrecursionlimit, _frames() + _DEPTH)
    most = _data_size() + room
    if soft == resource.RLIM_INFINITY or most < soft:
        _attempt(resource.setrlimit, resource.RLIMIT_DATA, (most, hard))
    try:
        yield
    finally:
        _attempt(resource.setrlimit, resource.RLIMIT_DATA, (soft, hard))
        _attempt(sys.setrecursionlimit, depth)
        if collects:
            gc.enable()


def _attempt(work: Callable[..., object], *arguments: Any) -> None:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        work(*arguments)


def _frames() -> int:
    frame, depth = sys._getframe(), 0
    while frame.f_back is not None:
        frame, depth = frame.f_back, depth + 1
    return depth


def _data_size() -> int:
    """Bytes of private, writable memory that this process has reserved."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return 0
