"""The builder: from a base, step by step, to a template that sandboxes can start from.

Each step that may write files runs in a fresh sandbox on the layers before it; then its processes are ended,
and what it has written is kept as a snapshot. So a step sees what those before it left on disk and nothing of
their processes, as with Docker. Nothing of a build ever runs outside of a sandbox.
"""

import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from ringfence.core.errors import RingfenceError, TemplateError
from ringfence.core.ids import new_sandbox_id, new_token
from ringfence.engine.engine import Engine
from ringfence.engine.model import TIERS, Isolation, SandboxSpec, Template
from ringfence.engine.templates.builder import instructions, service
from ringfence.engine.templates.builder.guest import Command, Guest
from ringfence.engine.templates.builder.spec import (
    BASE_STEP,
    FINALIZE_STEP,
    BuildError,
    BuildSpec,
    Context,
    Credentials,
    Log,
    Step,
)
from ringfence.engine.templates.cache import digest

MAX_STEPS = 200
"""Layers of one template, those of the templates below it included; overlayfs(5) takes about 300."""
ISOLATION_VARIABLE = "RINGFENCE_ISOLATION"
"""The variable (``ENV``) by which a template asks for a tier, for its build and for its sandboxes."""
_BASH = "/bin/bash"
_SH = "/bin/sh"


class LayerIndex(Protocol):
    """Which snapshot holds what a step has written, by the step's key."""

    def find(self, key: str) -> str | None:
        """The snapshot of the step with this key."""

    def begin(self, snapshot: str) -> None:
        """Note that a snapshot will be made. Without `add` it is rubbish, which the index's owner erases."""

    def add(self, key: str, snapshot: str) -> None:
        """Note, or replace, the snapshot of the step with this key."""


class Images(Protocol):
    """Where root file systems of images come from."""

    async def ensure(
        self, image: str, credentials: Credentials | None, tell: Callable[[str], None]
    ) -> tuple[Template, Context]:
        """The image's files as a template that others can stand on, and what its configuration says.

        Raises TemplateError.
        """


@dataclass
class _State:
    """A build between two steps. `base`: the template it stands on; `snapshots`: topmost first."""

    base: Template
    context: Context
    key: str
    snapshots: tuple[str, ...] = ()
    shell: str = _BASH
    cached: bool = True

    def on_top(self, snapshot: str) -> tuple[str, ...]:
        return (snapshot, *self.snapshots)


