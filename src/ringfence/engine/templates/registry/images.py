"""Images as templates."""

from collections.abc import Callable
from pathlib import Path

from ringfence.core.errors import TemplateError
from ringfence.engine.engine import Engine
from ringfence.engine.model import Template
from ringfence.engine.templates.builder.spec import Context, Credentials


class ImageStore:
    def __init__(self, engine: Engine, directory: Path, local: Path | None) -> None:
        self._engine = engine

    async def ensure(
        self, image: str, credentials: Credentials | None, tell: Callable[[str], None]
    ) -> tuple[Template, Context]:
        raise TemplateError("no images yet")
