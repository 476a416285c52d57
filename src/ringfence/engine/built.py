"""Templates that users have built, in service beside the built-in ones.

One that stands on a built-in template is served by that template's zygote: what its users put into it is on
disk only, and never runs in a process that has power over more than one sandbox. One that stands on an image
has a user namespace of its own and no zygote; it comes into service with its first sandbox, and when there
are many of them the one that was used longest ago leaves it.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

from ringfence.core.errors import LauncherError, TemplateError
from ringfence.core.uninterrupted import uninterrupted
from ringfence.engine.link import LauncherLink
from ringfence.engine.model import Template

_MOST_WARM = 64


class BuiltTemplates:
    """By key. `warm` may be called for any template; those of the engine itself are always warm.

    discarded: is called with the key of one that is served no longer.
    """

    def __init__(self, link: LauncherLink, discarded: Callable[[str], None]) -> None:
        self._link = link
        self._discarded = discarded
        self._templates: dict[str, Template] = {}
        self._warm: OrderedDict[str, None] = OrderedDict()
        self._lock = asyncio.Lock()

    def add(self, template: Template) -> None:
        """Serve `template` (again)."""
        self._templates[template.key] = template

    def get(self, key: str) -> Template | None:
        """The template with this key."""
        return self._templates.get(key)

    def __iter__(self) -> Iterator[Template]:
        return iter(list(self._templates.values()))

    def discard(self, key: str) -> None:
        """Serve it no longer. Its sandboxes live on; new ones cannot be made."""
        self._templates.pop(key, None)
        self._discarded(key)

    async def warm(self, template: Template) -> None:
        """Bring into service what `template` stands on. Raises TemplateError, LauncherError."""
        key = template.root or template.key
        root = self._templates.get(key)
        if root is None:
            if template.root and key.startswith(IMAGE):
                raise TemplateError(f"the image that template {template.name!r} stands on is gone")
            return
        async with self._lock:
            if key not in self._warm:
                while len(self._warm) >= _MOST_WARM and await self._cool_one():
                    pass
                await uninterrupted(self._bring(key, root))
            self._warm.move_to_end(key)

    async def _bring(self, key: str, root: Template) -> None:
        await self._link.call("warm", template=description_of(root))
        self._warm[key] = None

    async def _cool_one(self) -> bool:
        """Take the one that was used longest ago out of service; false when all have sandboxes."""
        for key in list(self._warm):
            if await self._cool(key):
                return True
        return False

    async def _cool(self, key: str) -> bool:
        with contextlib.suppress(LauncherError):
            if key in self._warm:
                await uninterrupted(self._take_out(key))
                return True
        return False

    async def _take_out(self, key: str) -> None:
        await self._link.call("cool", template=key)
        del self._warm[key]


IMAGE = "image-"
"""What the keys of templates begin with that are the files of an image and nothing else."""


def description_of(template: Template, gradual: bool = False) -> dict[str, Any]:
    """A template as the launcher's ``warm`` takes it; `gradual`: ready before everything is imported."""
    return {
        "name": template.key,
        "layers": [
            {"target": layer.target, "lowers": [str(path) for path in layer.lowers]}
            for layer in template.layers
        ],
        "python": template.python if template.preload else "",
        "preload": list(template.preload),
        "gradual": gradual,
        "env": template.env,
    }