class TemplateBuilder:
    """Builds templates on one engine."""

    def __init__(self, engine: Engine, index: LayerIndex, images: Images) -> None:
        self._engine = engine
        self._index = index
        self._images = images

    async def build(self, spec: BuildSpec, identity: Template, log: Log) -> Template:
        """Build `spec`. `identity` has the ids, the name and the limits of what is to come out.

        Raises BuildError, which names the step.
        """
        state = await self._base(spec, log)
        for number, step in enumerate(spec.steps, start=1):
            with _at(str(number)):
                await self._step(spec, state, number, step, log)
        with _at(FINALIZE_STEP):
            return await self._finalize(spec, state, identity, log)

    async def _base(self, spec: BuildSpec, log: Log) -> _State:
        with _at(BASE_STEP):
            log("info", BASE_STEP, f"[base] FROM {spec.from_image or spec.from_template}")
            if spec.from_image:
                base, context = await self._images.ensure(
                    spec.from_image, spec.credentials, lambda line: log("info", BASE_STEP, f"[base] {line}")
                )
                self._engine.built.add(base)
            else:
                base, context = self._parent(spec.from_template or "")
            state = _State(base, context, digest(spec.scope, base.root or base.key, *base.snapshots))
            state.snapshots = base.snapshots
            async with self._sandbox(spec, state) as guest:
                state.shell = _BASH if await guest.exists(_BASH) else _SH
            return state

    def _parent(self, key: str) -> tuple[Template, Context]:
        parent = self._engine.templates.get(key) or self._engine.built.get(key)
        if parent is None:
            raise TemplateError(f"there is no template {key!r}")
        return parent, Context(parent.default_user, parent.default_workdir)

    async def _step(self, spec: BuildSpec, state: _State, number: int, step: Step, log: Log) -> None:
        prefix = f"[builder {number}/{len(spec.steps)}]"
        after = instructions.next_context(step, state.context)
        state.cached = state.cached and not (spec.force or step.force)
        state.key = state.context.key(state.key, step)
        if not instructions.touches_files(step):
            log("info", str(number), f"{prefix} {step.describe()}")
            state.context = after
            return
        if len(state.snapshots) >= MAX_STEPS:
            raise TemplateError(f"a template may have {MAX_STEPS} layers, those it stands on included")
        known = self._index.find(state.key) if state.cached else None
        if known is not None:
            log("info", str(number), f"CACHED {prefix} {step.describe()}")
        else:
            log("info", str(number), f"{prefix} {step.describe()}")
            known = await self._execute(
                spec,
                state,
                step,
                lambda stream, line: log("info", str(number), f"{prefix} [{stream}]: {line}"),
            )
            self._index.add(state.key, known)
        state.snapshots = state.on_top(known)
        state.context = after

    async def _execute(
        self, spec: BuildSpec, state: _State, step: Step, tell: Callable[[str, str], None]
    ) -> str:
        name = f"step{uuid.uuid4().hex}"
        self._index.begin(name)
        async with self._sandbox(spec, state, keep=name) as guest:
            await instructions.execute(guest, step, state.context, spec, state.shell, tell)
        return name

    @contextlib.asynccontextmanager
    async def _sandbox(self, spec: BuildSpec, state: _State, keep: str | None = None) -> AsyncIterator[Guest]:
        """A sandbox on the layers so far; if all goes well, what it writes becomes the snapshot `keep`."""
        sandbox_id, token = new_sandbox_id(), new_token()
        request = SandboxSpec(
            sandbox_id=sandbox_id,
            template=state.base.root or state.base.key,
            access_token=token,
            limits=spec.limits,
            snapshots=state.snapshots,
            isolation=_isolation(state),
        )
        sandbox = await self._engine.create(request)
        try:
            async with Guest(sandbox.http_socket, token) as guest:
                yield guest
            if keep is not None:
                await self._engine.suspend(sandbox_id)
                await self._engine.snapshot(sandbox_id, keep)
        finally:
            await self._engine.kill(sandbox_id)

    async def _finalize(self, spec: BuildSpec, state: _State, identity: Template, log: Log) -> Template:
        base = state.base
        own = bool(spec.start_cmd or spec.ready_cmd)
        template = replace(
            identity,
            layers=(),
            python=base.python,
            preload=base.preload,
            env=base.env,
            packages=base.packages,
            python_version=base.python_version,
            root=base.root or base.key,
            snapshots=state.snapshots,
            default_user=state.context.user,
            default_workdir=state.context.workdir,
            start_cmd=spec.start_cmd if own else base.start_cmd,
            ready_cmd=spec.ready_cmd if own else base.ready_cmd,
            build_env=dict(state.context.env) if own else base.build_env,
            shell=state.shell,
            isolation=_isolation(state),
        )
        async with self._sandbox(spec, state) as guest:
            problem = await guest.run(
                Command("true", template.default_user, template.default_workdir, shell=state.shell)
            )
            if problem:
                raise TemplateError(f"a sandbox of the template cannot run commands: {problem}")
            await self._try_service(guest, template, log)
        log("info", FINALIZE_STEP, "[finalize] Build finished")
        return template

    async def _try_service(self, guest: Guest, template: Template, log: Log) -> None:
        if template.start_cmd:
            log("info", FINALIZE_STEP, f"[finalize] START {template.start_cmd}")
            await service.start_service(guest, template)
        if template.ready_cmd:
            log("info", FINALIZE_STEP, f"[finalize] READY {template.ready_cmd}")
            if not await service.wait_ready(guest, template, service.BUILD_TIMEOUT):
                raise TemplateError(
                    f"ready command '{template.ready_cmd}' did not succeed in {service.BUILD_TIMEOUT:g} s"
                )


def _isolation(state: _State) -> Isolation:
    """The tier of the template it stands on, or a harder one that its instructions ask for."""
    text = dict(state.context.env).get(ISOLATION_VARIABLE, state.base.isolation)
    tier = next((tier for tier in TIERS if tier == text), None)
    if tier is None:
        raise TemplateError(f"{ISOLATION_VARIABLE} must be one of {', '.join(TIERS)}, not {text[:40]!r}")
    return max(tier, state.base.isolation, key=TIERS.index)


@contextlib.contextmanager
def _at(step: str) -> Iterator[None]:
    try:
        yield
    except BuildError:
        raise
    except RingfenceError as error:
        raise BuildError(str(error), step) from error
