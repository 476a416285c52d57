"""Names to addresses, by the host's own resolver, with a short memory and bounds."""

import asyncio
import ipaddress
import socket
import time
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from ringfence.engine.egress.hosts import IPAddress, plain_address

_KEPT_SECONDS = 20.0
_MISSING_KEPT_SECONDS = 5.0
_MOST_KEPT = 4096
_THREADS = 32
_PATIENCE = 12.0


class NameNotFoundError(Exception):
    """A name has no address."""


class Resolver:
    """Looks names up. `fixed`: the operator's own table, which comes first."""

    def __init__(self, fixed: Mapping[str, tuple[str, ...]]) -> None:
        self._fixed = fixed
        self._threads = ThreadPoolExecutor(_THREADS, "resolver")
        self._known: OrderedDict[str, tuple[float, tuple[IPAddress, ...]]] = OrderedDict()
        self._running: dict[str, asyncio.Future[tuple[IPAddress, ...]]] = {}

    async def addresses(self, name: str) -> tuple[IPAddress, ...]:
        """The addresses of a name, version 4 first. Raises NameNotFoundError."""
        if name in self._fixed:
            return tuple(plain_address(text) for text in self._fixed[name])
        until, found = self._known.get(name, (0.0, ()))
        if until < time.monotonic():
            found = await self._look_up_once(name)
        if not found:
            raise NameNotFoundError(name)
        return found

    async def _look_up_once(self, name: str) -> tuple[IPAddress, ...]:
        running = self._running.get(name)
        if running is None:
            running = asyncio.ensure_future(self._look_up(name))
            self._running[name] = running
            running.add_done_callback(lambda _: self._running.pop(name, None))
        return await asyncio.shield(running)

    async def _look_up(self, name: str) -> tuple[IPAddress, ...]:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_PATIENCE):
                entries = await loop.run_in_executor(self._threads, _ask, name)
        except (OSError, TimeoutError, UnicodeError):
            entries = []
        found = tuple(sorted(set(entries), key=lambda address: (address.version, entries.index(address))))
        kept = _KEPT_SECONDS if found else _MISSING_KEPT_SECONDS
        self._known[name] = (time.monotonic() + kept, found)
        if len(self._known) > _MOST_KEPT:
            self._known.popitem(last=False)
        return found


def _ask(name: str) -> list[IPAddress]:
    entries = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in entries]
