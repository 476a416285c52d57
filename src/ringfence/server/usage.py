"""What the sandboxes of each owner have used of the network, and where it can be read.

``GET /sandboxes/{id}/network`` is one sandbox, ``GET /usage/network`` all of an owner since the server
started, and ``GET /metrics`` the same as text for Prometheus.
"""

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ringfence.server.records import timestamp
from ringfence.server.requests import owner_of, path_param

if TYPE_CHECKING:
    from ringfence.engine.engine import Engine
    from ringfence.server.registry import Registry

_SUMS = ("connections", "bytes_sent", "bytes_received", "refused")
_METRICS = {
    "connections": ("connections_total", "counter", "Connections that sandboxes made."),
    "open_connections": ("open_connections", "gauge", "Connections that sandboxes have now."),
    "bytes_sent": ("sent_bytes_total", "counter", "Bytes that sandboxes sent."),
    "bytes_received": ("received_bytes_total", "counter", "Bytes that sandboxes received."),
    "refused": ("refused_total", "counter", "What the network policy refused."),
}


class NetworkUsage:
    """Accounts of sandboxes that have ended are summed up by owner; those that live are asked for."""

    def __init__(self, engine: "Engine", registry: "Registry") -> None:
        self._engine = engine
        self._registry = registry
        self._since = time.time()
        self._owners: dict[str, str] = {}
        self._ended: dict[str, Counter[str]] = {}
        registry.on_start(self._started)
        engine.add_account_listener(self._on_end)

    def routes(self) -> list[Route]:
        """The routes; they come before ``/sandboxes/{id}``."""
        return [
            Route("/sandboxes/{sandbox_id}/network", self.sandbox, methods=["GET"]),
            Route("/usage/network", self.owner, methods=["GET"]),
            Route("/metrics", self.prometheus, methods=["GET"]),
        ]

    async def sandbox(self, request: Request) -> Response:
        """``GET /sandboxes/{id}/network``: connections, bytes and refusals of one sandbox."""
        record = self._registry.lookup(owner_of(request), path_param(request, "sandbox_id"))
        return JSONResponse(_shown(await self._engine.network_account(record.sandbox_id)))

    async def owner(self, request: Request) -> Response:
        """``GET /usage/network``: the same of all sandboxes of the key's owner, ended ones too."""
        total = await self._total(owner_of(request))
        return JSONResponse({"since": timestamp(self._since), **_shown(total)})

    async def prometheus(self, request: Request) -> Response:
        """``GET /metrics``: the same in Prometheus' text format, and how many sandboxes there are."""
        owner = owner_of(request)
        total = await self._total(owner)
        lines = []
        for key, (name, kind, text) in _METRICS.items():
            full = f"ringfence_network_{name}"
            lines += [f"# HELP {full} {text}", f"# TYPE {full} {kind}", f"{full} {total.get(key, 0)}"]
        records = self._registry.owned(owner)
        paused = sum(record.paused for record in records)
        lines += ["# HELP ringfence_sandboxes Sandboxes by state.", "# TYPE ringfence_sandboxes gauge"]
        lines.append(f'ringfence_sandboxes{{state="running"}} {len(records) - paused}')
        lines.append(f'ringfence_sandboxes{{state="paused"}} {paused}')
        return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")

    async def _total(self, owner: str) -> Counter[str]:
        """The sum of all. One that ends meanwhile is counted once: so that no counter ever goes back."""
        theirs = [sandbox_id for sandbox_id, whose in self._owners.items() if whose == owner]
        live = {sandbox_id: await self._engine.network_account(sandbox_id) for sandbox_id in theirs}
        total = Counter(self._ended.get(owner, Counter()))
        for sandbox_id, account in live.items():
            if sandbox_id in self._owners:
                total.update(account)
        return total

    def _started(self, sandbox_id: str, owner: str) -> None:
        self._owners[sandbox_id] = owner

    def _on_end(self, sandbox_id: str, account: dict[str, int]) -> None:
        owner = self._owners.pop(sandbox_id, None)
        if owner is not None:
            self._ended.setdefault(owner, Counter()).update({key: account.get(key, 0) for key in _SUMS})


def _shown(account: Any) -> dict[str, int]:
    return {
        "connections": account.get("connections", 0),
        "openConnections": account.get("open_connections", 0),
        "bytesSent": account.get("bytes_sent", 0),
        "bytesReceived": account.get("bytes_received", 0),
        "refused": account.get("refused", 0),
    }
