"""Manifests and configurations of images: read with suspicion, reduced to what is needed."""

import json
import platform
import re
from dataclasses import dataclass
from typing import Any

from ringfence.core.errors import TemplateError

MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MAX_IMAGE = 32 << 30
"""Bytes of all compressed layers of an image."""
_MAX_LAYERS = 256
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class Blob:
    """Something in a registry, by digest; `size` in bytes."""

    digest: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """An image: its configuration and its layers, the lowest first."""

    config: Blob
    layers: tuple[Blob, ...]


@dataclass(frozen=True)
class Config:
    """What an image says about the processes in it."""

    user: str = ""
    workdir: str = ""
    env: tuple[tuple[str, str], ...] = ()


def architecture() -> str:
    """The architecture of this machine as images name it."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


def parse_json(data: bytes) -> dict[str, Any]:
    """A JSON object. Raises TemplateError."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise TemplateError("the image's description is not JSON")
    return value


def is_index(document: dict[str, Any]) -> bool:
    """Whether it lists manifests for several machines."""
    return document.get("mediaType") in INDEX_TYPES or "manifests" in document


def choose(index: dict[str, Any]) -> str:
    """The digest of the index's manifest for this machine. Raises TemplateError."""
    wanted = architecture()
    try:
        entries = [entry for entry in index["manifests"] if isinstance(entry, dict)]
        for entry in entries:
            where = entry.get("platform") or {"os": "linux", "architecture": wanted}
            if where.get("os") == "linux" and where.get("architecture") == wanted:
                return _digest(entry["digest"])
    except (KeyError, TypeError, AttributeError):
        raise TemplateError("the image's index cannot be read") from None
    raise TemplateError(f"the image is not there for linux/{wanted}")


def parse_manifest(document: dict[str, Any]) -> Manifest:
    """An image's manifest. Raises TemplateError."""
    try:
        config = _blob(document["config"])
        layers = tuple(_blob(entry) for entry in document["layers"])
    except (KeyError, TypeError, ValueError):
        raise TemplateError("the image's manifest cannot be read") from None
    if len(layers) > _MAX_LAYERS or sum(layer.size for layer in layers) > MAX_IMAGE:
        raise TemplateError(f"the image has more than {_MAX_LAYERS} layers or {MAX_IMAGE} bytes")
    return Manifest(config, layers)


def parse_config(document: dict[str, Any]) -> Config:
    """An image's configuration; what is not as it should be is left out."""
    inner = document.get("config")
    inner = inner if isinstance(inner, dict) else {}
    variables = inner.get("Env")
    variables = variables if isinstance(variables, list) else []
    pairs = [entry.partition("=") for entry in variables if isinstance(entry, str)]
    user, workdir = inner.get("User"), inner.get("WorkingDir")
    return Config(
        user=user if isinstance(user, str) else "",
        workdir=workdir if isinstance(workdir, str) and workdir.startswith("/") else "",
        env=tuple((name, value) for name, equals, value in pairs if name and equals),
    )


def _blob(entry: dict[str, Any]) -> Blob:
    size = entry["size"]
    if not isinstance(size, int) or size < 0:
        raise ValueError("size")
    return Blob(_digest(entry["digest"]), size)


def _digest(text: object) -> str:
    if not isinstance(text, str) or not _DIGEST.fullmatch(text):
        raise TemplateError("the image has a digest that is not SHA-256")
    return text
