"""The engine: sandboxes on this machine. It holds no privilege; what needs any is asked of the launcher."""

import asyncio
import contextlib
import dataclasses
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ringfence.core.errors import (
    LauncherError,
    LimitError,
    RingfenceError,
    SandboxNotFoundError,
    SandboxStartError,
    TemplateError,
)
from ringfence.core.uninterrupted import uninterrupted
from ringfence.engine.built import BuiltTemplates, description_of
from ringfence.engine.gvisor.images import Images
from ringfence.engine.gvisor.tier import Tier
from ringfence.engine.gvisor.warmstarts import Kind, WarmStarts
from ringfence.engine.isolation_report import IsolationReport
from ringfence.engine.link import LauncherLink, sweep
from ringfence.engine.model import (
    Exit,
    Isolation,
    Limits,
    NetworkRules,
    Sandbox,
    SandboxSpec,
    Stats,
    Template,
)
from ringfence.engine.network import AccountListener, Network, NetworkListener
from ringfence.engine.runtime_dir import make_runtime_dir, remove_runtime_dir
from ringfence.engine.settings import EngineSettings
from ringfence.engine.templates.build import ensure_template
from ringfence.engine.templates.builder import service
from ringfence.engine.templates.builder.guest import Guest
from ringfence.engine.volumes.manager import VolumeManager
from ringfence.engine.zygote.joining import HOSTNAME

Progress = Callable[[str], None]


