"""The engine's end of the channel to a volume's agent."""

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import AsyncIterator
from typing import Any

from ringfence.core.errors import VolumeError
from ringfence.engine.volumes.tree import MAX_LISTED, Entry
from ringfence.engine.zygote import channel

_CHUNK = 1 << 20
_MOST_AT_ONCE = 32
"""Operations of one volume that are under way at once; further ones wait."""


class Upload:
    """A file that is being written, and seen by nobody until `publish`."""

    def __init__(self, reply: socket.socket, descriptor: int) -> None:
        self._reply = reply
        self._descriptor = descriptor

    async def write(self, data: bytes) -> None:
        """Append `data`. Raises VolumeError (``full``)."""
        try:
            await asyncio.to_thread(_write_all, self._descriptor, data)
        except OSError as error:
            raise VolumeError(f"the volume is full: {error.strerror}", "full") from None

    async def publish(self) -> Entry:
        """Put the file where it belongs. Raises VolumeError."""
        try:
            channel.send(self._reply, {"publish": True})
        except channel.ChannelClosedError:
            raise VolumeError("the agent of the volume has ended; try again", "busy") from None
        return _entry_of(await _answer(self._reply))


class Download:
    """A regular file that is being read. `entry`: what it was like when it was opened."""

    def __init__(self, entry: Entry, descriptor: int) -> None:
        self.entry = entry
        self._descriptor = descriptor

    async def chunks(self) -> AsyncIterator[bytes]:
        """Its contents, as many bytes as it had. Raises VolumeError when it was made shorter meanwhile."""
        position, size = 0, int(self.entry["size"])
        while position < size:
            length = min(_CHUNK, size - position)
            data = await asyncio.to_thread(os.pread, self._descriptor, length, position)
            if not data:
                raise VolumeError("the file was made shorter while it was read", "broken")
            position += len(data)
            yield data


class VolumeAgent:
    """Requests to the agent of one volume. All methods raise `VolumeError`."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._room = asyncio.Semaphore(_MOST_AT_ONCE)
        self.busy = 0
        """Operations that are under way or wait."""

    async def entry(self, operation: str, **arguments: Any) -> Entry:
        """Do ``stat``, ``mkdir`` or ``change``; the entry as it is then."""
        async with self._asked(operation, arguments) as reply:
            return _entry_of(await _answer(reply))

    async def remove(self, path: str) -> None:
        """Remove an entry and all in it."""
        async with self._asked("remove", {"path": path}) as reply:
            await _answer(reply)

    async def list(self, path: str, depth: int) -> list[Entry]:
        """What is in a directory."""
        entries: list[Entry] = []
        async with self._asked("list", {"path": path, "depth": depth}) as reply:
            while len(entries) <= MAX_LISTED:
                answer = await _answer(reply)
                if answer.get("done"):
                    break
                found = answer.get("entries")
                if not isinstance(found, list) or not found:
                    raise _nonsense()
                entries += [_entry_of({"entry": one}) for one in found]
        return entries

    @contextlib.asynccontextmanager
    async def download(self, path: str) -> AsyncIterator[Download]:
        """A file, open for reading."""
        async with self._asked("read", {"path": path}) as reply:
            answer, fds = await _receive(reply)
            try:
                # Not that we do not trust it: waiting for a pipe would cost a thread for good.
                if len(fds) != 1 or not stat.S_ISREG(os.fstat(fds[0]).st_mode):
                    raise VolumeError("not a regular file", "invalid")
                yield Download(_entry_of(answer), fds[0])
            finally:
                channel.close_all(fds)

    @contextlib.asynccontextmanager
    async def upload(self, **arguments: Any) -> AsyncIterator[Upload]:
        """A new file. It is gone when the block is left before it was published."""
        async with self._asked("write", arguments) as reply:
            _, fds = await _receive(reply)
            try:
                if len(fds) != 1 or not stat.S_ISREG(os.fstat(fds[0]).st_mode):
                    raise VolumeError("the agent of the volume gave no file")
                yield Upload(reply, fds[0])
            finally:
                channel.close_all(fds)

    @contextlib.asynccontextmanager
    async def _asked(self, operation: str, arguments: dict[str, Any]) -> AsyncIterator[socket.socket]:
        self.busy += 1
        try:
            async with self._room:
                ours, theirs = channel.pair()
                with ours:
                    ours.setblocking(False)
                    try:
                        await self._send({"op": operation, **arguments}, theirs)
                    finally:
                        theirs.close()
                    yield ours
        finally:
            self.busy -= 1

    async def _send(self, request: dict[str, Any], reply: socket.socket) -> None:
        while True:
            try:
                channel.send(self._requests, request, [reply.fileno()])
                return
            except BlockingIOError:
                await asyncio.sleep(0.002)
            except (channel.ChannelClosedError, OSError):
                raise VolumeError("the agent of the volume has ended; try again", "busy") from None

    @property
    def alive(self) -> bool:
        """Whether the agent still holds its end of the channel."""
        try:
            return bool(self._requests.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self) -> None:
        """Let the agent end, and with it whatever is under way."""
        self._requests.close()


async def _answer(reply: socket.socket) -> dict[str, Any]:
    """The next answer, when no descriptors belong to it."""
    answer, fds = await _receive(reply)
    channel.close_all(fds)
    return answer


def _entry_of(answer: dict[str, Any]) -> Entry:
    entry = answer.get("entry")
    if not isinstance(entry, dict):
        raise _nonsense()
    return entry


def _nonsense() -> VolumeError:
    return VolumeError("the agent of the volume gave an answer that is none", "broken")


async def _receive(reply: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The next answer. Raises the VolumeError that it is."""
    while True:
        try:
            answer, fds = channel.receive(reply)
        except BlockingIOError:
            await _readable(reply)
            continue
        except (channel.ChannelClosedError, ValueError):
            raise VolumeError("the agent of the volume has ended; try again", "busy") from None
        if "error" in answer:
            channel.close_all(fds)
            raise VolumeError(str(answer["error"]), str(answer.get("kind", "broken")))
        return answer, fds


async def _readable(reply: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(reply, wake)
    try:
        await ready
    finally:
        loop.remove_reader(reply)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
