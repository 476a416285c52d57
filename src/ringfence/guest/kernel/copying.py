"""Answering the guest when it wants a copy of the kernel's state, between cells or in the middle of one."""

import os
from collections.abc import Callable
from typing import Any

from .channel import Channel, Message
from .saving import SaveAborted, SaveError, Saver

Situation = Callable[[], tuple[int, dict[str, str | None]]]
"""The number of the next cell; the variables of the one that runs, with what they were before it."""


class CopyRequests:
    """Saves the state when the guest asks, and then stands still until it says ``go``: by then the host has
    read everything and has copied the files too, so that both are of one moment.
    """

    def __init__(self, channel: Channel, saver: Saver, situation: Situation) -> None:
        self._channel = channel
        self._saver = saver
        self._situation = situation
        self._pid = os.getpid()
        self._answering = False
        self._saving = False

    def on_call(self) -> None:
        """The guest has called: answer it. Raises SaveAborted within a save that it gives up."""
        if os.getpid() != self._pid or (self._answering and not self._saving):
            return
        while self._channel.receive():
            pass
        if self._saving:
            if self._channel.take_only("abort"):
                raise SaveAborted
            return
        while (request := self._channel.take_only("save")) is not None:
            self.answer(request)

    def answer(self, request: Message) -> None:
        """Save the state into the pipe that came with `request`, and wait."""
        descriptor = self._channel.take_descriptor()
        if descriptor is None or self._answering:
            return
        self._answering = True
        try:
            self._channel.send({"event": "saving"})
            answer = self._save(descriptor, int(request["room"]))
            self._channel.send({"event": "saved", **answer})
            self._channel.wait_for("go")
        finally:
            self._answering = False

    def _save(self, descriptor: int, room: int) -> dict[str, Any]:
        count, cell_env = self._situation()
        self._saving = True
        try:
            return {"length": self._saver.save(descriptor, room=room, count=count, cell_env=cell_env)}
        except SaveAborted:
            return {"error": "its variables could not be copied in time"}
        except SaveError as error:
            return {"error": str(error)}
        except BaseException as error:
            return {"error": f"its variables could not be copied: {type(error).__name__}: {error}"[:1000]}
        finally:
            self._saving = False
            os.close(descriptor)