class Engine:
    """Creates, watches and kills sandboxes. Made by `start`; all methods belong to one event loop."""

    def __init__(self, settings: EngineSettings, link: LauncherLink, runtime_dir: Path) -> None:
        self._settings = settings
        self._link = link
        self._runtime_dir = runtime_dir
        self._templates: dict[str, Template] = {}
        self._reports: dict[str, dict[str, Any]] = {}
        self._sandboxes: dict[str, Sandbox] = {}
        self._starting: set[str] = set()
        self._exit_listeners: list[Callable[[Exit], None]] = []
        self.isolation = IsolationReport.from_launcher([])
        """The layers of isolation and whether each is in force; `proof.startup` adds what attacks showed."""
        self._specs: dict[str, SandboxSpec] = {}
        images = Images(settings.cache_dir.absolute() / "gvisor-images")
        self.warm_starts = WarmStarts(images, link, settings.rotate_after, settings.rotate_minutes * 60)
        """Images of warmed sandboxes, from which those under gVisor are restored."""
        self._built = BuiltTemplates(link, self.warm_starts.forget)
        self._network = Network(settings.network, settings.authority_dir, settings.cache_dir / "packages")
        self.volumes = VolumeManager(link, settings.volume_dir, unbounded=settings.unbounded_volumes)
        """Directories that outlive sandboxes."""
        self._tier = Tier(settings.isolation, settings.gvisor_platform, settings.cache_dir)
        self.ended = asyncio.Event()
        """Set when the launcher has died, and every sandbox with it: the engine is of no use any more."""
        link.on_event = self._on_event

    @classmethod
    async def start(cls, settings: EngineSettings, progress: Progress = lambda _: None) -> "Engine":
        """Build what is missing, start the launcher and warm the templates.

        Raises UnsupportedHostError (with a remedy) when this machine cannot isolate, TemplateError when a
        template cannot be built or warmed.
        """
        templates = []
        for name in settings.templates:
            templates.append(await asyncio.to_thread(ensure_template, name, settings.cache_dir, progress))
        runtime_dir = make_runtime_dir(settings.runtime_dir)
        link = await LauncherLink.start()
        engine = cls(settings, link, runtime_dir)
        try:
            await engine._greet()
            async with asyncio.TaskGroup() as group:
                group.create_task(engine._look_for_gvisor())
                for template in templates:
                    progress(f"warming template {template.name}")
                    await engine._warm(template)
        except BaseExceptionGroup as group_error:
            await engine.aclose()
            raise group_error.exceptions[0] from None
        except BaseException:
            await engine.aclose()
            raise
        return engine

    async def _greet(self) -> None:
        await self._network.start()
        snapshots, volumes = self._settings.snapshot_dir, self._settings.volume_dir
        answer = await self._link.call(
            "hello", runtime_dir=str(self._runtime_dir), debug=self._settings.debug,
            totals=self._totals(), log_refusals=self._settings.log_refusals,
            rotate_after=self._settings.rotate_after, rotate_seconds=self._settings.rotate_minutes * 60,
            zygote_patience=self._settings.zygote_patience,
            snapshot_dir=str(snapshots.absolute()) if snapshots else None,
            volume_dir=str(volumes.absolute()) if volumes else None,
        )  # fmt: skip
        self.volumes.learn(answer["volumes_lack"])
        report = IsolationReport.from_launcher(answer["isolation"])
        self.isolation = dataclasses.replace(report, features=(self.volumes.status(),))

    def _totals(self) -> dict[str, float]:
        """What the operator has set for all sandboxes together; the launcher fills in the rest."""
        totals = {
            "memory_mb": self._settings.total_memory_mb,
            "cpus": self._settings.total_cpus,
            "pids": self._settings.total_pids,
        }
        return {name: value for name, value in totals.items() if value is not None}

    async def _look_for_gvisor(self) -> None:
        await self.warm_starts.sweep()
        if self._settings.isolation == "gvisor":
            await self._tier.runtime()  # fails, and says how to install it, rather than serve less
        self.isolation = self.isolation.with_tier(self._settings.isolation, await self._tier.describe())

    def least_isolation(self, template: Template) -> Isolation:
        """The least that a sandbox of `template` may have: the template's tier, or the operator's floor."""
        return self._tier.of(template.isolation)

    async def _warm(self, template: Template) -> None:
        answer = await self._link.call("warm", template=description_of(template, self._settings.gradual))
        self._templates[template.name] = template
        self._reports[template.name] = answer["report"]
        failed = answer["report"].get("failed") or {}
        if failed:
            raise TemplateError(f"template {template.name!r} cannot import {failed}")

    async def aclose(self) -> None:
        """Kill every sandbox, end the launcher, remove the runtime directory."""
        self.volumes.close()
        await self.warm_starts.aclose()
        await self._link.aclose()
        if self.ended.is_set():
            await sweep()
        await self._network.aclose()
        self._sandboxes.clear()
        await asyncio.to_thread(remove_runtime_dir, self._runtime_dir)

    @property
    def templates(self) -> Mapping[str, Template]:
        """Warmed templates by name."""
        return self._templates

    @property
    def built(self) -> BuiltTemplates:
        """Templates that users have built."""
        return self._built

    @property
    def ceiling(self) -> Limits:
        """The most any one sandbox may ask for."""
        return self._settings.ceiling

    def get(self, sandbox_id: str) -> Sandbox | None:
        """The running sandbox with this id."""
        return self._sandboxes.get(sandbox_id)

    def add_exit_listener(self, listener: Callable[[Exit], None]) -> None:
        """Call `listener` at the end of every sandbox, however it came."""
        self._exit_listeners.append(listener)

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """Start a sandbox; it serves when this returns. Nothing of it is left when this raises.

        Raises TemplateError (unknown template), LimitError (over the ceiling, or too many sandboxes),
        VolumeError, SandboxStartError.
        """
        template = self._templates.get(spec.template) or self._built.get(spec.template)
        if template is None:
            known = ", ".join(sorted(self._templates))
            raise TemplateError(f"there is no template {spec.template!r}; this engine has: {known}")
        limits = spec.limits or template.limits
        isolation = self._tier.of(spec.isolation, template.isolation)
        self._check_limits(limits)
        if len(self._sandboxes) + len(self._starting) >= self._settings.max_sandboxes:
            raise LimitError(
                f"{self._settings.max_sandboxes} sandboxes are alive, the most this engine allows"
            )
        self._starting.add(spec.sandbox_id)
        self._specs[spec.sandbox_id] = spec
        started_at = time.time()
        try:
            gvisor = await self._tier.request() if isolation == "gvisor" else None
            await self._built.warm(template)
            for mount in spec.volumes:
                await self.volumes.attach(mount.volume)
            answer, restored = await self._start(spec, template, limits, gvisor)
        except BaseException as error:
            await uninterrupted(self._take_back(spec.sandbox_id, asked=not isinstance(error, RingfenceError)))
            raise
        finally:
            self._starting.discard(spec.sandbox_id)
        if spec.sandbox_id not in self._specs:
            raise SandboxStartError("the sandbox ended while it was starting")
        directory = self._runtime_dir / spec.sandbox_id
        sandbox = Sandbox(
            spec.sandbox_id, template, limits, directory / "http.sock", directory / "tunnel.sock", started_at,
            answer["pid"], isolation, restored,
        )  # fmt: skip
        self._sandboxes[spec.sandbox_id] = sandbox
        if template.start_cmd:
            await self._start_service(sandbox, spec)
        return sandbox

    async def _start(
        self, spec: SandboxSpec, template: Template, limits: Limits, gvisor: dict[str, Any] | None
    ) -> tuple[dict[str, Any], bool]:
        """The launcher's answer, and whether the sandbox was restored from an image."""

        async def attempt(gvisor: dict[str, Any] | None) -> dict[str, Any]:
            way_out = await self._network.open(spec.sandbox_id, spec.network)
            birth = {**self._birth(spec, template, limits), "gvisor": gvisor}
            return await self._call_with(way_out, "create", {**birth, "resume": bool(spec.snapshots)})

        if gvisor is None:
            return await attempt(None), False
        if spec.snapshots or spec.volumes or limits.disk_mb != template.limits.disk_mb:
            return await self.warm_starts.start_cold(gvisor, attempt)
        root = self._templates.get(template.root) or self._built.get(template.root) or template
        kind = Kind(template.key, description_of(root), self._frame(template, limits, ()))
        return await self.warm_starts.start(gvisor, kind, attempt)

    async def _take_back(self, sandbox_id: str, *, asked: bool) -> None:
        """Forget a sandbox that was to be created, and end it if the launcher may have it."""
        with contextlib.suppress(LauncherError):
            if asked:
                await self.kill(sandbox_id)
        if self._specs.pop(sandbox_id, None) is not None:  # or its end has been announced
            self._network.forget(sandbox_id)

    async def _start_service(self, sandbox: Sandbox, spec: SandboxSpec) -> None:
        """Run the template's start command and wait for a while until it is ready."""
        try:
            async with Guest(sandbox.http_socket, spec.access_token) as guest:
                await service.start_service(guest, sandbox.template)
                await service.wait_ready(guest, sandbox.template, service.CREATE_TIMEOUT)
        except BaseException as error:
            await uninterrupted(self.kill(sandbox.sandbox_id))
            if isinstance(error, TemplateError):
                raise SandboxStartError(str(error)) from error
            raise

    async def _call_with(
        self, way_out: socket.socket, verb: str, arguments: dict[str, Any]
    ) -> dict[str, Any]:
        with way_out:
            return await self._link.call(verb, way_out.fileno(), **arguments)

    def _birth(self, spec: SandboxSpec, template: Template, limits: Limits) -> dict[str, Any]:
        guest = {
            "sandbox_id": spec.sandbox_id,
            "template_id": template.template_id,
            "access_token": spec.access_token,
            "env": {**template.env, **self._network.env_for(spec.sandbox_id), **spec.env},
            "default_user": template.default_user,
            "default_workdir": template.default_workdir,
            "memory_bytes": limits.memory_mb << 20,
            "disk_bytes": limits.disk_mb << 20,
            "cpus": limits.cpus,
            "pids": limits.pids,
            "python": template.python,
            "fresh_kernels": self._settings.fresh_kernels,
            "mirror": self._network.has_mirror(spec.sandbox_id),
            "authority": self._network.authority_for(spec.sandbox_id),
            "volumes": [mount.path for mount in spec.volumes],
        }
        return {
            **self._frame(template, limits, spec.snapshots),
            "id": spec.sandbox_id,
            "guest": guest,
            "volumes": [dataclasses.asdict(mount) for mount in spec.volumes],
        }

    @staticmethod
    def _frame(template: Template, limits: Limits, snapshots: tuple[str, ...]) -> dict[str, Any]:
        """What is not of one sandbox alone."""
        return {
            "template": template.root or template.key,
            "limits": dataclasses.asdict(limits),
            "hostname": HOSTNAME,
            "snapshots": [*snapshots, *template.snapshots],
        }

    def _check_limits(self, limits: Limits) -> None:
        for field in dataclasses.fields(Limits):
            asked, most = getattr(limits, field.name), getattr(self._settings.ceiling, field.name)
            if asked > most:
                raise LimitError(f"{field.name} {asked} is over this engine's ceiling of {most}")
            if asked <= 0:
                raise LimitError(f"{field.name} must be above zero, not {asked}")

    async def kill(self, sandbox_id: str) -> bool:
        """Kill a sandbox; whether there was one. When this returns nothing of it is left."""
        answer = await self._link.call("kill", id=sandbox_id)
        return bool(answer["existed"])

    async def stats(self, sandbox_id: str) -> Stats:
        """What a sandbox uses now. Raises SandboxNotFoundError."""
        if sandbox_id not in self._sandboxes:
            raise SandboxNotFoundError(f"there is no sandbox {sandbox_id}")
        answer = await self._link.call("stats", id=sandbox_id)
        return Stats(**answer["stats"])

    def check_network(self, rules: NetworkRules) -> None:
        """Raises PolicyError for network rules that make no sense."""
        self._network.check(rules)

    async def set_network(self, sandbox_id: str, rules: NetworkRules) -> None:
        """Replace a sandbox's network rules, for connections that stand as well. Raises PolicyError."""
        await self._network.set_rules(sandbox_id, rules)

    async def network_account(self, sandbox_id: str) -> dict[str, int]:
        """Connections, bytes and refusals of a sandbox so far; empty when it has none."""
        return await self._network.account(sandbox_id)

    def add_network_listener(self, listener: NetworkListener) -> None:
        """Call `listener` for everything that a sandbox is refused or cannot reach."""
        self._network.listeners.append(listener)

    @property
    def network_settings(self) -> dict[str, str | int]:
        """What sandboxes may reach by default and at most, as the operator set it."""
        return self._network.described()

    def add_account_listener(self, listener: AccountListener) -> None:
        """Call `listener` with what each sandbox has used of the network, when it has ended."""
        self._network.account_listeners.append(listener)

    async def freeze(self, sandbox_id: str) -> None:
        """Let every process of a sandbox stand still; its memory stays.

        Raises LauncherError when it does not run.
        """
        await self._link.call("freeze", id=sandbox_id)

    async def thaw(self, sandbox_id: str) -> None:
        """Let a frozen sandbox go on where it was."""
        await self._link.call("thaw", id=sandbox_id)

    async def suspend(self, sandbox_id: str) -> None:
        """End a sandbox's processes, frozen or not; its files stay, in memory."""
        await self._link.call("suspend", id=sandbox_id)

    async def revive(self, sandbox_id: str) -> Sandbox:
        """Start a suspended sandbox again on its files. It is still suspended when this raises."""
        old, spec = self._sandboxes.get(sandbox_id), self._specs.get(sandbox_id)
        if old is None or spec is None:
            raise SandboxNotFoundError(f"there is no sandbox {sandbox_id}")
        gvisor = await self._tier.request() if old.isolation == "gvisor" else None
        way_out = await self._network.open(sandbox_id, None)
        birth = {**self._birth(spec, old.template, old.limits), "gvisor": gvisor}
        try:
            answer = await uninterrupted(self._call_with(way_out, "revive", birth))
            sandbox = dataclasses.replace(old, pid=answer["pid"], restored=False)
            if sandbox_id in self._sandboxes:
                self._sandboxes[sandbox_id] = sandbox
            await self._restart_service(sandbox, spec)
        except asyncio.CancelledError:
            with contextlib.suppress(RingfenceError):  # it could not be revived
                await uninterrupted(self.suspend(sandbox_id))
            raise
        return sandbox

    async def _restart_service(self, sandbox: Sandbox, spec: SandboxSpec) -> None:
        if sandbox.template.start_cmd:
            # Its files are worth more than its service: when that fails, the sandbox is there to look why.
            with contextlib.suppress(RingfenceError):
                async with Guest(sandbox.http_socket, spec.access_token) as guest:
                    await service.start_service(guest, sandbox.template)

    async def snapshot(self, sandbox_id: str, name: str, *, memory: bool = False) -> int:
        """Copy the files that a sandbox has written into the new snapshot `name`; its size in bytes.

        memory: and the state of its Python kernels, from which those of a sandbox go on that is created with
        the snapshot topmost. Raises KernelStateError when that cannot be done: there is no snapshot then.
        A running sandbox is frozen meanwhile. The copy does not contain the snapshots that it started from.
        """
        # Who is cancelled may remove what there is of it, and that must not be added to any more.
        work = self._link.call("snapshot", id=sandbox_id, name=name, memory=memory)
        answer = await uninterrupted(work)
        return int(answer["bytes"])

    async def unpack(self, name: str, archive: int | None, files: dict[str, str] | None = None) -> int:
        """Apply the tar archive behind a descriptor, a layer of an image, to the snapshot `name`.

        The first layer makes it. Without an archive the image is finished: it gets what a sandbox needs, and
        `files` (path to text) that it lacks. Its tree is `snapshot_tree`. How many bytes the files of the
        layer have. Raises TemplateError.
        """
        descriptors = () if archive is None else (archive,)
        answer = await self._link.call("unpack", *descriptors, name=name, files=files or {})
        return int(answer["bytes"])

    def snapshot_tree(self, name: str) -> Path:
        """Where the root directory of the snapshot `name` lies on the host."""
        if self._settings.snapshot_dir is None:
            raise TemplateError("this engine keeps no snapshots")
        return self._settings.snapshot_dir.absolute() / name / "0"

    def snapshots_in_use(self) -> set[str]:
        """The snapshots that sandboxes have been, or are being, started from and that must stay."""
        return {name for spec in self._specs.values() for name in spec.snapshots}

    def templates_in_use(self) -> set[str]:
        """The keys of templates that sandboxes have been, or are being, started from."""
        return {spec.template for spec in self._specs.values()}

    def volumes_in_use(self) -> set[str]:
        """The ids of the volumes that sandboxes have, or are about to have, mounted."""
        return {mount.volume for spec in self._specs.values() for mount in spec.volumes}

    async def erase(self, name: str) -> None:
        """Remove a snapshot, if it is there; no sandbox that was started from it may be alive."""
        await self._link.call("erase", name=name)

    def _on_event(self, event: dict[str, Any]) -> None:
        if event.get("event") == "exit":
            self._sandboxes.pop(event["id"], None)
            if self._specs.pop(event["id"], None) is not None:
                self._network.forget(event["id"])
            self._tell(Exit(event["id"], event["reason"], event["detail"]))
        elif event.get("event") == "launcher-died":
            self.ended.set()
            for sandbox_id in list(self._sandboxes):
                del self._sandboxes[sandbox_id]
                self._tell(Exit(sandbox_id, "exited", "the launcher died, and every sandbox with it"))

    def _tell(self, exit_: Exit) -> None:
        for listener in self._exit_listeners:
            listener(exit_)
