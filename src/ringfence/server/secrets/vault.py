"""Encryption of secrets at rest: AES-256-GCM under a key in a file of its own, beside the database.

Who gets a copy of the database alone reads nothing. What a value belongs to is authenticated with it, so a
row cannot be moved to another name or owner.
"""

import os
import stat
from pathlib import Path

from ringfence.core.errors import ConfigurationError
from ringfence.engine.certificates import write_private

_KEY_BYTES = 32
_NONCE_BYTES = 12


class UnreadableError(Exception):
    """A value cannot be decrypted; the message says why: the key file is missing, or another one."""


class Vault:
    """Encrypts and decrypts. The key file is made, with mode 0600, for the first value of all."""

    def __init__(self, key_file: Path) -> None:
        self._file = key_file

    def seal(self, value: str, belongs_to: str, *, first: bool) -> bytes:
        """The encrypted value. first: there is no other one yet, so a key that is not there may be made.

        Raises ConfigurationError when the key file cannot be used.
        """
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        if first and not self._file.exists():
            write_private(self._file, os.urandom(_KEY_BYTES))
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + AESGCM(self._key()).encrypt(nonce, value.encode(), belongs_to.encode())

    def open(self, sealed: bytes, belongs_to: str) -> str:
        """The value. Raises UnreadableError."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        try:
            cipher = AESGCM(self._key())
            nonce, body = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
            return cipher.decrypt(nonce, body, belongs_to.encode()).decode()
        except ConfigurationError as error:
            raise UnreadableError(str(error)) from None
        except (InvalidTag, ValueError):
            raise UnreadableError(f"{self._file} is not the key it was encrypted with") from None

    def _key(self) -> bytes:
        try:
            descriptor = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise ConfigurationError(f"cannot read {self._file}: {error.strerror}") from None
        with open(descriptor, "rb") as file:
            if stat.S_IMODE(os.fstat(descriptor).st_mode) & 0o077:
                raise ConfigurationError(f"{self._file} can be read by others: chmod 600 it")
            key = file.read(_KEY_BYTES + 1)
        if len(key) != _KEY_BYTES:
            raise ConfigurationError(f"{self._file} is not a key of {_KEY_BYTES} bytes")
        return key
