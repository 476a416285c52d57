"""Everything about templates that one server has, put together."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Self

from ringfence.engine.model import Limits
from ringfence.engine.templates.builder.build import TemplateBuilder
from ringfence.engine.templates.registry.images import ImageStore
from ringfence.server.templates.builds import Builds
from ringfence.server.templates.catalog import Catalog
from ringfence.server.templates.store import TemplateStore
from ringfence.server.templates.uploads import Uploads

if TYPE_CHECKING:
    from ringfence.engine.engine import Engine
    from ringfence.server.registry import Registry


class TemplateService:
    """Templates of one server: store, catalog, uploads and builds.

    data_dir: where they are kept. image_dir: from where local images may be taken; None: from nowhere.
    registries: hosts images may be pulled from though their addresses are private.
    ceiling: the most a template's sandboxes may have. max_upload: of one archive, in bytes.
    """

    def __init__(
        self,
        engine: "Engine",
        registry: "Registry",
        *,
        data_dir: Path,
        image_dir: Path | None,
        registries: Collection[str],
        ceiling: Limits,
        max_upload: int,
    ) -> None:
        self.engine = engine
        self.ceiling = ceiling
        self.store = TemplateStore(data_dir / "ringfence.db")
        self.uploads = Uploads(data_dir / "template-files", max_upload)
        self.catalog = Catalog(engine, self.store)
        images = ImageStore(engine, self.store, data_dir / "images", image_dir, registries)
        self.builds = Builds(
            engine,
            self.store,
            self.catalog,
            TemplateBuilder(engine, self.store, images),
            self.uploads,
            lambda: [record.sandbox.template for record in registry.records()],
            registry.snapshots.templates,
        )
        registry.resolve_template = self.catalog.resolve
        registry.on_removal(lambda _: self.builds.sandbox_ended())

    async def __aenter__(self) -> Self:
        self.store.end_interrupted()
        self.catalog.load()
        self.builds.collect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.builds.close()
        self.store.close()
