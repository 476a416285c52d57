"""The control plane's volume operations (``/volumes…``)."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ringfence.server.models import NewVolume
from ringfence.server.requests import owner_of, path_param, read_model
from ringfence.server.volumes.store import Volume
from ringfence.server.volumes.volumes import Volumes


class VolumeRoutes:
    """Handlers of the volume operations.

    domain: under which ``api.<domain>`` serves volumes' contents; None: the client knows better.
    """

    def __init__(self, volumes: Volumes, domain: str | None) -> None:
        self._volumes = volumes
        self._domain = domain

    def routes(self) -> list[Route]:
        """The routes."""
        return [
            Route("/volumes", self.create, methods=["POST"]),
            Route("/volumes", self.list, methods=["GET"]),
            Route("/volumes/{volume_id}", self.info, methods=["GET"]),
            Route("/volumes/{volume_id}", self.delete, methods=["DELETE"]),
        ]

    async def create(self, request: Request) -> Response:
        """``POST /volumes``: 400 when the name is in use."""
        body = await read_model(request, NewVolume)
        made = await self._volumes.create(owner_of(request), body.name)
        return JSONResponse(self._described(made), status_code=201)

    async def list(self, request: Request) -> Response:
        """``GET /volumes``."""
        found = self._volumes.owned(owner_of(request))
        return JSONResponse([{"volumeID": one.volume_id, "name": one.name} for one in found])

    async def info(self, request: Request) -> Response:
        """``GET /volumes/{id}``, with the token of its contents."""
        return JSONResponse(self._described(self._volume(request)))

    async def delete(self, request: Request) -> Response:
        """``DELETE /volumes/{id}``."""
        await self._volumes.delete(self._volume(request))
        return Response(status_code=204)

    def _volume(self, request: Request) -> Volume:
        return self._volumes.lookup(owner_of(request), path_param(request, "volume_id"))

    def _described(self, volume: Volume) -> dict[str, Any]:
        domain = {"domain": self._domain} if self._domain else {}
        token = self._volumes.token(volume.volume_id)
        return {"volumeID": volume.volume_id, "name": volume.name, "token": token, **domain}
