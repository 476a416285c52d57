"""Makes the programs of a sandbox trust one more certificate authority.

It is the host's, for those whose requests it changes on their way out. There is no one place that all
programs look at: the system's bundle serves most, `certifi` has a copy in each Python environment of the
template, and some programs want a variable. What is the user's own, homes and volumes, is left alone: there
the variables have to do.

What is added stands between two marks, so that a sandbox made from a copy of this one can be rid of it.
"""

import contextlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
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
    for prefix in ("usr", "usr/local", "opt/*")
    for packages in ("site-packages", "dist-packages")
    for path in ("certifi/cacert.pem", "pip/_vendor/certifi/cacert.pem")
)
_LARGEST = 8 << 20
_BEGIN, _END = b"\n# Added by Ringfence\n", b"# End of what Ringfence added\n"
_ADDED = re.compile(re.escape(_BEGIN) + rb".*?" + re.escape(_END), re.DOTALL)


def trust(authority: str, volumes: Sequence[str] = (), root: Path = Path("/")) -> None:
    """Add `authority` (PEM) to every bundle there is; the system's is made when it is not there.

    An authority that was added before goes. volumes: where the sandbox's volumes are; they stay as they are.
    """
    kept = [_below(root, volume).resolve() for volume in volumes]
    bundle = _below(root, BUNDLE)
    with contextlib.suppress(OSError):
        _write(bundle, authority, kept, os.O_CREAT)
    for path in _others(root):
        with contextlib.suppress(OSError):
            _write(path, authority, kept)


def forget(volumes: Sequence[str] = (), root: Path = Path("/")) -> None:
    """Take back what `trust` did in the sandbox that this one's files are a copy of, if it did."""
    bundle = _below(root, BUNDLE)
    with contextlib.suppress(OSError):
        if _BEGIN not in bundle.read_bytes():
            return
        trust("", volumes, root)
        if not bundle.stat().st_size:
            bundle.unlink()


def _below(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def _others(root: Path) -> Iterator[Path]:
    yield from (root / name for name in _BUNDLES)
    for pattern in _PYTHON:
        yield from root.glob(pattern)


def _write(path: Path, authority: str, kept: Sequence[Path], flags: int = 0) -> None:
    """Links are not followed: what one leads to is somebody else's, or is in the list itself."""
    place = path.parent.resolve()
    if any(place.is_relative_to(volume) for volume in kept):
        return
    if flags:
        place.mkdir(parents=True, exist_ok=True)
    flags |= os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(path, flags, 0o644), "r+b", buffering=0) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
            return
        before = file.read()
        plain = _ADDED.sub(b"", before)
        after = plain + _BEGIN + authority.encode() + _END if authority else plain
        if after == before:
            return
        # In place, and the part that does not change is not touched: programs may be reading.
        same = len(before) if before == plain else before.index(_BEGIN)
        try:
            _write_all(file.fileno(), after[same:], same)
        except OSError:  # the disk is full, and half a certificate would spoil the others
            file.truncate(same)
            raise
        file.truncate(len(after))


def _write_all(fd: int, data: bytes, at: int) -> None:
    while data:
        count = os.pwrite(fd, data, at)
        data, at = data[count:], at + count
