"""The authority whose certificates the egress shows to sandboxes whose requests it changes.

Its private key stays in the engine's process and in a file of mode 0600: the egress, which reads what hostile
code sends, gets certificates for the hosts that sandboxes name, and nothing to make others with.
"""

import asyncio
import tempfile
import time
from pathlib import Path

from ringfence.engine.certificates import LEAF_DAYS, issue, make_authority

_REISSUE_SECONDS = LEAF_DAYS * 86_400 / 3
_MOST_KEPT = 1024


class NetworkAuthority:
    """Made when it is first needed. `directory`: where it is kept; None: it is as short-lived as we are."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._pair: tuple[bytes, bytes] | None = None
        self._issued: dict[str, tuple[float, str, str]] = {}
        self._making = asyncio.Lock()

    @property
    def certificate(self) -> str:
        """Its own certificate in PEM; empty until something was issued."""
        return self._pair[0].decode() if self._pair else ""

    async def issue(self, host: str) -> tuple[str, str]:
        """A certificate for a host, and its private key."""
        async with self._making:
            at, *kept = self._issued.get(host, (0.0, "", ""))
            if not at or time.time() - at > _REISSUE_SECONDS:
                kept = await asyncio.to_thread(self._issue, host)
                if len(self._issued) >= _MOST_KEPT:
                    self._issued.clear()
                self._issued[host] = (time.time(), kept[0], kept[1])
            return kept[0], kept[1]

    def _issue(self, host: str) -> list[str]:
        if self._pair is None:
            self._pair = self._load()
        return [part.decode() for part in issue(*self._pair, [host])]

    def _load(self) -> tuple[bytes, bytes]:
        if self._directory is None:
            with tempfile.TemporaryDirectory(prefix="ringfence-") as directory:
                return _load_from(Path(directory))
        return _load_from(self._directory)


def _load_from(directory: Path) -> tuple[bytes, bytes]:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    certificate, key = directory / "ca.pem", directory / "ca.key"
    if not (certificate.exists() and key.exists()):
        make_authority(certificate, key, "Ringfence: requests changed on their way out")
    return certificate.read_bytes(), key.read_bytes()
