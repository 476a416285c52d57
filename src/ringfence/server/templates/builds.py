"""Builds: registered, started, watched, and cleaned up after."""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ringfence.core.errors import RingfenceError
from ringfence.engine.model import Limits, Template
from ringfence.engine.templates.builder.build import TemplateBuilder
from ringfence.engine.templates.builder.spec import BuildError, BuildSpec
from ringfence.server.errors import ApiError
from ringfence.server.records import timestamp
from ringfence.server.templates.catalog import Catalog, dump
from ringfence.server.templates.store import BuildRow, TemplateRow, TemplateStore
from ringfence.server.templates.uploads import Uploads

if TYPE_CHECKING:
    from ringfence.engine.engine import Engine

logger = logging.getLogger(__name__)

MAX_SECONDS = 3600.0
"""Longest time of one build."""
MAX_AT_ONCE = 2
"""Builds that run at the same time; the others wait."""
_MAX_LINES = 20_000
_MAX_LINE = 64 << 10
_MAX_LOG = 4 << 20
"""Characters of one build's log."""
_KEPT_LOGS = 200
_KEPT_CHARACTERS = 16 * _MAX_LOG
_UNUSED_SECONDS = 7 * 86_400
"""After which layers that no template has, and uploaded files that no build has asked for, are removed."""
LEVELS = ("debug", "info", "warn", "error")


@dataclass
class BuildLog:
    """What a build has said. `lines` are in the form of E2B's ``BuildLogEntry``."""

    lines: list[dict[str, str]] = field(default_factory=list)
    size: int = 0
    _is_full: bool = False

    def add(self, level: str, step: str, message: str) -> None:
        """Add a line. When the log is full, that is said once, and only errors are still taken."""
        if level != "error" and self._is_full:
            return
        if level != "error" and (len(self.lines) >= _MAX_LINES or self.size + len(message) > _MAX_LOG):
            self._is_full = True
            level, message = "warn", "[the log of this build is full; what comes next is left out]"
        message = message[:_MAX_LINE]
        self.size += len(message)
        entry = {"timestamp": timestamp(time.time()), "level": level, "message": message, "step": step}
        self.lines.append(entry)

    def page(self, offset: int, limit: int, level: str | None) -> list[dict[str, str]]:
        """At most `limit` lines of at least `level`, those after the first `offset` of them."""
        least = LEVELS.index(level) if level else 0
        found = [line for line in self.lines if LEVELS.index(line["level"]) >= least] if least else self.lines
        return found[offset : offset + limit]


