"""Copies of the state of a sandbox's kernels, for whoever has come with a pipe and the word ``save``."""

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Any

from ringfence.guest.interpreter.pool import KernelPool
from ringfence.guest.interpreter.saving import SaveError


class Copies:
    """Does what the host asks of kernels, one thing after the other, on the running loop:

    - ``save`` (room, memory, seconds; beside it a pipe): write the state of all kernels into the pipe, then
      close it, and let the kernels stand still;
    - ``go_on``: let them go on.

    unsaved: is called with the reason when a state cannot be saved, before the pipe is closed.
    """

    def __init__(self, kernels: KernelPool, unsaved: Callable[[str], None]) -> None:
        self._kernels = kernels
        self._unsaved = unsaved
        self._work: asyncio.Task[None] | None = None

    def take(self, message: dict[str, Any], descriptors: Sequence[int]) -> bool:
        """Begin with what `message` asks for; whether it is one of ours. The pipe is then used up."""
        before, loop = self._work, asyncio.get_running_loop()
        if "save" in message and descriptors:
            self._work = loop.create_task(self._save(before, message["save"], descriptors[0]))
        elif "go_on" in message:
            self._work = loop.create_task(self._go_on(before))
        else:
            return False
        return True

    async def _save(self, before: "asyncio.Task[None] | None", request: dict[str, Any], pipe: int) -> None:
        if before is not None:
            await asyncio.wait([before])
        try:
            await self._kernels.save(pipe, request["room"], request["memory"], request["seconds"])
        except SaveError as error:
            self._unsaved(str(error))
        except Exception as error:  # a mistake of ours must not be taken for a state
            self._unsaved(f"{type(error).__name__}: {error}")
            raise
        finally:
            os.close(pipe)

    async def _go_on(self, before: "asyncio.Task[None] | None") -> None:
        if before is not None:
            await asyncio.wait([before])
        await self._kernels.go_on()
