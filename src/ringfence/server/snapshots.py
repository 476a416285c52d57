"""Snapshots of sandboxes, of their files and the state of their Python kernels: made, found by id or name,
deleted, and removed when nothing lies on them.

A snapshot is a layer upon its template, and upon the snapshots that its sandbox was started from. So its
files outlive its deletion for as long as a sandbox or another snapshot needs them.
"""

import asyncio
import contextlib
import dataclasses
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringfence.core.errors import RingfenceError
from ringfence.core.ids import new_sandbox_id
from ringfence.engine.model import Template
from ringfence.server.errors import ApiError, from_engine, quota_reached
from ringfence.server.records import Record
from ringfence.server.snapshot_store import Snapshot, SnapshotStore

if TYPE_CHECKING:
    from ringfence.engine.engine import Engine

logger = logging.getLogger(__name__)

_NAME = re.compile(r"^[a-z0-9][a-z0-9_./-]{0,127}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?$")
_LONGEST_CHAIN = 32
"""Layers that may lie upon each other; overlayfs takes more, but every one costs each look-up of a file."""


class Snapshots:
    """Every snapshot of this server. All of its state is touched on the event loop only."""

    def __init__(self, engine: "Engine", store: SnapshotStore, most: int) -> None:
        """most: how many may be kept."""
        self._engine = engine
        self._store = store
        self._most = most
        self._all: dict[str, Snapshot] = {one.snapshot_id: one for one in store.all()}
        self._lock = asyncio.Lock()
        self._kept: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        engine.add_exit_listener(lambda _: self.collect_soon())

    def owned(self, owner: str) -> list[Snapshot]:
        """The snapshots of `owner`, newest first."""
        own = [one for one in self._all.values() if one.owner == owner and not one.hidden]
        return sorted(own, key=lambda one: (one.created_at, one.snapshot_id), reverse=True)

    def templates(self) -> set[str]:
        """The keys of the templates that snapshots lie upon."""
        return {one.template for one in self._all.values() if not one.hidden}

    def find(self, owner: str, wanted: str) -> Snapshot | None:
        """The owner's snapshot with this id or name, with or without a tag."""
        full = wanted if ":" in wanted else f"{wanted}:default"
        for one in self.owned(owner):
            if full in (one.wire_id, f"{one.snapshot_id}:default"):
                return one
        return None

    def template_of(self, snapshot: Snapshot) -> Template:
        """The template that a snapshot lies upon. Raises ApiError (409) when it is not served any more."""
        key = snapshot.template
        template = self._engine.templates.get(key) or self._engine.built.get(key)
        if template is None or template.template_id != snapshot.template_id:
            raise ApiError(
                409,
                f"snapshot '{snapshot.wire_id}' was made from a build of template '{snapshot.template}' that "
                "this server does not have any more",
            )
        return template

    async def create(
        self, record: Record, name: str | None = None, *, memory: bool = True, hidden: bool = False
    ) -> Snapshot:
        """Copy what `record`'s sandbox has written, and with `memory` the state of its Python kernels. It
        stands still meanwhile.

        A name that is in use passes on to the new snapshot. `hidden`: for the use of one operation. Raises
        ApiError, 409 when a kernel cannot be copied now.
        """
        name = self._check_name(name)
        if len(record.snapshots) >= _LONGEST_CHAIN:
            raise ApiError(400, f"{_LONGEST_CHAIN} snapshots lie upon each other here, the most there can be")
        if len(self._all) >= self._most:
            raise quota_reached(f"you have reached the maximum number of snapshots ({self._most})")
        template = record.sandbox.template
        made = Snapshot(
            new_sandbox_id(), record.owner, template.key, template.template_id, record.snapshots, name,
            record.sandbox_id, round(time.time(), 6), 0, hidden=True, isolation=record.sandbox.isolation,
        )  # fmt: skip
        with self.kept(made):
            await self._put(made)  # first of all, so that a copy that is cut short is found at the next start
            try:
                size = await self._engine.snapshot(record.sandbox_id, made.snapshot_id, memory=memory)
            except RingfenceError as error:
                raise from_engine(error) from error
            replaced = self.find(record.owner, name) if name else None
            made = dataclasses.replace(made, size=size, hidden=hidden)
            await self._put(made)
        if replaced is not None:
            await self._put(dataclasses.replace(replaced, hidden=True))
            self.collect_soon()
        return made

    @contextlib.contextmanager
    def kept(self, snapshot: Snapshot) -> Iterator[None]:
        """`snapshot` is not collected meanwhile, although it is hidden."""
        self._kept[snapshot.snapshot_id] += 1
        try:
            yield
        finally:
            self._kept[snapshot.snapshot_id] -= 1
            self._kept += Counter()  # drops what is at zero
            self.collect_soon()

    async def delete(self, snapshot: Snapshot) -> None:
        """Delete a snapshot; its files go when nothing lies on them."""
        await self._put(dataclasses.replace(snapshot, hidden=True))
        await self.collect()

    async def collect(self) -> None:
        """Remove the hidden snapshots that no sandbox and no other snapshot needs."""
        async with self._lock:
            needed = self._engine.snapshots_in_use() | set(self._kept)
            for one in self._all.values():
                if not one.hidden:
                    needed.update(one.chain)
            for one in [one for one in self._all.values() if one.snapshot_id not in needed]:
                await self._engine.erase(one.snapshot_id)
                del self._all[one.snapshot_id]
                await asyncio.to_thread(self._store.remove, one.snapshot_id)

    def collect_soon(self) -> None:
        """`collect` in the background, when there is anything to look at."""
        if any(one.hidden for one in self._all.values()):
            task = asyncio.get_running_loop().create_task(self._collect_quietly())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def recover(self, directory: Path) -> None:
        """At the start: forget snapshots without files, and remove what an earlier server left half-done."""
        there = set(await asyncio.to_thread(_names_in, directory))
        for one in list(self._all.values()):
            if not there.issuperset(one.chain):
                logger.warning("the files of snapshot %s are gone", one.wire_id)
                await self._put(dataclasses.replace(one, hidden=True))
        await self.collect()

    async def close(self) -> None:
        """Wait for what is being removed."""
        await asyncio.gather(*self._tasks)

    async def _put(self, snapshot: Snapshot) -> None:
        self._all[snapshot.snapshot_id] = snapshot
        async with self._lock:
            await asyncio.to_thread(self._store.put, snapshot)

    async def _collect_quietly(self) -> None:
        try:
            await self.collect()
        except RingfenceError as error:
            logger.warning("a snapshot could not be removed: %s", error)

    def _check_name(self, name: str | None) -> str | None:
        if not name:
            return None
        if not _NAME.match(name):
            raise ApiError(400, "name: lower-case letters, digits and '-_./', and a tag after ':'")
        return name if ":" in name else f"{name}:default"


def page(snapshots: list[Snapshot], params: Any) -> tuple[list[Snapshot], str | None]:
    """The page that a list request asks for, and the token of the next one. Raises ApiError (400)."""
    checks: list[Callable[[Snapshot], bool]] = []
    if sandbox_id := params.get("sandboxID"):
        checks.append(lambda one: one.sandbox_id == sandbox_id)
    if name := params.get("name"):
        checks.append(lambda one: name in (one.wire_id, one.wire_id.partition(":")[0]))
    found = [one for one in snapshots if all(check(one) for check in checks)]
    if token := params.get("nextToken"):
        at = next((number for number, one in enumerate(found) if one.snapshot_id == token), None)
        if at is None:
            raise ApiError(400, "nextToken is not one that this server gave")
        found = found[at:]
    limit = params.get("limit") or "100"
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 6 and 1 <= int(limit) <= 100):
        raise ApiError(400, "limit must be from 1 to 100")
    following = found[int(limit)].snapshot_id if len(found) > int(limit) else None
    return found[: int(limit)], following


def _names_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()] if directory.is_dir() else []
