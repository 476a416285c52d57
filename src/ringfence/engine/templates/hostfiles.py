"""The few things of the host's ``/etc`` that its ``/usr`` does not work without, and nothing that could be
a secret.

Taken are: certificates, the dynamic linker's cache, links of the alternatives system, tables of numbers and
types, settings of fontconfig, Java and R. A file is taken only when it belongs to root and everybody on the
host may read it.
"""

import os
import re
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path

from ringfence.engine.templates.plan import Plan

_CA_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Arch, Gentoo, Alpine
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # Fedora, RHEL
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/var/lib/ca-certificates/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_CA_INSIDE = "/etc/ssl/certs/ca-certificates.crt"
_CA_LINKS = (
    "/etc/ssl/cert.pem",
    "/etc/pki/tls/cert.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
)
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----\n")

_FILES = ("ld.so.cache", "ld.so.conf", "mime.types", "protocols", "services")
_TREES = ("ld.so.conf.d", "fonts", "java-*-openjdk", "R")
_SECRET_NAME = re.compile(r"password|passwd|access|secret|key", re.IGNORECASE)
_LARGEST = 4 << 20


def add_host_files(plan: Plan, etc: Path = Path("/etc")) -> None:
    """Add what is needed of the host's `etc` to `plan`."""
    for name in _FILES:
        _add_file(plan, etc / name, f"/etc/{name}")
    for pattern in _TREES:
        for top in sorted(etc.glob(pattern)):
            _add_tree(plan, top, f"/etc/{top.name}")
    _add_alternatives(plan, etc / "alternatives")
    _add_certificates(plan)


def _add_file(plan: Plan, source: Path, inside: str) -> None:
    content = _public_content(source)
    if content is not None:
        plan.file(inside, content)


def _public_content(path: Path) -> bytes | None:
    """The content of a regular file that is root's and world-readable, else None. Links are not followed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        public = stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_IROTH and status.st_uid == 0
        return file.read() if public and status.st_size <= _LARGEST else None


def _add_tree(plan: Plan, top: Path, inside: str) -> None:
    for path in _entries(top):
        place = f"{inside}/{path.relative_to(top)}"
        if path.is_symlink():
            target = os.readlink(path)  # noqa: PTH115 (as text, unchanged)
            if not target.startswith("/") or target.startswith(("/usr/", f"/etc/{top.name}/")):
                plan.link(place, target)
        elif not _SECRET_NAME.search(path.name):
            _add_file(plan, path, place)


def _entries(top: Path) -> Iterator[Path]:
    """Files and links below `top`, in order, without entering directories that not everybody may enter."""
    if not top.is_dir() or top.is_symlink():
        return
    for path in sorted(top.iterdir()):
        if path.is_dir() and not path.is_symlink():
            if path.stat().st_mode & stat.S_IXOTH:
                yield from _entries(path)
        else:
            yield path


def _add_alternatives(plan: Plan, directory: Path) -> None:
    """``/usr/bin/awk`` and many others are links into this directory, which links back into ``/usr``."""
    if not directory.is_dir():
        return
    for path in sorted(directory.iterdir()):
        if path.is_symlink() and (target := os.readlink(path)).startswith("/usr/"):  # noqa: PTH115
            plan.link(f"/etc/alternatives/{path.name}", target)


def _add_certificates(plan: Plan) -> None:
    content = find_certificates()
    if not content:
        return
    plan.file(_CA_INSIDE, content)
    for link in _CA_LINKS:
        plan.link(link, _CA_INSIDE)


def find_certificates() -> bytes:
    """The certificate authorities this machine trusts, in PEM; empty when there are none.

    Only certificates are taken from the file, whatever else it may have in it.
    """
    chosen = [os.environ.get("SSL_CERT_FILE"), ssl.get_default_verify_paths().cafile, *_CA_BUNDLES]
    for name in chosen:
        if name is None:
            continue
        try:
            found = _CERTIFICATE.findall(Path(name).read_bytes())
        except OSError:
            continue
        if found:
            return b"".join(found)
    return b""
