"""The server's certificate: the operator's own, or one made for local use.

A made one comes from a certificate authority of this server, kept in the data directory, so that clients
trust one file for good: ``SSL_CERT_FILE`` for Python, ``NODE_EXTRA_CA_CERTS`` for Node. The authority's key
never leaves that directory.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ringfence.core.errors import ConfigurationError
from ringfence.engine.certificates import issue, make_authority, write_private


@dataclass(frozen=True)
class Certificate:
    """Files in PEM: the chain, its key, and the authority clients have to trust (None: they do already)."""

    chain: Path
    key: Path
    authority: Path | None = None


def own_certificate(chain: Path, key: Path) -> Certificate:
    """The operator's certificate. Raises ConfigurationError when a file cannot be read."""
    for path in (chain, key):
        try:
            path.open("rb").close()
        except OSError as error:
            raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
    return Certificate(chain, key)


def make_certificate(directory: Path, names: Iterable[str]) -> Certificate:
    """A certificate for `names` (host names, wildcards, IP addresses), made in `directory`.

    Raises ConfigurationError when the package for it is not installed.
    """
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise ConfigurationError(
            "making a certificate needs the package cryptography: pip install 'ringfence[tls]', "
            "or give a certificate of your own with --tls-cert and --tls-key"
        ) from None
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    ca_path, ca_key_path = directory / "ca.pem", directory / "ca.key"
    if not (ca_path.exists() and ca_key_path.exists()):
        make_authority(ca_path, ca_key_path, "Ringfence local authority")
    chain, key = directory / "server.pem", directory / "server.key"
    certificate, private = issue(ca_path.read_bytes(), ca_key_path.read_bytes(), names)
    write_private(key, private)
    chain.write_bytes(certificate)
    return Certificate(chain, key, ca_path)
