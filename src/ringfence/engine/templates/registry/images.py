"""Images as templates that others can stand on.

An image is unpacked once, by the launcher's helper (`launcher/unpack.py`), into a snapshot; its layers are
merged there. Its registry is asked for the manifest each time: no pull, no use.
"""

import asyncio
import contextlib
import os
import tempfile
import uuid
import weakref
from collections.abc import AsyncIterator, Callable, Collection
from importlib import resources
from pathlib import Path
from typing import Protocol

from ringfence.core.errors import TemplateError
from ringfence.engine.built import IMAGE
from ringfence.engine.engine import Engine
from ringfence.engine.model import Layer, Template
from ringfence.engine.templates.builder.build import LayerIndex
from ringfence.engine.templates.builder.spec import Context, Credentials
from ringfence.engine.templates.registry import local, reference
from ringfence.engine.templates.registry.client import RegistryClient
from ringfence.engine.templates.registry.guard import Guard
from ringfence.engine.templates.registry.manifest import (
    Blob,
    Config,
    Manifest,
    choose,
    is_index,
    parse_config,
    parse_json,
    parse_manifest,
)

MAX_UNPACKED = 32 << 30
"""Bytes of all files of an image, however well they are compressed."""
_MAX_CONFIG = 8 << 20
_FILES = ("hosts", "host.conf", "nsswitch.conf", "resolv.conf")

Tell = Callable[[str], None]


class Source(Protocol):
    """Where one image comes from."""

    async def manifest(self) -> tuple[Manifest, str]:
        """The image and its manifest's digest. Raises TemplateError."""

    async def fetch(self, blob: Blob, target: Path) -> None:
        """Write a blob to the new file `target`. Raises TemplateError."""


class _RegistrySource:
    """An image in a registry."""

    def __init__(self, client: RegistryClient, wanted: str) -> None:
        self._client = client
        self._wanted = wanted

    async def manifest(self) -> tuple[Manifest, str]:
        data, digest = await self._client.manifest(self._wanted)
        document = parse_json(data)
        if is_index(document):
            data, digest = await self._client.manifest(choose(document))
            document = parse_json(data)
        return parse_manifest(document), digest

    async def fetch(self, blob: Blob, target: Path) -> None:
        await self._client.blob(blob.digest, blob.size, target)


class ImageStore:
    """Images that were unpacked, by digest.

    work_dir: for layers while they are unpacked. image_dir: the operator's local images.
    registries: hosts whose addresses may be private.
    """

    def __init__(
        self,
        engine: Engine,
        index: LayerIndex,
        work_dir: Path,
        image_dir: Path | None,
        registries: Collection[str] = (),
    ) -> None:
        self._engine = engine
        self._index = index
        self._work_dir = work_dir
        self._image_dir = image_dir
        self._guard = Guard(registries)
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    async def ensure(
        self, image: str, credentials: Credentials | None, tell: Tell
    ) -> tuple[Template, Context]:
        """The image as a template, unpacked if it is not yet, and the context its configuration makes."""
        await asyncio.to_thread(self._work_dir.mkdir, 0o700, parents=True, exist_ok=True)
        async with self._source(image, credentials) as source:
            with tempfile.TemporaryDirectory(dir=self._work_dir) as work:
                manifest, digest = await source.manifest()
                config = await self._config(source, manifest, Path(work) / "config")
                async with self._locks.setdefault(digest, asyncio.Lock()):
                    name = self._known(digest) or await self._unpack(
                        source, manifest, digest, Path(work), tell
                    )
        root = Template(
            template_id=name,
            name=IMAGE + digest.removeprefix("sha256:"),
            layers=(Layer("/", (self._engine.snapshot_tree(name),)),),
            python="",
            env=dict(config.env),
        )
        return root, Context(env=config.env)

    @contextlib.asynccontextmanager
    async def _source(self, image: str, credentials: Credentials | None) -> AsyncIterator[Source]:
        if image.startswith(local.LAYOUT):
            path, _, tag = image.removeprefix(local.LAYOUT).partition(":")
            yield local.LayoutSource(local.find(self._image_dir, path), tag)
        elif image.startswith(local.ARCHIVE):
            yield local.ArchiveSource(local.find(self._image_dir, image.removeprefix(local.ARCHIVE)))
        else:
            named = reference.parse(image)
            async with RegistryClient(named, credentials, self._guard) as client:
                yield _RegistrySource(client, named.wanted)

    async def _config(self, source: Source, manifest: Manifest, path: Path) -> Config:
        if manifest.config.size > _MAX_CONFIG:
            raise TemplateError("the image's configuration is too large")
        await source.fetch(manifest.config, path)
        return parse_config(parse_json(await asyncio.to_thread(path.read_bytes)))

    def _known(self, digest: str) -> str | None:
        name = self._index.find(f"image:{digest}")
        return name if name is not None and self._engine.snapshot_tree(name).is_dir() else None

    async def _unpack(self, source: Source, manifest: Manifest, digest: str, work: Path, tell: Tell) -> str:
        name = f"image{uuid.uuid4().hex}"
        self._index.begin(name)
        size = 0
        for number, layer in enumerate(manifest.layers, start=1):
            tell(f"layer {number}/{len(manifest.layers)}, {layer.size} bytes")
            path = work / str(number)
            await source.fetch(layer, path)
            size += await self._apply(name, path)
            if size > MAX_UNPACKED:
                raise TemplateError(f"the image has more than {MAX_UNPACKED >> 30} GiB of files")
        await self._engine.unpack(name, None, _sandbox_files())
        self._index.add(f"image:{digest}", name)
        return name

    async def _apply(self, name: str, path: Path) -> int:
        archive = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return await self._engine.unpack(name, archive)
        finally:
            os.close(archive)
            await asyncio.to_thread(path.unlink)


def _sandbox_files() -> dict[str, str]:
    """Files of ``/etc`` that name resolution needs in a sandbox."""
    folder = resources.files("ringfence.engine.templates") / "files" / "etc"
    return {f"/etc/{name}": (folder / name).read_text("utf-8") for name in _FILES}