class Builds:
    """All builds of this server.

    live: the templates of the sandboxes that there are now. pinned: keys of builds that snapshots lie upon.
    """

    def __init__(
        self,
        engine: "Engine",
        store: TemplateStore,
        catalog: Catalog,
        builder: TemplateBuilder,
        uploads: Uploads,
        live: Callable[[], Iterable[Template]],
        pinned: Callable[[], set[str]],
    ) -> None:
        self._engine = engine
        self._store = store
        self._catalog = catalog
        self._builder = builder
        self._uploads = uploads
        self._live = live
        self._pinned = pinned
        self._leaving: set[str] = set()
        self._logs: dict[str, BuildLog] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._turn = asyncio.Semaphore(MAX_AT_ONCE)
        self._collecting: asyncio.Task[None] | None = None

    def register(self, row: TemplateRow, request: dict[str, Any]) -> str:
        """Note a build that will be started; its id."""
        build_id = str(uuid.uuid4())
        self._store.add_build(build_id, row.template_id, request)
        return build_id

    def log(self, build_id: str) -> BuildLog:
        """What a build has said; empty for one of an earlier run of the server."""
        return self._logs.get(build_id, BuildLog())

    def start(self, row: TemplateRow, build: BuildRow, spec: BuildSpec, limits: Limits) -> None:
        """Start a registered build. Raises ApiError (400) when it has been started before."""
        if build.status != "waiting" or build.build_id in self._running:
            raise ApiError(400, f"build {build.build_id} has been started before")
        self._forget_old_logs()
        self._logs[build.build_id] = BuildLog()
        identity = Template(row.template_id, row.name, (), "", limits=limits, build_id=build.build_id)
        task = asyncio.create_task(self._run(build, spec, identity))
        self._running[build.build_id] = task
        task.add_done_callback(lambda _: self._running.pop(build.build_id, None))

    def _forget_old_logs(self) -> None:
        size = sum(log.size for log in self._logs.values())
        for build_id in [name for name in self._logs if name not in self._running]:
            if len(self._logs) <= _KEPT_LOGS and size <= _KEPT_CHARACTERS:
                return
            size -= self._logs.pop(build_id).size

    async def _run(self, build: BuildRow, spec: BuildSpec, identity: Template) -> None:
        log = self._logs[build.build_id]
        try:
            async with self._turn, asyncio.timeout(MAX_SECONDS):
                self._store.set_building(build.build_id)
                template = await self._builder.build(spec, identity, log.add)
            self._succeeded(build, template)
        except BuildError as error:
            self._failed(build, str(error), error.step)
        except TimeoutError:
            self._failed(build, f"the build took longer than {MAX_SECONDS:g} s", "")
        except RingfenceError as error:
            self._failed(build, str(error), "")
        except Exception:
            logger.exception("a build failed")
            self._failed(build, "internal error", "")
        self.collect()

    def _failed(self, build: BuildRow, message: str, step: str) -> None:
        self._logs[build.build_id].add("error", step, f"Build failed: {message}")
        self._store.finish(build.build_id, reason={"message": message, **({"step": step} if step else {})})

    def _succeeded(self, build: BuildRow, template: Template) -> None:
        if self._store.by_id(build.template_id) is None:
            self._store.hide_layers(list(template.snapshots))
            return  # deleted while it was built
        self._engine.built.add(template)
        self._store.finish(build.build_id, result=dump(template, self._engine.built.get(template.root)))
        for tag in build.request["tags"]:
            self._store.set_tag(build.template_id, tag, build.build_id)
        self._store.touch(build.template_id)
        self.forget_untagged(build.template_id)

    def forget_untagged(self, template_id: str) -> None:
        """Forget the finished builds of a template that no tag names any more."""
        tagged = {tag.build_id for tag in self._store.tags(template_id)} | self._pinned()
        for build in self._store.builds(template_id)[:-1]:
            if build.status in ("ready", "error") and build.build_id not in tagged:
                self._retire(build)
        self.collect()

    def remove(self, row: TemplateRow) -> None:
        """Delete a template with all its builds. Its sandboxes live on."""
        for build in self._store.builds(row.template_id):
            task = self._running.get(build.build_id)
            if task is not None:
                task.add_done_callback(lambda _: self.collect())
                task.cancel()
            self._retire(build)
        self._store.remove_template(row.template_id)
        self.collect()

    def _retire(self, build: BuildRow) -> None:
        if self._engine.built.get(build.build_id) is not None:
            self._leaving.add(build.build_id)
        self._logs.pop(build.build_id, None)
        self._store.remove_build(build.build_id)

    def collect(self) -> None:
        """Erase the layers that no template, no sandbox and no later build will use, in the background."""
        if self._collecting is None or self._collecting.done():
            self._collecting = asyncio.create_task(self._collect())

    async def _collect(self) -> None:
        if any(not task.done() for task in self._running.values()):
            return  # a build may be using any of them; its end comes here again
        self._let_go()
        self._store.hide_old_layers(time.time() - _UNUSED_SECONDS)
        await asyncio.to_thread(self._uploads.remove_old, time.time() - _UNUSED_SECONDS)
        used = self._used_layers()
        for snapshot in self._store.hidden_layers():
            if snapshot in used:
                continue
            try:
                await self._engine.erase(snapshot)
            except RingfenceError as error:
                logger.warning("could not remove a layer of a template: %s", error)
                continue
            self._store.remove_layer(snapshot)

    def _let_go(self) -> None:
        """Take retired builds out of service that no sandbox needs any more, for a fork of it for example."""
        in_use = {template.key for template in self._live()} | self._engine.templates_in_use()
        for key in self._leaving - in_use:
            self._leaving.discard(key)
            template = self._engine.built.get(key)
            if template is None:
                continue
            self._engine.built.discard(key)
            shared = {name for other in self._engine.built for name in other.snapshots}
            self._store.hide_layers([name for name in template.snapshots if name not in shared])

    def _used_layers(self) -> set[str]:
        """The snapshots that templates and sandboxes have, those of their images included."""
        templates = [*self._engine.built, *self._live()]
        roots = {template.root for template in templates}
        images = {template.template_id for template in self._engine.built if template.key in roots}
        return images | {name for template in templates for name in template.snapshots}

    def sandbox_ended(self) -> None:
        """Look for what can go now, if anything waits to."""
        if self._leaving or self._store.hidden_layers():
            self.collect()

    async def close(self) -> None:
        """Stop every build."""
        tasks = [*self._running.values(), *([self._collecting] if self._collecting else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
