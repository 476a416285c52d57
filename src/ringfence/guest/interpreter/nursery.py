"""The guest's end of the nursery's socket: asks for kernels and learns how they ended."""

import array
import asyncio
import itertools
import json
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from ringfence.guest.interpreter.identity import User

_MAX_PACKET = 64 * 1024
_SEND_BUFFER = 512 * 1024


class KernelStartError(Exception):
    """A kernel could not be started; the message says why."""


@dataclass
class Forked:
    """A kernel's process. `exited` becomes its wait status. `changed` names the packages that made a fresh
    exec needed.
    """

    pid: int
    fresh: bool
    changed: tuple[str, ...]
    exited: asyncio.Future[int] = field(repr=False)


class NurseryClient:
    """Requests to the nursery over `sock`, a SEQPACKET socket made by whoever started both."""

    def __init__(
        self,
        sock: socket.socket,
        absent: str = "the nursery is gone",
        *,
        always_fresh: bool = False,
        renew: Callable[[], Awaitable[socket.socket]] | None = None,
    ) -> None:
        """Talk over `sock`. `absent` is what to say when nobody is at its other end; always_fresh: start
        every kernel as a new program; renew: has a new nursery made and gives its socket, or raises OSError.
        """
        sock.setblocking(False)
        self._always_fresh = always_fresh
        self._absent = absent
        self._renew = renew
        self._socket = sock
        self._ids = itertools.count(1)
        self._waiting: dict[str, asyncio.Future[Forked]] = {}
        self._kernels: dict[int, asyncio.Future[int]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._lost_it = False
        self._renewing = asyncio.Lock()

    async def fork(
        self,
        user: User,
        cwd: str,
        env: dict[str, str],
        descriptors: tuple[int, int, int, int],
        *,
        fresh: bool = False,
    ) -> Forked:
        """Start a kernel with `descriptors` as control channel, stdin, stdout and stderr. Raises
        KernelStartError.

        The descriptors stay the caller's to close. An environment of more than 60 KiB does not fit a packet.
        """
        loop = await self._attach()
        request_id = str(next(self._ids))
        request = {
            "op": "fork",
            "id": request_id,
            "uid": user.uid,
            "gid": user.gid,
            "groups": list(user.groups),
        }
        packet = json.dumps(
            {**request, "cwd": cwd, "env": env, "fresh": fresh or self._always_fresh}
        ).encode()
        if len(packet) > _MAX_PACKET:
            raise KernelStartError(
                f"the environment is too large: {len(packet)} bytes of at most {_MAX_PACKET}"
            )
        try:
            await self._send(packet, descriptors)
        except OSError as error:
            raise KernelStartError(self._absent) from error
        answer: asyncio.Future[Forked] = loop.create_future()
        self._waiting[request_id] = answer
        return await answer

    async def _send(self, packet: bytes, descriptors: tuple[int, ...]) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        try:
            self._socket.sendmsg([packet], rights)
        except (BrokenPipeError, ConnectionResetError):
            if self._renew is None:
                raise
            self._lost()
            await self._attach()
            self._socket.sendmsg([packet], rights)

    def close(self) -> None:
        """Close the socket: the nursery then kills every kernel and ends."""
        self._closed = True
        self._detach()

    def _detach(self) -> None:
        if self._loop is not None and self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
        self._loop = None
        self._socket.close()

    async def _attach(self) -> asyncio.AbstractEventLoop:
        async with self._renewing:
            if self._lost_it and not self._closed:
                await self._start_over()
        if self._closed:
            raise KernelStartError(self._absent)
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._socket.fileno(), self._readable)
        return self._loop

    async def _start_over(self) -> None:
        """Have another nursery made in place of one that somebody in the sandbox, its root, has killed."""
        if self._renew is None:
            raise KernelStartError(self._absent)
        try:
            ours = await self._renew()
        except OSError as error:
            raise KernelStartError(self._absent) from error
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        ours.setblocking(False)
        self._socket, self._lost_it = ours, False

    def _readable(self) -> None:
        try:
            data = self._socket.recv(_MAX_PACKET)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost()
            return
        self._dispatch(json.loads(data.decode("utf-8")))

    def _dispatch(self, message: dict[str, Any]) -> None:
        if message["op"] == "exited":
            exited = self._kernels.pop(message["pid"], None)
            if exited is not None and not exited.done():
                exited.set_result(message["status"])
            return
        answer = self._waiting.pop(message["id"], None)
        if answer is None or self._loop is None:
            return
        if message["op"] != "forked":
            if not answer.done():
                answer.set_exception(KernelStartError(message["message"]))
            return
        exited = self._kernels[message["pid"]] = self._loop.create_future()
        if not answer.done():
            changed = tuple(message.get("changed", ()))
            answer.set_result(Forked(message["pid"], bool(message.get("fresh")), changed, exited))

    def _lost(self) -> None:
        """The nursery died, and by its death signal every kernel with it."""
        self._detach()
        self._lost_it = True
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(KernelStartError("the nursery died"))
        for exited in self._kernels.values():
            if not exited.done():
                exited.set_result(9)
        self._waiting.clear()
        self._kernels.clear()
