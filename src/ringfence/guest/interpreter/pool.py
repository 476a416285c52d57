"""All contexts of a sandbox: the default ones, one per language, and those that were made by request."""

import asyncio
import logging
import uuid

from ringfence.guest.config import GuestConfig
from ringfence.guest.interpreter.context import Context
from ringfence.guest.interpreter.identity import kernel_environment, kernel_user
from ringfence.guest.interpreter.kernel import KernelSpec
from ringfence.guest.interpreter.languages import JAVASCRIPT, Language, Languages
from ringfence.guest.interpreter.nursery import KernelStartError, NurseryClient
from ringfence.guest.limits import LimitWatch
from ringfence.guest.memory import MemoryMeter

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

    def start(self) -> None:
        """Make the default contexts, and start Python's kernel in the background; JavaScript's starts with
        its first cell.
        """
        context = self.default("python")
        if self._languages.missing_for_javascript() is None:
            self.default(JAVASCRIPT.name)
        self._starting = asyncio.get_running_loop().create_task(self._warm(context))

    async def _warm(self, context: Context) -> None:
        try:
            await context.start()
        except KernelStartError as error:
            _log.warning(
                "the default context's kernel did not start: %s", error
            )  # told again when it is used

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
        except KernelStartError:
            del self._contexts[context.id]
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

    def _add(self, language: Language, cwd: str) -> Context:
        user = kernel_user(self._config)
        env = kernel_environment(self._config, user)
        context = Context(
            str(uuid.uuid4()),
            self._nursery,
            KernelSpec(language, user, cwd, env, self._memory, self._limits),
        )
        self._contexts[context.id] = context
        return context

    def _default_cwd(self) -> str:
        return self._config.default_workdir or kernel_user(self._config).home
