"""The guest's end of the channel to the launcher: its requests, and its end, which is that of the sandbox."""

import asyncio
import contextlib
import json
import os
import select
import socket
from collections import deque

from ringfence.guest.copies import Copies
from ringfence.guest.interpreter.pool import KernelPool

_MAX_PACKET = 64 * 1024
_NURSERY_SECONDS = 20


class Lifeline:
    """Answers the launcher, and asks it.

    What comes over `channel`:

    - ``save`` and ``go_on``: see `Copies`. When a state cannot be saved, ``unsaved`` is said first;
    - ``out_of_memory``: a process is about to be killed, because all of them have so many bytes;
    - ``nursery``: the answer to the word of this name, with the nursery's socket beside it if there is one.

    What goes into the pipe `words`, each in one write of at most PIPE_BUF bytes: ``nursery``, and ``unsaved``
    with the reason.
    """

    def __init__(self, channel: socket.socket, words: int) -> None:
        channel.setblocking(False)
        os.set_blocking(words, False)
        self._channel = channel
        self._words = words
        self._nurseries: deque[asyncio.Future[socket.socket]] = deque()

    def start(self, kernels: KernelPool) -> None:
        """Listen, on the running loop."""
        copies = Copies(kernels, self._say_unsaved)
        asyncio.get_running_loop().add_reader(self._channel, self._readable, kernels, copies)

    async def ask_for_nursery(self) -> socket.socket:
        """Have another nursery made; the guest's end of its socket. Raises OSError when there is none."""
        answer: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
        self._nurseries.append(answer)
        try:
            os.write(self._words, b"nursery")
            async with asyncio.timeout(_NURSERY_SECONDS):
                return await answer
        finally:
            answer.cancel()

    def _readable(self, kernels: KernelPool, copies: Copies) -> None:
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
        if "out_of_memory" in message:
            kernels.out_of_memory(message["out_of_memory"])
        elif not copies.take(message, descriptors) and "nursery" in message:
            self._take_nursery(descriptors)

    def _take_nursery(self, descriptors: list[int]) -> None:
        answer = self._nurseries.popleft() if self._nurseries else None
        end = socket.socket(fileno=descriptors[0]) if descriptors else None
        if answer is None or answer.done():  # nobody waits for it any more
            if end is not None:
                end.close()
        elif end is None:
            answer.set_exception(OSError("the launcher makes no nursery for this sandbox now"))
        else:
            answer.set_result(end)

    def _say_unsaved(self, reason: str) -> None:
        with contextlib.suppress(OSError):
            os.write(self._words, f"unsaved {reason}".encode()[: select.PIPE_BUF])
