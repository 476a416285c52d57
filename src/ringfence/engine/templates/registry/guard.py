"""Which machines images may be pulled from.

Users name registries, and the server, which is not in a sandbox, connects to them: so it connects to public
addresses only, whatever a name resolves to and wherever a registry redirects, unless the operator has named
the host.
"""

import ipaddress
import socket
from collections.abc import Collection

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from ringfence.core.errors import TemplateError
from ringfence.engine.egress.addresses import why_refused


class Guard:
    """Judges hosts. `allowed`: hosts (``name`` or ``name:port``) that may have any address."""

    def __init__(self, allowed: Collection[str]) -> None:
        self._allowed = frozenset(host.lower() for host in allowed)

    def names(self, host: str, port: int | None) -> bool:
        """Whether the operator has named this host."""
        return host.lower() in self._allowed or f"{host}:{port}".lower() in self._allowed

    def check(self, url: URL) -> None:
        """Refuse a URL whose host is an address that is not public. Raises TemplateError."""
        host = url.host or ""
        if url.scheme not in ("http", "https") or not host:
            raise TemplateError("a registry redirects to something that is not a web address")
        if self.names(host, url.port):
            return
        try:
            reason = why_refused(ipaddress.ip_address(host))
        except ValueError:
            if url.scheme == "https":
                return  # a name: its addresses are judged when it is resolved
            reason = "not served over HTTPS"
        if reason is not None:
            raise TemplateError(
                f"images are not pulled from {host}: it is {reason}; "
                "the operator may name it in RINGFENCE_IMAGE_REGISTRIES"
            )

    def connector(self) -> aiohttp.TCPConnector:
        """For a session that connects to nothing else."""
        return aiohttp.TCPConnector(resolver=_Resolver(self))


class _Resolver(AbstractResolver):
    """The system's resolver, without the answers that are refused."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._resolver = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        if self._guard.names(host, port):
            return found
        public = [entry for entry in found if why_refused(ipaddress.ip_address(entry["host"])) is None]
        if not public:
            raise OSError(f"{host} has no public address")
        return public

    async def close(self) -> None:
        await self._resolver.close()
