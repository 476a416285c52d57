"""The guest's end of the channel to the launcher: its requests, and its end, which is that of the sandbox."""

import asyncio
import contextlib
import json
import os
import socket
from typing import Any

from ringfence.guest.interpreter.pool import KernelPool
from ringfence.guest.interpreter.saving import SaveError

_MAX_PACKET = 64 * 1024


class Lifeline:
    """Answers the launcher.

    - ``save`` (room, memory, seconds; beside it a pipe): write the state of all kernels into the pipe, then
      close it, and let the kernels stand still. When that cannot be done, ``unsaved`` is sent first.
    - ``go_on``: let them go on.
    """

    def __init__(self, channel: socket.socket, kernels: KernelPool) -> None:
        channel.setblocking(False)
        self._channel = channel
        self._kernels = kernels
        self._work: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Listen, on the running loop."""
        asyncio.get_running_loop().add_reader(self._channel, self._readable)

    def _readable(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._channel, _MAX_PACKET, 4)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        if not data:
            os._exit(0)
        message = json.loads(data)
        before, loop = self._work, asyncio.get_running_loop()
        if "save" in message and descriptors:
            self._work = loop.create_task(self._save(before, message["save"], descriptors[0]))
        elif "go_on" in message:
            self._work = loop.create_task(self._go_on(before))

    async def _save(self, before: "asyncio.Task[None] | None", request: dict[str, Any], pipe: int) -> None:
        if before is not None:
            await asyncio.wait([before])
        try:
            await self._kernels.save(pipe, request["room"], request["memory"], request["seconds"])
        except SaveError as error:
            self._send({"unsaved": str(error)})
        except Exception as error:  # a mistake of ours must not be taken for a state
            self._send({"unsaved": f"{type(error).__name__}: {error}"})
            raise
        finally:
            os.close(pipe)

    async def _go_on(self, before: "asyncio.Task[None] | None") -> None:
        if before is not None:
            await asyncio.wait([before])
        await self._kernels.go_on()

    def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self._channel.send(json.dumps(message).encode())
