"""Starting sandboxes under gVisor from an image of a warmed one, and making such images.

The first sandbox of a kind is started as a program and imports everything; afterwards an image is made in the
background, and those to come are restored from it. That is a matter of speed alone: both are the same
kind of sandbox, so where an image is missing or does not work the sandbox is started without.
"""

import asyncio
import contextlib
import logging
import secrets
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ringfence.core.errors import RingfenceError
from ringfence.core.uninterrupted import uninterrupted
from ringfence.engine.gvisor.identity import image_key
from ringfence.engine.gvisor.images import ROOM, Images
from ringfence.engine.link import LauncherLink

logger = logging.getLogger(__name__)

Answer = dict[str, Any]
Attempt = Callable[[dict[str, Any]], Awaitable[Answer]]
"""Starts the sandbox as the ``gvisor`` part of a request says; may be called twice."""
_MOST_FAILURES = 3
"""Images of one kind, one after the other, that did not work or could not be made: then no more are made."""
_CPUS = 1.0
"""Processors for making an image: it is nobody's request."""


@dataclass(frozen=True)
class Kind:
    """Sandboxes that have nothing but the files of one template, and differ in nothing that an image has: it
    has what its directories held (files that are not there are remembered too), and the size of /dev/shm.

    template: the key of that template. description: of the one that it stands on, as the launcher is told.
    frame: what of a request to the launcher they have in common: ``template``, ``limits``, ``hostname`` and
    ``snapshots``.
    """

    template: str
    description: dict[str, Any]
    frame: dict[str, Any]


class WarmStarts:
    """The images of one engine's sandboxes.

    rotate_after, rotate_seconds: so many sandboxes of this engine, or seconds, after which an image is made
    anew, in the background: what code has learnt of its memory's layout is of no use for long. 0: never.
    """

    def __init__(
        self, images: Images, link: LauncherLink, rotate_after: int = 0, rotate_seconds: float = 0
    ) -> None:
        self._images = images
        self._link = link
        self._rotate_after = rotate_after
        self._rotate_seconds = rotate_seconds
        self._uses: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._making: dict[str, tuple[str, asyncio.Task[None]]] = {}
        self._turn = asyncio.Lock()
        self._started = Counter(restored=0, cold=0)

    def as_dict(self) -> dict[str, int]:
        """Sandboxes that were started under gVisor by how, and images that are being made."""
        return {**self._started, "images_in_the_making": len(self._making)}

    async def sweep(self) -> None:
        """Remove what was being written when an earlier engine was killed."""
        await asyncio.to_thread(self._images.sweep)

    async def start(self, gvisor: dict[str, Any], kind: Kind, attempt: Attempt) -> tuple[Answer, bool]:
        """Start a sandbox of this kind; the answer, and whether it was restored from an image.

        gvisor: runsc, as the launcher is told. Raises what `attempt` raises without an image.
        """
        key = await asyncio.to_thread(image_key, gvisor, kind.description, kind.frame)
        image = await asyncio.to_thread(self._images.find, kind.template, key)
        problem = ""
        if image is not None:
            try:
                answer = await attempt({**gvisor, "image": str(image)})
            except RingfenceError as error:
                problem = str(error)
            else:
                self._started["restored"] += 1
                self._failures.pop(key, None)
                if self._has_served(image):
                    self._make_later(key, kind, {**gvisor, "room": ROOM})
                return answer, True
        answer, _ = await self.start_cold(gvisor, attempt)
        if problem:  # not the sandbox's fault, then
            self._failures[key] += 1
            logger.warning("an image of template %s did not work: %s", kind.template, problem)
            await asyncio.to_thread(self._images.discard, kind.template, key)
        self._make_later(key, kind, {**gvisor, "room": ROOM})
        return answer, False

    def _has_served(self, image: Path) -> bool:
        """Count a use of an image; whether it has been used enough."""
        self._uses[image.name] += 1
        often = 0 < self._rotate_after <= self._uses[image.name]
        return often or 0 < self._rotate_seconds <= self._images.age(image)

    async def start_cold(self, gvisor: dict[str, Any], attempt: Attempt) -> tuple[Answer, bool]:
        """Start a sandbox of no `Kind`."""
        answer = await attempt(gvisor)
        self._started["cold"] += 1
        return answer, False

    def _make_later(self, key: str, kind: Kind, gvisor: dict[str, Any]) -> None:
        if key in self._making or self._failures[key] >= _MOST_FAILURES:
            return
        task = asyncio.get_running_loop().create_task(self._make(key, kind, gvisor))
        self._making[key] = (kind.template, task)
        task.add_done_callback(lambda _: self._making.pop(key, None))

    async def _make(self, key: str, kind: Kind, gvisor: dict[str, Any]) -> None:
        """Make an image, one at a time."""
        async with self._turn:
            try:
                with self._images.making(kind.template, key) as place:
                    await self._write_down(kind.frame, gvisor, str(place))
            except (RingfenceError, OSError) as error:
                self._failures[key] += 1
                logger.warning("no image of template %s can be made: %s", kind.template, error)

    async def _write_down(self, frame: dict[str, Any], gvisor: dict[str, Any], place: str) -> None:
        limits = {**frame["limits"], "cpus": min(frame["limits"]["cpus"], _CPUS)}
        request = {**frame, "limits": limits, "gvisor": gvisor, "image_place": place}
        name = f"image-{secrets.token_hex(8)}"
        ours, theirs = socket.socketpair()  # in the place of a way out, which it does not have
        with ours, theirs:
            try:
                await self._link.call("image", theirs.fileno(), id=name, guest={}, volumes=[], **request)
            except asyncio.CancelledError:
                with contextlib.suppress(RingfenceError):
                    await uninterrupted(self._link.call("kill", id=name))
                raise

    def forget(self, template: str) -> None:
        """Throw the images of a template away that is served no longer."""
        for making, task in self._making.values():
            if making == template:
                task.cancel()
        self._images.forget(template)

    async def aclose(self) -> None:
        """Break off what is being made."""
        tasks = [task for _, task in self._making.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
