"""The sandboxes of this server: who owns each, until when it lives, and what becomes of it."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any

from ringfence.core.errors import RingfenceError
from ringfence.core.ids import is_sandbox_id, new_sandbox_id, new_token
from ringfence.core.uninterrupted import uninterrupted
from ringfence.engine.lease import Leases
from ringfence.engine.model import TIERS, Exit, Isolation, Limits, SandboxSpec, Template, VolumeMount
from ringfence.server.errors import ApiError, from_engine, quota_reached
from ringfence.server.limits import with_requested
from ringfence.server.models import NetworkUpdate, NewSandbox
from ringfence.server.network import NetworkRequests
from ringfence.server.records import LogLine, Record
from ringfence.server.snapshot_store import Snapshot
from ringfence.server.snapshots import Snapshots
from ringfence.server.tiers import requested
from ringfence.server.volumes.volumes import Volumes

if TYPE_CHECKING:
    from ringfence.engine.engine import Engine

logger = logging.getLogger(__name__)


class Registry:
    """Every live sandbox, by id. All of its state is touched on the event loop only.

    max_sandboxes, max_timeout (seconds), max_memory_mb: the operator's ceilings.
    """

    def __init__(
        self, engine: "Engine", snapshots: Snapshots, volumes: Volumes, network: NetworkRequests, *,
        max_sandboxes: int, max_timeout: int, max_memory_mb: int | None = None,
    ) -> None:  # fmt: skip
        self._engine = engine
        self._network = network
        self._max_sandboxes = max_sandboxes
        self._max_timeout = max_timeout
        self._max_memory_mb = max_memory_mb
        self._records: dict[str, Record] = {}
        self._starting = 0
        self._closing = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._removal_listeners: list[Callable[[str], None]] = []
        self._start_listeners: list[Callable[[str, str], None]] = []
        # Which template an owner means by a name; the catalog of templates replaces it when there is one.
        self.resolve_template: Callable[[str, str], Template | None] = lambda _, name: find_template(
            engine, name
        )
        self._traffic_listeners: list[Callable[[str], None]] = []
        self.on_expiry: Callable[[Record], Coroutine[Any, Any, None]] = self._kill_expired
        self.snapshots = snapshots
        self._volumes = volumes
        self.leases = Leases(self._expire)
        engine.add_exit_listener(self._on_exit)
        engine.add_network_listener(self._on_network)

    def __len__(self) -> int:
        return len(self._records)

    def records(self) -> list[Record]:
        """Every live sandbox, of all owners."""
        return list(self._records.values())

    def owned(self, owner: str) -> list[Record]:
        """The live sandboxes of one owner."""
        return [record for record in self._records.values() if record.owner == owner]

    def find(self, sandbox_id: str) -> Record | None:
        """The live sandbox with this id, whosever it is. For sandbox traffic, which has its own tokens."""
        return self._records.get(sandbox_id)

    def lookup(self, owner: str, sandbox_id: str) -> Record:
        """The owner's live sandbox with this id. Raises ApiError (404), alike for unknown and foreign ids."""
        record = self._records.get(sandbox_id)
        if record is None or record.owner != owner:
            shown = f'"{sandbox_id}" ' if is_sandbox_id(sandbox_id) else ""
            raise ApiError(404, f"sandbox {shown}does not exist or you have no access to it")
        return record

    def on_start(self, listener: Callable[[str, str], None]) -> None:
        """Call `listener` with the id and the owner of every new sandbox."""
        self._start_listeners.append(listener)

    def on_removal(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with the id of every sandbox that is no longer live, before it is torn down."""
        self._removal_listeners.append(listener)

    def on_stop(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with the id of every sandbox to which traffic shall be broken off."""
        self._traffic_listeners.append(listener)

    def stop_traffic(self, record: Record) -> None:
        """Cancel a sandbox's lease and break off what is under way with it."""
        self.leases.cancel(record.sandbox_id)
        for listener in self._traffic_listeners:
            listener(record.sandbox_id)

    def restore_lease(self, record: Record) -> None:
        """Put a cancelled lease in force again."""
        if self._records.get(record.sandbox_id) is record:
            self.leases.set(record.sandbox_id, record.end_at)

    def renew(self, record: Record, lifetime: int) -> None:
        """Let a sandbox that was paused live `lifetime` seconds from now."""
        self._set_end(record, round(time.time() + lifetime, 6))

    def check_room(self, lifetime: int) -> None:
        """Raise ApiError when no further sandbox may run (429), or not so long (400)."""
        self._check_timeout(lifetime)
        running = sum(not record.paused for record in self._records.values())
        if running + self._starting >= self._max_sandboxes:
            raise quota_reached(f"you have reached the maximum number of sandboxes ({self._max_sandboxes})")

    async def create(
        self, owner: str, request: NewSandbox, *, lifetime: int, secure: bool, fork: Snapshot | None = None,
        volumes: tuple[VolumeMount, ...] | None = None,
    ) -> Record:  # fmt: skip
        """Start a sandbox for `owner` that lives `lifetime` seconds. Raises ApiError.

        fork: start it on this snapshot, but show it as one of the template in the request.
        volumes: those that the request names, when they are known already.
        """
        self.check_room(lifetime)
        if volumes is None:
            volumes = self._volumes.resolve(owner, request.volume_mounts or ())
        snapshot = fork or self._snapshot(owner, request.template_id)
        template = (
            self.snapshots.template_of(snapshot) if snapshot else self._template(owner, request.template_id)
        )
        chain = snapshot.chain if snapshot else ()
        network, generation = request.network, self._network.generation
        spec = SandboxSpec(
            sandbox_id=new_sandbox_id(),
            template=template.key,
            env=request.env_vars,
            access_token=new_token() if secure else None,
            limits=self._limits(template, request.metadata),
            network=await self._network.rules_of(owner, network, request.allow_internet_access),
            snapshots=chain,
            volumes=volumes,
            isolation=requested(request.metadata, self._least_isolation(template, snapshot)),
        )
        sandbox = await self._start(spec)
        now = round(time.time(), 6)
        private = network is not None and network.allow_public_traffic is False
        record = Record(
            sandbox=sandbox,
            owner=owner,
            started_at=now,
            end_at=now + lifetime,
            metadata=request.metadata,
            access_token=spec.access_token,
            traffic_token=new_token() if private else None,
            allow_internet_access=request.allow_internet_access,
            network=network.described() if network else {},
            mask_request_host=network.mask_request_host if network else None,
            lifetime=lifetime,
            request=request,
            snapshots=chain,
            volumes=volumes,
        )
        if snapshot is not None and fork is None:
            name = snapshot.name.removesuffix(":default") if snapshot.name else None
            record.shown_template = (snapshot.snapshot_id, name)
        if self._engine.get(record.sandbox_id) is None:
            raise ApiError(500, "the sandbox ended while it was starting")
        self._records[record.sandbox_id] = record
        for started in self._start_listeners:
            started(record.sandbox_id, owner)
        self._log(record, "info", f"sandbox started from template {template.name}")
        self.leases.set(record.sandbox_id, record.end_at)
        if self._network.generation != generation:
            await self._refresh_new(record)
        return record

    def _least_isolation(self, template: Template, snapshot: Snapshot | None) -> Isolation:
        """That of the template or the operator; a copy has no less than what it is a copy of."""
        least = self._engine.least_isolation(template)
        return max(least, snapshot.isolation, key=TIERS.index) if snapshot else least

    async def _refresh_new(self, record: Record) -> None:
        """Put in force secrets that changed while a sandbox was starting; without them it ends."""
        try:
            await self._network.refresh(record)
        except (ApiError, RingfenceError):
            await self.kill(record.sandbox_id, "changed secrets could not be put in force")
            raise

    async def update_network(self, record: Record, update: NetworkUpdate) -> None:
        """Replace what a sandbox may reach. Raises ApiError."""
        await self._network.update(record, update)
        self._log(record, "info", "network rules changed")

    async def refresh_secrets(self, owner: str) -> None:
        """Put changed secrets in force in the sandboxes of their owner."""
        for record in self.owned(owner):
            try:
                await self._network.refresh(record)
            except (ApiError, RingfenceError) as error:
                self._log(record, "warning", f"changed secrets could not be put in force: {error}")

    def extend(self, record: Record, lifetime: int) -> None:
        """Let the sandbox live at least `lifetime` seconds from now; never shortens."""
        self._check_timeout(lifetime)
        end_at = round(time.time() + lifetime, 6)
        if end_at > record.end_at:
            self._set_end(record, end_at)

    async def set_lifetime(self, record: Record, lifetime: int) -> None:
        """Let the sandbox live exactly `lifetime` seconds from now; zero or less ends it at once."""
        if lifetime <= 0:
            record.end_at = round(time.time(), 6)
            self.leases.cancel(record.sandbox_id)
            await self.on_expiry(record)
            return
        self._check_timeout(lifetime)
        self._set_end(record, round(time.time() + lifetime, 6))

    async def kill(self, sandbox_id: str, reason: str = "it was asked for") -> bool:
        """End a sandbox. Returns whether it was live. When this returns nothing of it is left."""
        record = self._remove(sandbox_id)
        if record is None:
            return False
        logger.info("killing sandbox %s: %s", sandbox_id, reason)
        await uninterrupted(self._engine.kill(sandbox_id))
        return True

    async def close(self) -> None:
        """Refuse new sandboxes and end all that live."""
        self._closing = True
        self.leases.close()
        for task in list(self._tasks):
            task.cancel()
        async with asyncio.TaskGroup() as group:
            for sandbox_id in list(self._records):
                group.create_task(self.kill(sandbox_id, "the server stops"))

    async def _start(self, spec: SandboxSpec) -> Any:
        if self._closing:
            raise ApiError(503, "the server is stopping")
        self._starting += 1
        try:
            return await self._engine.create(spec)
        except RingfenceError as error:
            logger.warning("could not start a sandbox: %s", error)
            raise from_engine(error) from error
        finally:
            self._starting -= 1

    def _snapshot(self, owner: str, name: str) -> Snapshot | None:
        return None if self.resolve_template(owner, name) else self.snapshots.find(owner, name)

    def _template(self, owner: str, name: str) -> Template:
        template = self.resolve_template(owner, name)
        if template is None:
            raise ApiError(404, f"template '{name}' not found")
        return template

    def _limits(self, template: Template, metadata: Mapping[str, str]) -> Limits:
        limits = with_requested(template.limits, metadata, self._max_memory_mb)
        if self._max_memory_mb is None or limits.memory_mb <= self._max_memory_mb:
            return limits
        return Limits(**{**vars(limits), "memory_mb": self._max_memory_mb})

    def _check_timeout(self, lifetime: int) -> None:
        if lifetime > self._max_timeout:
            raise ApiError(400, f"Timeout cannot be greater than {self._max_timeout} seconds")

    def _set_end(self, record: Record, end_at: float) -> None:
        record.end_at = end_at
        self.leases.set(record.sandbox_id, end_at)
        self._log(record, "info", "timeout changed")

    def log(self, record: Record, message: str) -> None:
        """Note an event in the sandbox's log."""
        self._log(record, "info", message)

    def _remove(self, sandbox_id: str) -> Record | None:
        record = self._records.pop(sandbox_id, None)
        if record is not None:
            self.leases.cancel(sandbox_id)
            for listener in self._removal_listeners:
                listener(sandbox_id)
        return record

    def _expire(self, sandbox_id: str) -> None:
        record = self._records.get(sandbox_id)
        if record is not None:
            self._spawn(self.on_expiry(record))

    async def _kill_expired(self, record: Record) -> None:
        await self.kill(record.sandbox_id, "its timeout was reached")

    def _on_exit(self, exit_: Exit) -> None:
        if self._remove(exit_.sandbox_id) is not None:
            logger.warning("sandbox %s ended: %s (%s)", exit_.sandbox_id, exit_.reason, exit_.detail)

    def _on_network(self, sandbox_id: str, level: str, message: str) -> None:
        record = self._records.get(sandbox_id)
        if record is not None:
            self._log(record, level, message)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a background task failed", exc_info=error)

    @staticmethod
    def _log(record: Record, level: str, message: str) -> None:
        record.log.append(LogLine(time.time(), level, message))


def find_template(engine: "Engine", name: str) -> Template | None:
    """A warmed template by name (``name`` or ``name:default``) or by template id."""
    base = name.removesuffix(":default").removesuffix(":latest")
    found = engine.templates.get(base)
    if found is not None:
        return found
    return next((t for t in engine.templates.values() if t.template_id == base), None)
