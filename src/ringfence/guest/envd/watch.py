"""The watching part of ``filesystem.Filesystem``: as a stream, or fetched by polling."""

import asyncio
import ctypes
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.routing import Route

from ringfence.guest.config import GuestConfig
from ringfence.guest.connect import Call, ConnectError, Message, ServerStreamEndpoint, UnaryEndpoint
from ringfence.guest.envd import fields
from ringfence.guest.envd.entries import Entries
from ringfence.guest.envd.filesystem import os_errors
from ringfence.guest.envd.inotify import Watcher, WatchLimitError
from ringfence.guest.envd.paths import printable, resolve
from ringfence.guest.envd.processes import keepalive_seconds
from ringfence.guest.envd.users import UserDatabase, call_user

MAX_POLLED_WATCHERS = 64
"""Watchers that wait to be polled; each is an inotify instance, of which the kernel grants 128."""

_LIBC = ctypes.CDLL(None, use_errno=True)
# From linux/magic.h: NFS, CIFS, SMB, SMB2, FUSE, 9P. Changes made on the other side are not seen by inotify.
_NETWORK_MAGIC = {0x6969, 0xFF534D42, 0x517B, 0xFE534D42, 0x65735546, 0x01021997}
_STATFS_BYTES = 256


def on_network_mount(path: str) -> bool:
    """Whether `path` is on a file system that others may change without inotify noticing."""
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    if _LIBC.statfs(os.fsencode(path), buffer) < 0:
        return False
    return int.from_bytes(buffer.raw[:4], "little") in _NETWORK_MAGIC


class WatchService:
    """Watchers of directories."""

    def __init__(self, config: GuestConfig, users: UserDatabase, entries: Entries) -> None:
        """Watch for the users in `users`."""
        self._config = config
        self._users = users
        self._entries = entries
        self._polled: dict[str, Watcher] = {}

    def routes(self) -> list[Route]:
        """The service's methods as routes."""
        prefix = "/filesystem.Filesystem/"
        return [
            Route(prefix + "WatchDir", ServerStreamEndpoint(self.watch_dir)),
            Route(prefix + "CreateWatcher", UnaryEndpoint(self.create_watcher)),
            Route(prefix + "GetWatcherEvents", UnaryEndpoint(self.get_watcher_events)),
            Route(prefix + "RemoveWatcher", UnaryEndpoint(self.remove_watcher)),
        ]

    def _watcher(self, request: Message, call: Call) -> Watcher:
        user = call_user(self._users, self._config.default_user, call.headers.get("authorization"))
        with os_errors("error watching"):
            path = resolve(fields.text(request, "path"), user, self._config.default_workdir)
            if not Path(path).exists():
                raise ConnectError("not_found", f"path {printable(path)} not found")
            if not Path(path).is_dir():
                raise ConnectError("invalid_argument", f"path {printable(path)} not a directory")
            allowed = self._config.own_kernel or fields.flag(request, "allowNetworkMounts")
            if not allowed and on_network_mount(path):
                message = f"cannot watch path on network filesystem: {printable(path)}"
                raise ConnectError("invalid_argument", message)
            try:
                return Watcher(
                    path,
                    self._entries,
                    recursive=fields.flag(request, "recursive"),
                    describe=fields.flag(request, "includeEntry"),
                )
            except WatchLimitError as error:
                raise ConnectError("resource_exhausted", f"error watching: {error}") from None

    async def watch_dir(self, request: Message, call: Call) -> AsyncIterator[Message]:
        """Tell of changes as they happen."""
        watcher = self._watcher(request, call)
        changed = asyncio.Event()
        watcher.on_events(changed.set)
        interval = keepalive_seconds(call)
        try:
            yield {"start": {}}
            while True:
                try:
                    async with asyncio.timeout(interval):
                        await changed.wait()
                except TimeoutError:
                    yield {"keepalive": {}}
                    continue
                changed.clear()
                for event in _events(watcher):
                    yield {"filesystem": event}
        finally:
            watcher.close()

    async def create_watcher(self, request: Message, call: Call) -> Message:
        """Begin to collect changes for `get_watcher_events`."""
        if len(self._polled) >= MAX_POLLED_WATCHERS:
            message = f"there are {MAX_POLLED_WATCHERS} watchers already: remove one first"
            raise ConnectError("resource_exhausted", message)
        watcher = self._watcher(request, call)
        watcher_id = "w" + secrets.token_hex(10)
        self._polled[watcher_id] = watcher
        return {"watcherId": watcher_id}

    async def get_watcher_events(self, request: Message, call: Call) -> Message:
        """The changes since the last call, including one that was finished just before this one."""
        return {"events": _events(self._find(request)[1])}

    async def remove_watcher(self, request: Message, call: Call) -> Message:
        """Stop collecting."""
        watcher_id, watcher = self._find(request)
        del self._polled[watcher_id]
        watcher.close()
        return {}

    def _find(self, request: Message) -> tuple[str, Watcher]:
        watcher_id = fields.text(request, "watcherId")
        if watcher_id not in self._polled:
            raise ConnectError("not_found", f"watcher with id {watcher_id} not found")
        return watcher_id, self._polled[watcher_id]


def _events(watcher: Watcher) -> list[Message]:
    events = watcher.take()
    if watcher.overflown:
        raise ConnectError("internal", "watcher error: events came faster than they were fetched")
    return events
