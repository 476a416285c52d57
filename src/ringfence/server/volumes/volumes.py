"""The volumes of this server: who owns each, what it is called, and when its files go."""

import asyncio
import dataclasses
import hmac
import logging
import posixpath
import re
import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ringfence.core.errors import RingfenceError
from ringfence.engine.model import VolumeMount
from ringfence.server.errors import ApiError, from_engine, quota_reached
from ringfence.server.models import RequestedMount
from ringfence.server.volumes.store import Volume, VolumeStore

if TYPE_CHECKING:
    from ringfence.engine.engine import Engine

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")
_LONGEST_PATH = 1024
_MOST_MOUNTS = 16
_RESERVED = ("/proc", "/sys", "/dev")


class Volumes:
    """Every volume. All of its state is touched on the event loop only.

    most: how many an owner may have. size_mb: the size of each, in MiB.
    """

    def __init__(self, engine: "Engine", store: VolumeStore, *, most: int, size_mb: int) -> None:
        self._engine = engine
        self._store = store
        self._most = most
        self._size_mb = size_mb
        self._secret = store.secret()
        self._all: dict[str, Volume] = {one.volume_id: one for one in store.all()}
        self._writing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._making: set[str] = set()
        engine.add_exit_listener(lambda _: self.collect_soon())

    def owned(self, owner: str) -> list[Volume]:
        """The volumes of `owner`, oldest first."""
        return [one for one in self._all.values() if one.owner == owner and not one.hidden]

    def lookup(self, owner: str, volume_id: str) -> Volume:
        """The owner's volume with this id. Raises ApiError (404), alike for unknown and foreign ids."""
        volume = self._all.get(volume_id)
        if volume is None or volume.hidden or volume.owner != owner:
            raise ApiError(404, f"volume {volume_id[:64]!r} not found")
        return volume

    def token(self, volume_id: str) -> str:
        """What the content API asks for. It is made from the id: a wrong one tells nothing of what exists."""
        return hmac.new(self._secret, volume_id.encode(), "sha256").hexdigest()

    def authorized(self, volume_id: str, token: str) -> Volume:
        """The volume that `token` opens. Raises ApiError: 401 for a wrong token, 404 when it was deleted."""
        if not hmac.compare_digest(self.token(volume_id).encode(), token.encode()):
            raise ApiError(401, "the volume's token is not valid")
        volume = self._all.get(volume_id)
        if volume is None or volume.hidden:
            raise ApiError(404, f"volume {volume_id!r} not found")
        return volume

    async def create(self, owner: str, name: str) -> Volume:
        """Make an empty volume. Raises ApiError: 400 for a name that is wrong or in use, 429, 507."""
        if not _NAME.fullmatch(name):
            raise ApiError(400, "Invalid volume name: letters, digits, '-' and '_', at most 128")
        pending = [one for one in self._all.values() if one.owner == owner and one.volume_id in self._making]
        if any(one.name == name for one in [*self.owned(owner), *pending]):
            raise ApiError(400, f"Volume with name '{name}' already exists")
        # Those that were deleted and are still mounted count too: their space is not free yet.
        if sum(one.owner == owner for one in self._all.values()) >= self._most:
            raise quota_reached(f"you have reached the maximum number of volumes ({self._most})")
        size = self._size_mb if self._engine.volumes.bounded else 0
        made = Volume(str(uuid.uuid4()), owner, name, size, round(time.time(), 6), hidden=True)
        self._making.add(made.volume_id)
        self._all[made.volume_id] = made  # before the first wait, so that a second of its name is refused
        try:
            await self._put(made)  # so that one that is cut short is found at the next start
            await self._engine.volumes.create(made.volume_id, self._size_mb)
            made = dataclasses.replace(made, hidden=False)
            await self._put(made)
        except RingfenceError as error:
            logger.warning("could not make a volume: %s", error)
            raise from_engine(error) from error
        finally:
            self._making.discard(made.volume_id)
            self.collect_soon()
        return made

    async def delete(self, volume: Volume) -> None:
        """Delete a volume. Sandboxes that have it mounted keep it until they end; then its files go."""
        await self._put(dataclasses.replace(volume, hidden=True))
        await self._collect_quietly()

    def resolve(self, owner: str, mounts: Sequence[RequestedMount]) -> tuple[VolumeMount, ...]:
        """The volumes that a create request names. Raises ApiError (400), which says what is wrong."""
        if len(mounts) > _MOST_MOUNTS:
            raise ApiError(400, f"a sandbox can have at most {_MOST_MOUNTS} volumes mounted")
        by_name = {volume.name: volume for volume in self.owned(owner)}
        wrong: list[str] = []
        resolved: list[VolumeMount] = []
        for number, mount in enumerate(mounts):
            reason = _wrong_path(mount.path)
            if any(mount.path == other.path for other in resolved):
                reason = f"path '{mount.path}' is already used"
            if mount.name not in by_name:
                reason = f"volume '{mount.name[:128]}' not found"
            if reason:
                wrong.append(f"volume mount #{number}: {reason}")
            else:
                resolved.append(VolumeMount(by_name[mount.name].volume_id, mount.path))
        if wrong:
            raise ApiError(400, "invalid mounts: " + "; ".join(wrong))
        return tuple(resolved)

    def collect_soon(self) -> None:
        """Remove, in the background, what was deleted and is not mounted any more."""
        if any(one.hidden for one in self._all.values()):
            task = asyncio.get_running_loop().create_task(self._collect_quietly())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def recover(self) -> None:
        """At the start: forget volumes whose files are gone, and remove what was left half-done."""
        there = await asyncio.to_thread(self._engine.volumes.known)
        for one in list(self._all.values()):
            if one.volume_id not in there and not one.hidden:
                logger.warning("the files of volume %s (%s) are gone", one.volume_id, one.name)
                await self._put(dataclasses.replace(one, hidden=True))
        await self._collect_quietly()

    async def close(self) -> None:
        """Wait for what is being removed."""
        await asyncio.gather(*self._tasks)

    async def _collect_quietly(self) -> None:
        needed = self._engine.volumes_in_use() | self._making
        for one in [one for one in self._all.values() if one.hidden and one.volume_id not in needed]:
            try:
                await self._engine.volumes.remove(one.volume_id)
            except RingfenceError as error:
                logger.warning("volume %s could not be removed: %s", one.volume_id, error)
                continue
            if self._all.pop(one.volume_id, None) is not None:
                async with self._writing:
                    await asyncio.to_thread(self._store.remove, one.volume_id)

    async def _put(self, volume: Volume) -> None:
        self._all[volume.volume_id] = volume
        async with self._writing:
            await asyncio.to_thread(self._store.put, volume)


def _wrong_path(path: str) -> str:
    if not path:
        return "path cannot be empty"
    if not path.startswith("/"):
        return "path must be absolute"
    if path.startswith("//") or posixpath.normpath(path) != path:
        return "path must not contain any '.' or '..' components, nor end in '/'"
    if "\0" in path or len(path.encode(errors="replace")) > _LONGEST_PATH:
        return f"path must have at most {_LONGEST_PATH} bytes and no NUL"
    if path == "/" or any(path == top or path.startswith(top + "/") for top in _RESERVED):
        return f"a volume cannot be mounted at '{path}'"
    return ""
