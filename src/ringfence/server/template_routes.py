"""The control plane's look at templates: lists, names and details. Building them is not offered here."""

import uuid
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ringfence.engine.model import Template
from ringfence.server.errors import ApiError
from ringfence.server.records import ENVD_VERSION, timestamp, whole_cpus
from ringfence.server.registry import find_template
from ringfence.server.requests import path_param

if TYPE_CHECKING:
    from ringfence.engine.engine import Engine

_BUILDS = uuid.UUID("6f6c5c8e-6f0b-4f1b-9a51-1d1b5d5ad2f0")
"""Name space of build ids: a template's build has the same id on every server."""


class TemplateRoutes:
    """Handlers of the read-only template operations. `since`: when they were warmed, in epoch seconds."""

    def __init__(self, engine: "Engine", since: float) -> None:
        self._engine = engine
        self._since = since

    def routes(self) -> list[Route]:
        """The routes, most specific first."""
        return [
            Route("/templates", self.list_all, methods=["GET"]),
            Route("/v2/templates", self.list_all, methods=["GET"]),
            Route("/default-templates", self.list_all, methods=["GET"]),
            Route("/templates/aliases/{alias}", self.alias, methods=["GET"]),
            Route("/templates/{template_id}", self.detail, methods=["GET"]),
        ]

    async def list_all(self, _: Request) -> Response:
        """``GET /templates``: every template that can be used."""
        return JSONResponse([self._described(template) for template in self._engine.templates.values()])

    async def alias(self, request: Request) -> Response:
        """``GET /templates/aliases/{alias}``: which template a name stands for."""
        template = self._find(path_param(request, "alias"))
        return JSONResponse({"templateID": template.template_id, "public": True})

    async def detail(self, request: Request) -> Response:
        """``GET /templates/{id}``: one template and its build."""
        template = self._find(path_param(request, "template_id"))
        moment = timestamp(self._since)
        build = {
            "buildID": _build_id(template),
            "status": "ready",
            "createdAt": moment,
            "updatedAt": moment,
            "finishedAt": moment,
            "cpuCount": whole_cpus(template.limits.cpus),
            "memoryMB": template.limits.memory_mb,
        }
        return JSONResponse({**self._described(template), "builds": [build]})

    def _find(self, name: str) -> Template:
        template = find_template(self._engine, name)
        if template is None:
            raise ApiError(404, f"template '{name}' not found")
        return template

    def _described(self, template: Template) -> dict[str, Any]:
        moment = timestamp(self._since)
        return {
            "templateID": template.template_id,
            "buildID": _build_id(template),
            "cpuCount": whole_cpus(template.limits.cpus),
            "memoryMB": template.limits.memory_mb,
            "diskSizeMB": template.limits.disk_mb,
            "public": True,
            "aliases": [template.name],
            "names": [template.name],
            "createdAt": moment,
            "updatedAt": moment,
            "createdBy": None,
            "lastSpawnedAt": None,
            "spawnCount": 0,
            "buildCount": 1,
            "envdVersion": ENVD_VERSION,
            "buildStatus": "ready",
            "isDefault": True,
        }


def _build_id(template: Template) -> str:
    return str(uuid.uuid5(_BUILDS, template.template_id))
