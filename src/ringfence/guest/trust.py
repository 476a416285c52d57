"""Makes the programs of a sandbox trust one more certificate authority.

It is the host's, for those whose requests it changes on their way out. There is no one place that all
programs look at: the system's bundle serves most, `certifi` has a copy in each Python environment, and some
programs want a variable.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
ENVIRONMENT = dict.fromkeys(
    ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT", "NODE_EXTRA_CA_CERTS",
     "GIT_SSL_CAINFO", "AWS_CA_BUNDLE"),
    BUNDLE,
)  # fmt: skip
_BUNDLES = (
    "etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "etc/pki/tls/certs/ca-bundle.crt",
    "etc/ssl/ca-bundle.pem",
    "etc/ssl/cert.pem",
    "var/lib/ca-certificates/ca-bundle.pem",
)
_PYTHON = tuple(
    f"{prefix}/lib/python3*/{packages}/{path}"
    for prefix in ("usr", "usr/local", "home/*/.local", "opt/*", "home/*/.venv", "home/*/venv")
    for packages in ("site-packages", "dist-packages")
    for path in ("certifi/cacert.pem", "pip/_vendor/certifi/cacert.pem")
)
_LARGEST = 8 << 20


def trust(authority: str, root: Path = Path("/")) -> None:
    """Add `authority` (PEM) to every bundle there is; the system's is made when it is not there."""
    content = authority.encode()
    bundle = root / BUNDLE[1:]
    with contextlib.suppress(OSError):
        bundle.parent.mkdir(parents=True, exist_ok=True)
        _append(bundle, content, os.O_CREAT)
    for path in _others(root):
        with contextlib.suppress(OSError):
            _append(path, content)


def _others(root: Path) -> Iterator[Path]:
    yield from (root / name for name in _BUNDLES)
    for pattern in _PYTHON:
        yield from root.glob(pattern)


def _append(path: Path, content: bytes, flags: int = 0) -> None:
    """Links are not followed: what one leads to is somebody else's, or is in the list itself."""
    flags |= os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(path, flags, 0o644), "r+b", buffering=0) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
            return
        if content not in file.read():
            file.write(b"\n" + content)
