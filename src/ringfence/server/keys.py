"""API keys: who may use the server, and whose sandboxes are whose.

A key is 160 random bits, so a plain SHA-256 is a sufficient digest: there is nothing to guess from. Keys that
the operator chose are held to a minimum length for the same reason.
"""

import binascii
import contextlib
import hashlib
import hmac
import re
from collections.abc import Iterable

from ringfence.core.errors import ConfigurationError
from ringfence.core.ids import new_api_key
from ringfence.server.store import Store

_MIN_LENGTH = 20
_INDEX_LENGTH = 8


def digest_of(key: str) -> str:
    """The SHA-256 of a key, in hex: what is stored and compared."""
    return hashlib.sha256(key.encode()).hexdigest()


def owner_of(digest: str) -> str:
    """The owner that a key with this digest stands for, the same over restarts."""
    return "own_" + digest[:16]


class Keys:
    """The keys that are accepted. Built once at start-up from the operator's presets and the store."""

    def __init__(self, digests: Iterable[tuple[str, str]] = ()) -> None:
        self._index: dict[str, list[tuple[str, str]]] = {}
        for digest, owner in digests:
            self._index.setdefault(digest[:_INDEX_LENGTH], []).append((digest, owner))

    def owner(self, key: str) -> str | None:
        """The owner behind `key`, or None when it is not accepted.

        The digest's first bits find the candidates; the rest is compared in constant time.
        """
        digest = digest_of(key)
        found = None
        for candidate, owner in self._index.get(digest[:_INDEX_LENGTH], ()):
            if hmac.compare_digest(candidate, digest):
                found = owner
        return found


_WORD = re.compile(r"[^\s,;:='\"()<>]+")
_BASIC = re.compile(r"\s*basic\s+([A-Za-z0-9+/=]+)\s*", re.IGNORECASE)


def holds_key(keys: Keys, value: bytes) -> bool:
    """Whether an accepted key stands anywhere in a header's value, also in the base64 of Basic."""
    text = value.decode("latin-1")
    texts = [text]
    if match := _BASIC.fullmatch(text):
        with contextlib.suppress(binascii.Error):
            texts.append(binascii.a2b_base64(match[1]).decode("latin-1"))
    words = {word for part in texts for word in (part.strip(), *_WORD.findall(part))}
    return any(keys.owner(word) is not None for word in words if len(word) >= _MIN_LENGTH)


def load_keys(store: Store, presets: tuple[str, ...]) -> tuple[Keys, str | None]:
    """The accepted keys, and a key that was made because there was none.

    The new key is to be shown once and then kept with `keep_key`. Raises ConfigurationError when a preset is
    too short to be safe.
    """
    for preset in presets:
        if len(preset) < _MIN_LENGTH or not preset.isascii() or not preset.isprintable():
            raise ConfigurationError(
                f"RINGFENCE_API_KEY must be at least {_MIN_LENGTH} printable ASCII characters, "
                "best e2b_ and 40 random hexadecimal digits"
            )
    stored = [(key.digest, key.owner) for key in store.keys()]  # noqa: SIM118
    made = None if presets or stored else new_api_key()
    given = presets if made is None else (made,)
    return Keys([*stored, *((digest, owner_of(digest)) for digest in map(digest_of, given))]), made


def keep_key(store: Store, key: str) -> None:
    """Accept `key` from now on, over restarts too. Only its digest is kept."""
    digest = digest_of(key)
    store.add_key(digest, owner_of(digest), "first")
