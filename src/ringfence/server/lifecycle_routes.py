"""The control plane's pause, snapshot and fork operations."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ringfence.server.errors import ApiError
from ringfence.server.models import Fork, NewSandbox, NewSnapshot, Pause
from ringfence.server.pausing import Pausing
from ringfence.server.records import Record
from ringfence.server.registry import Registry
from ringfence.server.requests import owner_of, path_param, read_model
from ringfence.server.snapshot_store import Snapshot
from ringfence.server.snapshots import page

Handler = Callable[[Request], Awaitable[Response]]


class LifecycleRoutes:
    """Handlers of ``/sandboxes/{id}/pause``, ``…/snapshots``, ``…/fork``, ``/snapshots``, and their deletion.

    delete_template: what ``DELETE /templates/{id}`` is for an id that is no snapshot's.
    """

    def __init__(self, registry: Registry, pausing: Pausing, domain: str, delete_template: Handler) -> None:
        self._registry = registry
        self._pausing = pausing
        self._snapshots = registry.snapshots
        self._domain = domain
        self._delete_template = delete_template

    def routes(self) -> list[Route]:
        """The routes; ``DELETE /templates/tags`` must come before them."""
        one = "/sandboxes/{sandbox_id}"
        return [
            Route(f"{one}/pause", self.pause, methods=["POST"]),
            Route(f"{one}/snapshots", self.snapshot, methods=["POST"]),
            Route(f"{one}/fork", self.fork, methods=["POST"]),
            Route("/snapshots", self.list_snapshots, methods=["GET"]),
            Route("/templates/{template_id}", self.delete, methods=["DELETE"]),
        ]

    async def pause(self, request: Request) -> Response:
        """``POST /sandboxes/{id}/pause``: 409 when it is paused already."""
        body = await read_model(request, Pause)
        await self._pausing.pause(
            self._record(request), memory=body.memory is not False, healthy=bool(body.require_healthy_guest)
        )
        return Response(status_code=204)

    async def snapshot(self, request: Request) -> Response:
        """``POST /sandboxes/{id}/snapshots``: its files and Python kernels as they are; it goes on then."""
        body = await read_model(request, NewSnapshot)
        record = self._record(request)
        if body.name and self._registry.resolve_template(record.owner, body.name):
            raise ApiError(409, f"'{body.name}' is the name of a template")
        async with record.lock:
            made = await self._snapshots.create(record, body.name, memory=body.memory is not False)
        self._registry.log(record, f"snapshot {made.wire_id} made")
        return JSONResponse(made.described(), status_code=201)

    async def list_snapshots(self, request: Request) -> Response:
        """``GET /snapshots``: newest first, and in ``x-next-token`` where the next page starts."""
        found, token = page(self._snapshots.owned(owner_of(request)), request.query_params)
        headers = {"x-next-token": token} if token else None
        return JSONResponse([one.described() for one in found], headers=headers)

    async def delete(self, request: Request) -> Response:
        """``DELETE /templates/{id}``, for snapshots."""
        found = self._snapshots.find(owner_of(request), path_param(request, "template_id"))
        if found is None:
            return await self._delete_template(request)
        await self._snapshots.delete(found)
        return Response(status_code=204)

    async def fork(self, request: Request) -> Response:
        """``POST /sandboxes/{id}/fork``: sandboxes with its files and Python kernels; each may fail."""
        body = await read_model(request, Fork)
        record = self._record(request)
        async with record.lock:
            if record.paused:
                raise ApiError(409, f"sandbox {record.sandbox_id} is paused")
            origin = await self._snapshots.create(record, hidden=True)
        with self._snapshots.kept(origin):
            results = await asyncio.gather(*(self._fork(record, body, origin) for _ in range(body.count)))
        return JSONResponse(results, status_code=201)

    async def _fork(self, record: Record, body: Fork, origin: Snapshot) -> dict[str, Any]:
        wanted = record.request or NewSandbox(template_id=record.sandbox.template.key)
        try:
            made = await self._registry.create(
                record.owner, wanted, lifetime=body.timeout, secure=record.access_token is not None,
                fork=origin, volumes=record.volumes,
            )  # fmt: skip
        except ApiError as error:
            return {"error": {"code": error.status, "message": error.message}}
        made.shown_template = record.shown_template
        return {"sandbox": made.as_created(self._domain)}

    def _record(self, request: Request) -> Record:
        return self._registry.lookup(owner_of(request), path_param(request, "sandbox_id"))
