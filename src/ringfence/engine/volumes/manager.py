"""All volumes of an engine: made, mounted when they are first used, reached through their agents, removed."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from ringfence.core.errors import LimitError, RingfenceError, VolumeError
from ringfence.engine.isolation_report import LayerStatus
from ringfence.engine.link import LauncherLink
from ringfence.engine.volumes.client import VolumeAgent
from ringfence.engine.volumes.images import formatter, make_image
from ringfence.engine.zygote import channel

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_IDLE_SECONDS = 60.0
_PATIENCE = 15.0
"""Seconds to wait for an earlier server's sandboxes to let go of a volume."""


class VolumeManager:
    """The volumes below `directory`; None: there can be none. All methods belong to one event loop.

    unbounded: whether volumes may be plain directories where none can have a hard limit.
    """

    def __init__(self, link: LauncherLink, directory: Path | None, *, unbounded: bool) -> None:
        self._link = link
        self._directory = directory
        self._unbounded = unbounded
        self._lack = "this engine keeps no volumes"
        self._attached: set[str] = set()
        self._agents: dict[str, VolumeAgent] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def learn(self, lack: str) -> None:
        """Take the launcher's word on what it lacks to mount images; empty: nothing."""
        self._lack = lack or ("" if formatter() else "mkfs.ext4 is not installed (Debian: e2fsprogs)")

    @property
    def bounded(self) -> bool:
        """Whether a new volume has a hard limit."""
        return not self._lack

    def status(self) -> LayerStatus:
        """What is said about volumes beside the layers of isolation."""
        if self.bounded:
            return LayerStatus("volumes", True, "an ext4 image of a fixed size each, on a loop device", "")
        if self._unbounded:
            detail = f"WITHOUT a limit of size, as the operator allows: {self._lack}"
            return LayerStatus("volumes", True, detail, "")
        remedy = "start the server as root, with loop devices and mkfs.ext4, or allow volumes that nothing "
        return LayerStatus(
            "volumes", False, f"no limit of size could be enforced: {self._lack}",
            remedy + "limits with --unbounded-volumes",
        )  # fmt: skip

    def check(self) -> None:
        """Raises VolumeError (``unsupported``), with the remedy, when no volume can be made here."""
        status = self.status()
        if not status.in_force or self._directory is None:
            raise VolumeError(f"volumes: {status.detail} ({status.remedy})", "unsupported")

    async def create(self, volume_id: str, size_mb: int) -> None:
        """Make an empty volume of `size_mb` MiB, and mount it. Raises VolumeError."""
        self.check()
        image, plain = self._paths(volume_id)
        await asyncio.to_thread(lambda: image.parent.mkdir(mode=0o700, parents=True, exist_ok=True))
        try:
            if self.bounded:
                await make_image(image, size_mb)
            else:
                await asyncio.to_thread(plain.mkdir, 0o700)
            await self.attach(volume_id)
        except BaseException as error:
            with contextlib.suppress(RingfenceError):
                await self.remove(volume_id)
            if isinstance(error, OSError):
                raise VolumeError(f"the volume cannot be made: {error}") from error
            raise

    async def attach(self, volume_id: str) -> None:
        """Have a volume mounted by the launcher, where only the launcher sees it. Raises VolumeError."""
        if volume_id in self._attached:
            return
        async with self._lock(volume_id):
            deadline = asyncio.get_running_loop().time() + _PATIENCE
            while volume_id not in self._attached:
                answer = await self._call("volume_attach", volume_id)
                if not answer.get("busy"):
                    self._attached.add(volume_id)
                elif asyncio.get_running_loop().time() > deadline:
                    raise VolumeError(f"volume {volume_id} is in use by another server", "busy")
                else:
                    await asyncio.sleep(0.1)

    @contextlib.asynccontextmanager
    async def agent(self, volume_id: str) -> AsyncIterator[VolumeAgent]:
        """The agent of a volume; it is kept for a while after the last use. Raises VolumeError."""
        await self.attach(volume_id)
        async with self._lock(volume_id):
            agent = self._agents.get(volume_id)
            if agent is None or not agent.alive:
                self._close_agent(volume_id)
                agent = self._agents[volume_id] = await self._start_agent(volume_id)
            agent.busy += 1
        try:
            yield agent
        finally:
            agent.busy -= 1
            self._close_later(volume_id)

    async def remove(self, volume_id: str) -> None:
        """Remove a volume with all that is in it; no sandbox may use it. Raises VolumeError."""
        self._paths(volume_id)
        async with self._lock(volume_id):
            self._close_agent(volume_id)
            self._attached.discard(volume_id)
            await self._call("volume_remove", volume_id)
        self._locks.pop(volume_id, None)

    def close(self) -> None:
        """Let all agents end."""
        for volume_id in list(self._agents):
            self._close_agent(volume_id)

    def known(self) -> set[str]:
        """The ids of the volumes that are on disk. It blocks: call it in a thread."""
        if self._directory is None or not self._directory.is_dir():
            return set()
        names = {path.name.removesuffix(".img") for path in self._directory.iterdir()}
        return {name for name in names if _ID.fullmatch(name)}

    def _paths(self, volume_id: str) -> tuple[Path, Path]:
        if self._directory is None or not _ID.fullmatch(volume_id):
            raise VolumeError(f"there is no place for a volume {volume_id[:40]!r}", "unsupported")
        return self._directory / f"{volume_id}.img", self._directory / volume_id

    async def _start_agent(self, volume_id: str) -> VolumeAgent:
        ours, theirs = channel.pair()
        ours.setblocking(False)
        try:
            with theirs:
                await self._call("volume_agent", volume_id, theirs.fileno())
        except BaseException:
            ours.close()
            raise
        return VolumeAgent(ours)

    async def _call(self, verb: str, volume_id: str, *fds: int) -> dict[str, Any]:
        try:
            return await self._link.call(verb, *fds, volume=volume_id)
        except (VolumeError, LimitError):
            raise
        except RingfenceError as error:
            raise VolumeError(f"volume {volume_id}: {error}") from error

    def _lock(self, volume_id: str) -> asyncio.Lock:
        return self._locks.setdefault(volume_id, asyncio.Lock())

    def _close_later(self, volume_id: str) -> None:
        timer = self._timers.pop(volume_id, None)
        if timer is not None:
            timer.cancel()
        loop = asyncio.get_running_loop()
        self._timers[volume_id] = loop.call_later(_IDLE_SECONDS, self._close_if_idle, volume_id)

    def _close_if_idle(self, volume_id: str) -> None:
        self._timers.pop(volume_id, None)
        agent = self._agents.get(volume_id)
        if agent is not None and not agent.busy:
            self._close_agent(volume_id)

    def _close_agent(self, volume_id: str) -> None:
        timer = self._timers.pop(volume_id, None)
        if timer is not None:
            timer.cancel()
        agent = self._agents.pop(volume_id, None)
        if agent is not None:
            agent.close()
