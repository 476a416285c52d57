"""What can be done with secrets: create, list, change, destroy, and fill them in."""

import asyncio
import dataclasses
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ringfence.core.errors import ConfigurationError
from ringfence.core.ids import new_token
from ringfence.server.errors import ApiError, quota_reached
from ringfence.server.secrets.store import Secret, SecretStore
from ringfence.server.secrets.vault import UnreadableError, Vault

_MAX_SECRETS = 1000
_MAX_NAME = 256
_MAX_VALUE = 16 * 1024
_MAX_ENTRIES, _MAX_KEY, _MAX_ENTRY, _MAX_METADATA = 32, 128, 1024, 8192
_BAD_NAME = re.compile(r"[{}\x00-\x1f\x7f-\x9f]")
_RESERVED = "sec_"
_REMOVE_ALL = "sqlite3 {} 'DELETE FROM secrets'"

Listener = Callable[[str], Awaitable[None]]
"""Takes an owner."""


class Secrets:
    """The secrets of all owners. Everything happens under one lock, so that names stay unique."""

    def __init__(self, database: Path, key_file: Path) -> None:
        self._database = database
        self._store = SecretStore(database)
        self._vault = Vault(key_file)
        self._lock = asyncio.Lock()
        self.generation = 0
        """Grows with every change."""
        self.listeners: list[Listener] = []

    def check(self) -> None:
        """Raise ConfigurationError when secrets are kept that cannot be read, because their key is lost."""
        kept = self._store.all()
        reasons = [reason for one in kept if (reason := self._unreadable(one))]
        if reasons:
            raise ConfigurationError(
                f"{len(reasons)} of {len(kept)} secrets in {self._database} cannot be read: {reasons[0]}. "
                "Put the key file back from your backup, with mode 0600. If it is lost, so are the values: "
                f"then {_REMOVE_ALL.format(self._database)} removes all secrets, to be created again"
            )

    def _unreadable(self, secret: Secret) -> str:
        try:
            self._vault.open(secret.sealed, secret.belongs_to)
        except UnreadableError as error:
            return str(error)
        return ""

    async def all(self, owner: str) -> list[Secret]:
        """An owner's secrets, by name."""
        return await asyncio.to_thread(self._store.owned, owner)

    async def find(self, owner: str, id_or_name: str) -> Secret:
        """A secret by its id or name. Raises ApiError (404)."""
        wanted = {id_or_name, id_or_name.lower()}
        for one in await self.all(owner):
            if one.secret_id == id_or_name or one.name in wanted:
                return one
        raise ApiError(404, "there is no such secret")

    async def create(self, owner: str, name: str, value: str, metadata: Mapping[str, str]) -> Secret:
        """Keep a new secret. Raises ApiError (400, 409, 429)."""
        name = _checked_name(name)
        _check(value, metadata)
        async with self._lock:
            existing = await self.all(owner)
            if any(one.name == name for one in existing):
                raise ApiError(409, f"there is a secret named {name!r} already")
            if len(existing) >= _MAX_SECRETS:
                raise quota_reached(f"you have reached the maximum number of secrets ({_MAX_SECRETS})")
            now = round(time.time(), 6)
            secret_id = _RESERVED + new_token()[:24].lower()
            blank = Secret(secret_id, owner, name, 1, b"", json.dumps(dict(metadata)), now, now)
            return await self._keep(blank, value)

    async def update(
        self, owner: str, id_or_name: str, value: str, metadata: Mapping[str, str] | None
    ) -> Secret:
        """Give a secret a new value, and new metadata unless None. Raises ApiError (400, 404)."""
        _check(value, metadata or {})
        async with self._lock:
            old = await self.find(owner, id_or_name)
            blank = dataclasses.replace(
                old,
                version=old.version + 1,
                metadata=old.metadata if metadata is None else json.dumps(dict(metadata)),
                updated_at=round(time.time(), 6),
            )
            return await self._keep(blank, value)

    async def destroy(self, owner: str, id_or_name: str) -> None:
        """Delete a secret. Raises ApiError (404)."""
        async with self._lock:
            secret = await self.find(owner, id_or_name)
            await asyncio.to_thread(self._store.remove, secret.secret_id)
        await self._changed(owner)

    async def values(self, owner: str, names: Iterable[str]) -> dict[str, str | None]:
        """The values of secrets by name; None for one that is not there, or that cannot be decrypted."""
        wanted = {name: name.lower() for name in names}
        if not wanted:
            return {}
        by_name = {one.name: one for one in await self.all(owner)}
        return {name: await self._open(by_name.get(kept)) for name, kept in wanted.items()}

    async def _open(self, secret: Secret | None) -> str | None:
        if secret is None:
            return None
        try:
            return await asyncio.to_thread(self._vault.open, secret.sealed, secret.belongs_to)
        except UnreadableError:
            return None

    async def _keep(self, blank: Secret, value: str) -> Secret:
        first = not await asyncio.to_thread(self._store.all)
        try:
            sealed = await asyncio.to_thread(self._vault.seal, value, blank.belongs_to, first=first)
        except ConfigurationError as error:
            raise ApiError(500, f"secrets cannot be kept: {error}") from None
        secret = dataclasses.replace(blank, sealed=sealed)
        await asyncio.to_thread(self._store.put, secret)
        await self._changed(secret.owner)
        return secret

    async def _changed(self, owner: str) -> None:
        self.generation += 1
        for listener in self.listeners:
            await listener(owner)

    def close(self) -> None:
        """Close the database."""
        self._store.close()


def _checked_name(name: str) -> str:
    if not name or len(name) > _MAX_NAME or _BAD_NAME.search(name):
        raise ApiError(400, f"name: 1 to {_MAX_NAME} characters, without '{{', '}}' and control characters")
    if name.lower().startswith(_RESERVED):
        raise ApiError(400, f"name: the prefix {_RESERVED!r} is reserved for the ids of secrets")
    return name.lower()


def _check(value: str, metadata: Mapping[str, Any]) -> None:
    if len(value.encode(errors="replace")) > _MAX_VALUE:
        raise ApiError(400, f"value: larger than {_MAX_VALUE} bytes")
    if not value or not value.isprintable() or not value.isascii() or value != value.strip():
        raise ApiError(
            400,
            "value: it is sent in headers, so it must be printable ASCII, not empty, without spaces around",
        )
    if len(metadata) > _MAX_ENTRIES:
        raise ApiError(400, f"metadata: more than {_MAX_ENTRIES} entries")
    sizes = [(len(key.encode()), len(entry.encode())) for key, entry in metadata.items()]
    if any(key > _MAX_KEY or entry > _MAX_ENTRY for key, entry in sizes):
        raise ApiError(400, f"metadata: a key has {_MAX_KEY} bytes at most, a value {_MAX_ENTRY}")
    if sum(key + entry for key, entry in sizes) > _MAX_METADATA:
        raise ApiError(400, f"metadata: larger than {_MAX_METADATA} bytes together")
