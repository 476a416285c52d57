"""Paused sandboxes: how they come to stand still, and how they go on.

A full pause freezes every process and keeps its memory; a pause of the file system ends the processes and
keeps what they wrote, and the resume is a cold start on it. A paused sandbox has no lease: it stays until it
is resumed or killed.
"""

import asyncio
import logging
import socket
from typing import TYPE_CHECKING

from ringfence.core.descriptors import refuse_descriptors
from ringfence.core.errors import RingfenceError
from ringfence.core.uninterrupted import uninterrupted
from ringfence.engine.model import Sandbox
from ringfence.server.errors import ApiError, from_engine, quota_reached
from ringfence.server.records import Record
from ringfence.server.registry import Registry

if TYPE_CHECKING:
    from ringfence.engine.engine import Engine

logger = logging.getLogger(__name__)

_WOKEN_LIFETIME = 300
"""Seconds a sandbox lives, at least, after traffic has resumed it."""
_HEALTH_SECONDS = 5.0
_HEALTH_REQUEST = b"GET /health HTTP/1.1\r\nHost: x\r\nE2b-Sandbox-Port: 49983\r\nConnection: close\r\n\r\n"


class Pausing:
    """Pauses and resumes sandboxes of a registry, and decides what the end of a lease means for them."""

    def __init__(self, engine: "Engine", registry: Registry, *, max_paused: int) -> None:
        self._engine = engine
        self._registry = registry
        self._max_paused = max_paused
        registry.on_expiry = self.expire

    async def pause(
        self, record: Record, *, memory: bool, healthy: bool = False, if_due: bool = False
    ) -> None:
        """Pause a running sandbox.

        healthy: only if its guest answers. if_due: only if it has not been given a new lease. Raises
        ApiError: 409 when it is paused already, 503 when its guest does not answer, 429.
        """
        async with record.lock:
            self._require_live(record)
            if if_due and (record.paused or self._registry.leases.get(record.sandbox_id) is not None):
                return
            if record.paused:
                raise ApiError(409, f"sandbox {record.sandbox_id} is paused already")
            if sum(one.paused for one in self._registry.records()) >= self._max_paused:
                raise quota_reached(
                    f"you have reached the maximum number of paused sandboxes ({self._max_paused})"
                )
            if healthy and not await _answers(record.sandbox):
                raise ApiError(503, f"the guest agent of sandbox {record.sandbox_id} does not answer")
            await uninterrupted(self._pause(record, memory=memory))

    async def _pause(self, record: Record, *, memory: bool) -> None:
        # From here on nothing is forwarded to it; what was under way is broken off, as E2B does.
        record.pause_mode = "full" if memory else "filesystem"
        self._registry.stop_traffic(record)
        try:
            if memory:
                await self._engine.freeze(record.sandbox_id)
            else:
                await self._engine.suspend(record.sandbox_id)
        except RingfenceError as error:
            record.pause_mode = None
            self._registry.restore_lease(record)
            raise from_engine(error) from error
        self._registry.log(record, f"sandbox paused ({record.pause_mode})")

    async def resume(self, record: Record, lifetime: int, *, memory: bool = True) -> bool:
        """Let a paused sandbox go on, for `lifetime` seconds; whether it was paused.

        memory: false drops the memory that a full pause has kept. Raises ApiError.
        """
        async with record.lock:
            self._require_live(record)
            if not record.paused:
                return False
            self._registry.check_room(lifetime)
            await uninterrupted(self._resume(record, lifetime, memory=memory))
            return True

    async def _resume(self, record: Record, lifetime: int, *, memory: bool) -> None:
        try:
            if record.pause_mode == "full" and not memory:
                await self._engine.suspend(record.sandbox_id)
                record.pause_mode = "filesystem"
            if record.pause_mode == "full":
                await self._engine.thaw(record.sandbox_id)
            else:
                record.sandbox = await self._engine.revive(record.sandbox_id)
        except RingfenceError as error:
            raise from_engine(error) from error
        self._require_live(record)
        record.pause_mode = None
        self._registry.renew(record, lifetime)
        self._registry.log(record, "sandbox resumed")

    async def wake(self, record: Record) -> bool:
        """Resume a sandbox because of traffic to it, when its creator wants that; whether it runs."""
        if not record.paused:
            return True
        if not record.auto_resume or record.pause_mode != "full":
            return False
        try:
            await self.resume(record, max(_WOKEN_LIFETIME, record.lifetime))
        except ApiError as error:
            logger.warning("traffic could not resume sandbox %s: %s", record.sandbox_id, error.message)
            return False
        return True

    async def expire(self, record: Record) -> None:
        """What the end of its lease means for a sandbox: a pause if its creator wants it, else its end."""
        if record.auto_pause:
            try:
                await self.pause(record, memory=record.auto_pause_memory, if_due=True)
                return
            except ApiError as error:
                logger.warning("sandbox %s could not be paused: %s", record.sandbox_id, error.message)
        await self._registry.kill(record.sandbox_id, "its timeout was reached")

    def _require_live(self, record: Record) -> None:
        if self._registry.find(record.sandbox_id) is not record:
            raise ApiError(404, f"sandbox {record.sandbox_id} does not exist or you have no access to it")


async def _answers(sandbox: Sandbox) -> bool:
    try:
        async with asyncio.timeout(_HEALTH_SECONDS):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.setblocking(False)
            refuse_descriptors(sock)
            try:
                await asyncio.get_running_loop().sock_connect(sock, str(sandbox.http_socket))
                reader, writer = await asyncio.open_unix_connection(sock=sock)
            except BaseException:
                sock.close()
                raise
            try:
                writer.write(_HEALTH_REQUEST)
                return (await reader.read(16)).startswith(b"HTTP/1.1 204")
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
