"""The server's certificate: the operator's own, or one made for local use.

A made one comes from a certificate authority of this server, kept in the data directory, so that clients
trust one file for good: ``SSL_CERT_FILE`` for Python, ``NODE_EXTRA_CA_CERTS`` for Node. The authority's key
never leaves that directory.
"""

import datetime
import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ringfence.core.errors import ConfigurationError

_AUTHORITY_DAYS = 3650
_CERTIFICATE_DAYS = 90
"""A made certificate is made anew at every start, so its life is short."""


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
        _make_authority(ca_path, ca_key_path)
    chain, key = directory / "server.pem", directory / "server.key"
    _make_leaf(ca_path, ca_key_path, chain, key, list(names))
    return Certificate(chain, key, ca_path)


def _make_authority(path: Path, key_path: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("Ringfence local authority")
    builder = _builder(name, name, key.public_key(), _AUTHORITY_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    builder = builder.add_extension(
        x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
    )
    _store(path, key_path, builder, key, key)


def _make_leaf(ca_path: Path, ca_key_path: Path, chain: Path, key_path: Path, names: list[str]) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    authority = x509.load_pem_x509_certificate(ca_path.read_bytes())
    authority_key = load_pem_private_key(ca_key_path.read_bytes(), None)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_name("Ringfence"), authority.subject, key.public_key(), _CERTIFICATE_DAYS)
    alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
    builder = builder.add_extension(alternatives, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    server_use = x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH])
    builder = builder.add_extension(server_use, critical=False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())  # type: ignore[arg-type]
    builder = builder.add_extension(issuer, critical=False)
    _store(chain, key_path, builder, authority_key, key)


def _name(common: str) -> Any:
    from cryptography import x509

    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])


def _general_name(name: str) -> Any:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _builder(subject: Any, issuer: Any, public_key: Any, days: int) -> Any:
    from cryptography import x509

    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> Any:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _store(path: Path, key_path: Path, builder: Any, signer: Any, key: Any) -> None:
    from cryptography.hazmat.primitives import hashes, serialization

    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write_private(key_path, secret)
    path.write_bytes(builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


def _write_private(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
