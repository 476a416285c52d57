"""Images on this machine: OCI layouts and ``docker save`` archives in a directory of the operator's."""

import asyncio
import hashlib
import shutil
import tarfile
from pathlib import Path
from typing import Any

from ringfence.core.errors import TemplateError
from ringfence.engine.templates.registry.manifest import (
    Blob,
    Manifest,
    choose,
    is_index,
    parse_json,
    parse_manifest,
)

_MAX_JSON = 8 << 20
_NAME = "org.opencontainers.image.ref.name"
LAYOUT = "oci:"
ARCHIVE = "docker-archive:"


def find(directory: Path | None, name: str) -> Path:
    """The path of `name` in the operator's directory. Raises TemplateError when it leads out of it."""
    if directory is None:
        raise TemplateError(
            "images are not taken from this machine: the operator has not set RINGFENCE_IMAGE_DIR"
        )
    place = directory.resolve()
    if "\0" in name:
        raise TemplateError("the name of an image has no NUL")
    path = (place / name).resolve()
    if not path.is_relative_to(place) or not path.exists():
        raise TemplateError(f"there is no image {name[:200]!r} in the operator's directory")
    return path


class LayoutSource:
    """An OCI image layout: a directory with ``index.json`` and ``blobs``."""

    def __init__(self, path: Path, tag: str) -> None:
        self._path = path
        self._tag = tag

    async def manifest(self) -> tuple[Manifest, str]:
        """The image and its manifest's digest."""
        return await asyncio.to_thread(self._read)

    def _read(self) -> tuple[Manifest, str]:
        index = parse_json(_read_small(self._path / "index.json"))
        digest = self._tagged(index) if self._tag else choose(index)
        document = parse_json(self._json(digest))
        if is_index(document):
            digest = choose(document)
            document = parse_json(self._json(digest))
        return parse_manifest(document), digest

    def _tagged(self, index: dict[str, Any]) -> str:
        for entry in index.get("manifests", ()):
            if isinstance(entry, dict) and (entry.get("annotations") or {}).get(_NAME) == self._tag:
                return str(entry.get("digest"))
        raise TemplateError(f"the layout has no image {self._tag!r}")

    def _json(self, digest: str) -> bytes:
        data = _read_small(self._blob(digest))
        if digest != f"sha256:{hashlib.sha256(data).hexdigest()}":
            raise TemplateError(f"blob {digest} of the layout is damaged")
        return data

    def _blob(self, digest: str) -> Path:
        algorithm, _, name = digest.partition(":")
        if algorithm != "sha256" or not name.isalnum():
            raise TemplateError("the layout has a digest that is not SHA-256")
        return self._path / "blobs" / "sha256" / name

    async def fetch(self, blob: Blob, target: Path) -> None:
        """Copy a blob to the new file `target`."""
        try:
            await asyncio.to_thread(shutil.copyfile, self._blob(blob.digest), target)
        except OSError as error:
            raise TemplateError(f"the layout lacks {blob.digest}: {error.strerror}") from error
        if await asyncio.to_thread(_digest_of, target) != blob.digest:
            raise TemplateError(f"blob {blob.digest} of the layout is damaged")


class ArchiveSource:
    """A ``docker save`` archive. Its layers have no digests of their own, so they get the file's."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._members: dict[str, str] = {}

    async def manifest(self) -> tuple[Manifest, str]:
        """The archive's first image and a digest of the archive."""
        return await asyncio.to_thread(self._read)

    def _read(self) -> tuple[Manifest, str]:
        try:
            with tarfile.open(self._path) as archive:
                listed = archive.extractfile("manifest.json")
                entry = parse_json(b'{"images":' + (listed.read(_MAX_JSON) if listed else b"null") + b"}")
                image = entry["images"][0]
                names = [str(image["Config"]), *map(str, image["Layers"])]
                blobs = [self._name(name, archive.getmember(name).size) for name in names]
        except (OSError, tarfile.TarError, KeyError, TypeError, IndexError) as error:
            raise TemplateError(f"the archive cannot be read: {error}") from error
        return Manifest(blobs[0], tuple(blobs[1:])), _digest_of(self._path)

    def _name(self, member: str, size: int) -> Blob:
        digest = f"sha256:{hashlib.sha256(member.encode()).hexdigest()}"
        self._members[digest] = member
        return Blob(digest, size)

    async def fetch(self, blob: Blob, target: Path) -> None:
        """Copy a member to the new file `target`."""
        await asyncio.to_thread(self._extract, self._members[blob.digest], target)

    def _extract(self, member: str, target: Path) -> None:
        with tarfile.open(self._path) as archive, target.open("xb") as file:
            source = archive.extractfile(member)
            if source is None:
                raise TemplateError(f"the archive has no file {member!r}")
            shutil.copyfileobj(source, file)


def _read_small(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_JSON)
    except OSError as error:
        raise TemplateError(f"the layout lacks {path.name}: {error.strerror}") from error


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
