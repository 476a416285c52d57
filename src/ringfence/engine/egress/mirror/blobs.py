"""The cache of files, as the egress sees it: the engine hands over descriptors, and judges what is stored.

A file that is there comes as a descriptor to read from; for one that is not, the engine gives an unnamed file
to write to, and keeps it under its digest when what was written has that digest, and not otherwise. What is
written takes its room from a budget until the engine says that it is stored or gone.
"""

import asyncio
import itertools
import os
from collections.abc import Callable
from typing import Any

_ANSWER_SECONDS = 10.0


class Blob:
    """One file: to read from when it was `found`, else to write to. Close it by `done`."""

    def __init__(self, number: int, descriptor: int | None, found: bool) -> None:
        self.number = number
        self.descriptor = descriptor
        self.found = found
        self.written = 0


class Blobs:
    """Asks the engine for files. `tell` sends it a message. `most`: bytes that may be on their way."""

    def __init__(self, tell: Callable[[dict[str, Any]], None], most: int) -> None:
        self._tell = tell
        self._most = most
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Blob]] = {}
        self._room: dict[int, int] = {}

    async def open(self, digest: str) -> Blob:
        """The file with a digest (``algorithm:hex``). Without an answer there is no cache: no descriptor."""
        number = next(self._numbers)
        future: asyncio.Future[Blob] = asyncio.get_running_loop().create_future()
        self._asked[number] = future
        self._tell({"event": "blob", "number": number, "digest": digest})
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await future
        except TimeoutError:
            return Blob(number, None, found=False)
        finally:
            del self._asked[number]

    def opened(self, number: int, descriptor: int | None, found: bool) -> None:
        """The engine's answer."""
        future = self._asked.get(number)
        if future is not None and not future.done():
            future.set_result(Blob(number, descriptor, found))
        elif descriptor is not None:
            os.close(descriptor)
            self._tell({"event": "blob-end", "number": number, "whole": False})

    def expect(self, blob: Blob, size: int) -> None:
        """Take room for `size` bytes. Where there is not so much, the file is not written down."""
        if blob.descriptor is None or size <= self._room.get(blob.number, 0):
            return
        others = sum(self._room.values()) - self._room.get(blob.number, 0)
        if others + size > self._most:
            self.done(blob, whole=False)
        else:
            self._room[blob.number] = size

    async def write(self, blob: Blob, block: bytes) -> None:
        """Write a part down, unless there is no room for it: then the blob is done with."""
        self.expect(blob, blob.written + len(block))
        if blob.descriptor is None:
            return
        try:
            await asyncio.to_thread(_write, blob.descriptor, block)
        except OSError:  # the disk is full
            self.done(blob, whole=False)
        else:
            blob.written += len(block)

    def done(self, blob: Blob, *, whole: bool) -> None:
        """It is no longer needed; `whole`: all of it was written, and the engine may keep it."""
        if blob.descriptor is None:
            return
        os.close(blob.descriptor)
        blob.descriptor = None
        if not blob.found:
            self._tell({"event": "blob-end", "number": blob.number, "whole": whole})

    def ended(self, number: int) -> None:
        """The engine has stored the file, or dropped it."""
        self._room.pop(number, None)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
