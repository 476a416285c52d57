"""The control plane's sandbox operations (``/sandboxes…``, ``/v2/sandboxes…``)."""

import hashlib
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ringfence.server.errors import ApiError, not_implemented
from ringfence.server.idempotency import Idempotency
from ringfence.server.listing import parse_query, select
from ringfence.server.models import Connect, NetworkUpdate, NewSandbox, Refresh, Resume, Timeout
from ringfence.server.pausing import Pausing
from ringfence.server.records import Record
from ringfence.server.registry import Registry
from ringfence.server.requests import owner_of, parse_model, path_param, read_body, read_model

_V1_LIFETIME = 15
_V2_LIFETIME = 300


class SandboxRoutes:
    """Handlers of the sandbox operations. `domain` is what clients are told sandboxes are reached under."""

    def __init__(self, registry: Registry, pausing: Pausing, domain: str) -> None:
        self._registry = registry
        self._pausing = pausing
        self._domain = domain
        self._idempotency = Idempotency()

    def routes(self) -> list[Route]:
        """The routes, most specific first."""
        one = "/sandboxes/{sandbox_id}"
        return [
            Route("/sandboxes", self.create_v1, methods=["POST"]),
            Route("/v2/sandboxes", self.create_v2, methods=["POST"]),
            Route("/sandboxes", self.list_v1, methods=["GET"]),
            Route("/v2/sandboxes", self.list_v2, methods=["GET"]),
            Route(one, self.info, methods=["GET"]),
            Route(one, self.kill, methods=["DELETE"]),
            Route(f"{one}/connect", self.connect_v1, methods=["POST"]),
            Route(f"/v2{one}/connect", self.connect_v2, methods=["POST"]),
            Route(f"{one}/resume", self.resume, methods=["POST"]),
            Route(f"{one}/timeout", self.timeout, methods=["POST"]),
            Route(f"{one}/refreshes", self.refresh, methods=["POST"]),
            Route(f"{one}/network", self.update_network, methods=["PUT"]),
        ]

    async def create_v1(self, request: Request) -> Response:
        """``POST /sandboxes``: lives 15 s unless told; open to all who know its id when `secure` is false."""
        new = parse_model(await read_body(request), NewSandbox)
        body = await self._create(owner_of(request), new, _V1_LIFETIME, secure=new.secure is not False)
        return JSONResponse(body, status_code=201)

    async def create_v2(self, request: Request) -> Response:
        """``POST /v2/sandboxes``: lives 300 s unless told; always secured; may carry an Idempotency-Key."""
        raw = await read_body(request)
        new = parse_model(raw, NewSandbox)
        owner = owner_of(request)
        key = request.headers.get("idempotency-key")

        async def create() -> dict[str, Any]:
            return await self._create(owner, new, _V2_LIFETIME, secure=True)

        if key is None:
            return JSONResponse(await create(), status_code=201)
        body = await self._idempotency.run(owner, key, hashlib.sha256(raw).digest(), create)
        return JSONResponse(body, status_code=201)

    async def _create(self, owner: str, new: NewSandbox, lifetime: int, *, secure: bool) -> dict[str, Any]:
        _refuse_unsupported(new)
        record = await self._registry.create(
            owner, new, lifetime=lifetime if new.timeout is None else new.timeout, secure=secure
        )
        return record.as_created(self._domain)

    async def list_v1(self, request: Request) -> Response:
        """``GET /sandboxes``: all that run, without pages."""
        found, _ = select(
            self._registry.owned(owner_of(request)), parse_query(request.query_params, paged=False)
        )
        return JSONResponse([record.as_listed() for record in found])

    async def list_v2(self, request: Request) -> Response:
        """``GET /v2/sandboxes``: a page, and in ``x-next-token`` where the next one starts."""
        found, token = select(
            self._registry.owned(owner_of(request)), parse_query(request.query_params, paged=True)
        )
        headers = {"x-next-token": token} if token else None
        return JSONResponse([record.as_listed() for record in found], headers=headers)

    async def info(self, request: Request) -> Response:
        """``GET /sandboxes/{id}``."""
        return JSONResponse(self._record(request).as_detail(self._domain))

    async def kill(self, request: Request) -> Response:
        """``DELETE /sandboxes/{id}``."""
        await self._registry.kill(self._record(request).sandbox_id)
        return Response(status_code=204)

    async def connect_v1(self, request: Request) -> Response:
        """``POST /sandboxes/{id}/connect``, whose body must name a timeout."""
        body = await read_model(request, Connect)
        if body.timeout is None:
            raise ApiError(400, "timeout: Field required")
        return await self._connect(request, body.timeout, memory=body.memory is not False)

    async def connect_v2(self, request: Request) -> Response:
        """``POST /v2/sandboxes/{id}/connect``, 300 s when not told."""
        body = await read_model(request, Connect)
        lifetime = body.timeout or _V2_LIFETIME
        return await self._connect(request, lifetime, memory=body.memory is not False)

    async def _connect(self, request: Request, lifetime: int, *, memory: bool) -> Response:
        record = self._record(request)
        resumed = await self._pausing.resume(record, lifetime, memory=memory)
        if not resumed:
            self._registry.extend(record, lifetime)
        return JSONResponse(record.as_created(self._domain), status_code=201 if resumed else 200)

    async def resume(self, request: Request) -> Response:
        """``POST /sandboxes/{id}/resume``, of the first SDKs. What runs cannot be resumed."""
        body = await read_model(request, Resume)
        record = self._record(request)
        if not await self._pausing.resume(record, body.timeout or _V1_LIFETIME):
            raise ApiError(409, f"sandbox {record.sandbox_id} is already running")
        return JSONResponse(record.as_created(self._domain), status_code=201)

    async def timeout(self, request: Request) -> Response:
        """``POST /sandboxes/{id}/timeout``: counts from now, may shorten."""
        body = await read_model(request, Timeout)
        await self._registry.set_lifetime(self._running(request), body.timeout)
        return Response(status_code=204)

    async def refresh(self, request: Request) -> Response:
        """``POST /sandboxes/{id}/refreshes``: never shortens."""
        body = await read_model(request, Refresh)
        self._registry.extend(self._running(request), body.duration)
        return Response(status_code=204)

    async def update_network(self, request: Request) -> Response:
        """``PUT /sandboxes/{id}/network``: replaces the egress rules."""
        body = await read_model(request, NetworkUpdate)
        await self._registry.update_network(self._record(request), body)
        return Response(status_code=204)

    def _running(self, request: Request) -> Record:
        """The sandbox, for what makes sense only while it runs: a paused one has no lease."""
        record = self._record(request)
        if record.paused:
            raise ApiError(404, f"sandbox {record.sandbox_id} is paused; connect to it to resume it")
        return record

    def _record(self, request: Request) -> Record:
        return self._registry.lookup(owner_of(request), path_param(request, "sandbox_id"))


def _refuse_unsupported(new: NewSandbox) -> None:
    """Refuse what was asked for and cannot be done; to leave it out silently would be a lie."""
    if new.iam:
        raise not_implemented("iam (workload identity)")
    if new.mcp:
        raise not_implemented("mcp (the MCP gateway)")
