"""The control plane's secret operations (``/secrets…``). No answer has a value in it."""

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ringfence.server.errors import ApiError
from ringfence.server.models import NewSecret, SecretUpdate
from ringfence.server.records import timestamp
from ringfence.server.requests import owner_of, path_param, read_model
from ringfence.server.secrets.service import Secrets
from ringfence.server.secrets.store import Secret

_MAX_PAGE = 100


class SecretRoutes:
    """Handlers of the secret operations."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets

    def routes(self) -> list[Route]:
        """The routes."""
        one = "/secrets/{secret_id}"
        return [
            Route("/secrets", self.list_all, methods=["GET"]),
            Route("/secrets", self.create, methods=["POST"]),
            Route(one, self.info, methods=["GET"]),
            Route(one, self.update, methods=["POST"]),
            Route(one, self.destroy, methods=["DELETE"]),
        ]

    async def list_all(self, request: Request) -> Response:
        """``GET /secrets``: a page, by name, and in ``x-next-token`` where the next one starts."""
        limit = request.query_params.get("limit") or str(_MAX_PAGE)
        if not (limit.isascii() and limit.isdigit() and len(limit) <= 6 and 1 <= int(limit) <= _MAX_PAGE):
            raise ApiError(400, f"limit must be from 1 to {_MAX_PAGE}")
        after = request.query_params.get("nextToken") or ""
        found = await self._secrets.all(owner_of(request))
        if after:
            at = next((one.name for one in found if one.secret_id == after), None)
            if at is None:
                raise ApiError(400, "nextToken is not one that this server gave")
            found = [one for one in found if one.name > at]
        page = found[: int(limit)]
        headers = {"x-next-token": page[-1].secret_id} if len(found) > len(page) else None
        return JSONResponse([_described(one) for one in page], headers=headers)

    async def create(self, request: Request) -> Response:
        """``POST /secrets``."""
        body = await read_model(request, NewSecret)
        secret = await self._secrets.create(owner_of(request), body.name, body.value, body.metadata)
        return JSONResponse(_described(secret), status_code=201)

    async def info(self, request: Request) -> Response:
        """``GET /secrets/{id or name}``."""
        return JSONResponse(_described(await self._secrets.find(owner_of(request), _named(request))))

    async def update(self, request: Request) -> Response:
        """``POST /secrets/{id or name}``."""
        body = await read_model(request, SecretUpdate)
        secret = await self._secrets.update(owner_of(request), _named(request), body.value, body.metadata)
        return JSONResponse(_described(secret))

    async def destroy(self, request: Request) -> Response:
        """``DELETE /secrets/{id or name}``."""
        await self._secrets.destroy(owner_of(request), _named(request))
        return Response(status_code=204)


def _named(request: Request) -> str:
    return path_param(request, "secret_id")


def _described(secret: Secret) -> dict[str, Any]:
    """How it is shown on the wire (``Secret``)."""
    return {
        "secretID": secret.secret_id,
        "name": secret.name,
        "currentVersion": secret.version,
        "metadata": json.loads(secret.metadata),
        "createdAt": timestamp(secret.created_at),
        "updatedAt": timestamp(secret.updated_at),
    }
