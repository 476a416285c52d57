"""All contexts of a sandbox: the default ones, one per language, and those that were made by request."""

import asyncio
import logging
import os
import select
import time
import uuid
from dataclasses import replace

from ringfence.guest.config import GuestConfig
from ringfence.guest.interpreter.context import NOT_RESTORED, Context
from ringfence.guest.interpreter.identity import kernel_environment, kernel_user
from ringfence.guest.interpreter.kernel import KernelSpec
from ringfence.guest.interpreter.languages import JAVASCRIPT, PYTHON, Language, Languages
from ringfence.guest.interpreter.nursery import KernelStartError, NurseryClient
from ringfence.guest.interpreter.saved import KernelState, SavedContext, padding, read_contexts, table_of
from ringfence.guest.interpreter.saving import SaveError
from ringfence.guest.limits import LimitWatch
from ringfence.guest.memory import MemoryMeter
from ringfence.guest.waiting import writable

_log = logging.getLogger(__name__)


class UnknownContextError(Exception):
    """There is no context with this id."""


class KernelPool:
    """The contexts, by id, in the order they were made. `start` must be called on the running loop."""

    def __init__(
        self,
        config: GuestConfig,
        nursery: NurseryClient,
        memory: MemoryMeter | None = None,
        limits: LimitWatch | None = None,
    ) -> None:
        self._config = config
        self._nursery = nursery
        self._memory = memory or MemoryMeter()
        self._limits = limits
        self._contexts: dict[str, Context] = {}
        self._defaults: dict[str, Context] = {}
        self._starting: asyncio.Task[None] | None = None
        self._languages = Languages(kernel_user(config).home, config.node_modules)

    def start(self, image: int | None = None) -> None:
        """Make the contexts, and start Python's kernels in the background; JavaScript's starts with its first
        cell.

        image: a file with the contexts of another sandbox, of which this one is a copy; it is used up.
        """
        if image is not None:
            self._restore(image)
        context = self.default("python")
        if self._languages.missing_for_javascript() is None:
            self.default(JAVASCRIPT.name)
        self._starting = asyncio.get_running_loop().create_task(self._warm(context, image))

    async def _warm(self, first: Context, image: int | None) -> None:
        for context in (first, *(one for one in self.list() if one is not first and one.copied)):
            try:
                await context.start()
            except KernelStartError as error:
                # It is told again when the context is used.
                _log.warning("the kernel of context %s did not start: %s", context.id, error)
        if image is not None:
            os.close(image)  # each kernel has what it needs of it

    def _restore(self, image: int) -> None:
        try:
            saved = read_contexts(image)
        except (ValueError, OSError) as error:
            self.default("python").notes = [
                f"{NOT_RESTORED} The reason: the saved state is damaged ({error})."
            ]
            return
        for one in saved:
            try:
                language = self._languages.find(one.language)
            except KernelStartError:
                continue  # its kernel was installed by other means than files
            context = self._add(language.default() if one.default else language, one.cwd, one)
            if one.lost:
                context.notes = [f"{NOT_RESTORED} Only Python's variables are copied."]
            kind = language.kernel + language.spec
            if one.default and kind not in self._defaults:
                self._defaults[kind] = context

    async def save(self, target: int, room: int, memory: int, seconds: float) -> None:
        """Write the state of all contexts into the pipe `target`. Their kernels stand still until `go_on`.

        room: the most bytes that may be written. memory: how many bytes of memory a kernel may use for it.
        Raises SaveError when one cannot be saved within `seconds`.
        """
        deadline = time.monotonic() + seconds
        rows: list[SavedContext] = []
        position = 0
        for context in self.list():
            row = SavedContext(
                context.id, context.spec.language.name, context.spec.cwd, context in self._defaults.values()
            )
            if context.spec.language != PYTHON:
                rows.append(replace(row, lost=context.used))
                continue
            try:
                length = await context.save(target, room - position, memory, deadline)
            except SaveError as error:
                raise SaveError(f"the Python context {context.id} cannot be copied: {error}") from error
            if length:
                row = replace(row, state=KernelState(-1, position, length))
                gap = padding(position + length)
                await _write(target, gap)
                position += length + len(gap)
            rows.append(row)
        await _write(target, table_of(rows))

    async def go_on(self) -> None:
        """Let the kernels go on after `save`."""
        for context in self.list():
            await context.go_on()

    def list(self) -> list[Context]:
        """All contexts, oldest first."""
        return list(self._contexts.values())

    def get(self, context_id: str) -> Context:
        """The context with this id; ``default`` is that of Python. Raises UnknownContextError."""
        if context_id == "default":
            return self.default("python")
        try:
            return self._contexts[context_id]
        except KeyError:
            raise UnknownContextError(f"Context {context_id} not found") from None

    def default(self, language: str) -> Context:
        """The default context of a language, made when it is first asked for. Raises KernelStartError."""
        found = self._languages.find(language)
        kind = found.kernel + found.spec
        if kind not in self._defaults:
            self._defaults[kind] = self._add(found.default(), self._default_cwd())
        return self._defaults[kind]

    async def create(self, language: str | None, cwd: str | None) -> Context:
        """A new context with a kernel that is ready. Raises KernelStartError: nothing is left of it then."""
        context = self._add(self._languages.find(language or "python"), cwd or self._default_cwd())
        try:
            await context.start()
        except BaseException:
            self._contexts.pop(context.id, None)
            raise
        return context

    async def remove(self, context_id: str) -> None:
        """End a context and forget it. Raises UnknownContextError."""
        context = self.get(context_id)
        self._contexts.pop(context.id, None)
        for kind, default in list(self._defaults.items()):
            if default is context:
                del self._defaults[kind]
        await context.close()

    def out_of_memory(self, used: int) -> None:
        """The launcher ends a process for want of memory: all have `used` bytes together."""
        self._memory.told(used)

    def note(self, text: str) -> None:
        """Tell whoever runs a cell now something about the sandbox, on the cell's stderr."""
        for context in self.list():
            context.note(text)

    async def aclose(self) -> None:
        """End every context."""
        if self._starting is not None:
            await asyncio.wait([self._starting])
        for context in self.list():
            await self.remove(context.id)

    def _add(self, language: Language, cwd: str, saved: SavedContext | None = None) -> Context:
        user = kernel_user(self._config)
        env = kernel_environment(self._config, user)
        spec = KernelSpec(language, user, cwd, env, self._memory, self._limits)
        context_id = saved.context_id if saved else str(uuid.uuid4())
        context = Context(context_id, self._nursery, spec, saved.state if saved else None)
        self._contexts[context.id] = context
        return context

    def _default_cwd(self) -> str:
        return self._config.default_workdir or kernel_user(self._config).home


async def _write(target: int, data: bytes) -> None:
    try:
        while data:
            await writable(target)
            data = data[os.write(target, data[: select.PIPE_BUF]) :]  # a pipe that is ready takes so much
    except OSError as error:
        raise SaveError("the host has stopped reading the state of the kernels") from error
