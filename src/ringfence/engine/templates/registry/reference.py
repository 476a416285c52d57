"""Names of images: ``ubuntu``, ``python:3.12``, ``ghcr.io/owner/name@sha256:…``."""

import re
from dataclasses import dataclass

from ringfence.core.errors import TemplateError

_HUB = "docker.io"
_HUB_HOST = "registry-1.docker.io"
_HOST = re.compile(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9]+(?:[.-]+[A-Za-z0-9]+)*)(:[0-9]{1,5})?")
_PATH = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_LOOPBACK = ("localhost", "[::1]")


@dataclass(frozen=True)
class Reference:
    """An image in a registry. `wanted` is a tag or a digest. `host` may have a port."""

    host: str
    path: str
    wanted: str

    @property
    def url(self) -> str:
        """Where the registry's API answers: plain HTTP is for loopback only."""
        name = self.host if self.host.endswith("]") else self.host.rpartition(":")[0] or self.host
        scheme = "http" if name in _LOOPBACK or name.startswith("127.") else "https"
        return f"{scheme}://{self.host}/v2/{self.path}"


def parse(text: str) -> Reference:
    """The reference that `text` means, by Docker's rules. Raises TemplateError."""
    rest, at, digest = text.strip().partition("@")
    first, slash, remainder = rest.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        host, path = first, remainder
    else:
        host, path = _HUB, rest
    path, colon, tag = path.partition(":")
    if host in (_HUB, "index.docker.io"):
        host = _HUB_HOST
        path = path if "/" in path else f"library/{path}"
    parts = [(_HOST, host), (_PATH, path)]
    parts += [(_DIGEST, digest)] if at else []
    parts += [(_TAG, tag)] if colon else []
    if not all(pattern.fullmatch(part) for pattern, part in parts):
        raise TemplateError(f"{text[:200]!r} is not the name of an image")
    return Reference(host, path, digest or tag or "latest")
