"""The control plane's template operations but for building: lists, names, tags, details, removal."""

import uuid
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ringfence.engine.model import Limits, Template
from ringfence.server.errors import ApiError
from ringfence.server.records import ENVD_VERSION, timestamp, whole_cpus
from ringfence.server.requests import owner_of, path_param, read_model
from ringfence.server.templates.build_routes import BuildRoutes
from ringfence.server.templates.models import NewTags, OldTags, TemplateChange
from ringfence.server.templates.names import DEFAULT_TAG, checked_tag, split
from ringfence.server.templates.service import TemplateService
from ringfence.server.templates.store import BuildRow, TemplateRow
from ringfence.server.templates.tag_routes import TagRoutes

_BUILDS = uuid.UUID("6f6c5c8e-6f0b-4f1b-9a51-1d1b5d5ad2f0")
"""Name space of build ids: a built-in template's build has the same id on every server."""


class TemplateRoutes:
    """Handlers of the template operations. `since`: when the server started, in epoch seconds."""

    def __init__(self, templates: TemplateService, since: float) -> None:
        self._templates = templates
        self._catalog = templates.catalog
        self._store = templates.store
        self._since = since

    def routes(self) -> list[Route]:
        """The routes, most specific first; `delete` has none here, because snapshots are deleted so too."""
        service = self._templates
        building = BuildRoutes(
            service.store, service.catalog, service.builds, service.uploads, service.ceiling
        )
        return [
            Route("/templates", self.list_all, methods=["GET"]),
            Route("/v2/templates", self.list_all, methods=["GET"]),
            Route("/default-templates", self.list_builtin, methods=["GET"]),
            Route("/templates/aliases/{alias}", self.alias, methods=["GET"]),
            Route("/templates/tags", self.assign_tags, methods=["POST"]),
            Route("/templates/tags", self.remove_tags, methods=["DELETE"]),
            Route("/templates/{template_id}/tags", self.tags, methods=["GET"]),
            *TagRoutes(self._catalog, self._store).routes(),
            *building.routes(),
            Route("/templates/{template_id}", self.change, methods=["PATCH"]),
            Route("/v2/templates/{template_id}", self.change, methods=["PATCH"]),
            Route("/templates/{template_id}", self.detail, methods=["GET"]),
        ]

    async def list_all(self, request: Request) -> Response:
        """``GET /templates``: every template that the caller can use, and own ones that failed."""
        own = [self._own(row) for row in self._store.templates(owner_of(request))]
        return JSONResponse([*self._builtins(), *own])

    async def list_builtin(self, _: Request) -> Response:
        """``GET /default-templates``: those that are always there."""
        return JSONResponse(self._builtins())

    async def alias(self, request: Request) -> Response:
        """``GET /templates/aliases/{alias}``: which template a name stands for."""
        name = path_param(request, "alias")
        row = self._catalog.row(owner_of(request), name.partition(":")[0])
        if row is not None:
            return JSONResponse({"templateID": row.template_id, "public": row.public})
        shared = self._catalog.shared(name.partition(":")[0])
        if shared is not None:
            return JSONResponse({"templateID": shared.template_id, "public": True})
        template = self._builtin(name)
        return JSONResponse({"templateID": template.template_id, "public": True})

    async def detail(self, request: Request) -> Response:
        """``GET /templates/{id}``: one template and its builds."""
        name = path_param(request, "template_id")
        row = self._catalog.row(owner_of(request), name)
        if row is None:
            template = self._builtin(name)
            return JSONResponse({**self._described(template), "builds": [self._builtin_build(template)]})
        builds = [_build(build) for build in reversed(self._store.builds(row.template_id))]
        return JSONResponse({**self._own(row), "builds": builds})

    async def delete(self, request: Request) -> Response:
        """``DELETE /templates/{id}``: with all builds and tags. Sandboxes that run are left alone."""
        name = path_param(request, "template_id")
        row = self._catalog.row(owner_of(request), name)
        if row is None:
            self._builtin(name)
            raise ApiError(403, f"template '{name[:128]}' is built in and cannot be deleted")
        self._templates.builds.remove(row)
        return Response(status_code=204)

    async def change(self, request: Request) -> Response:
        """``PATCH /templates/{id}``: whether other keys can use it, by its id."""
        name = path_param(request, "template_id")
        body = await read_model(request, TemplateChange)
        row = self._catalog.row(owner_of(request), name)
        if row is None:
            self._builtin(name)
            raise ApiError(403, f"template '{name[:128]}' is built in and cannot be changed")
        if body.public is not None:
            self._store.set_public(row.template_id, body.public)
            self._store.touch(row.template_id)
        return JSONResponse({"names": [row.name]})

    async def tags(self, request: Request) -> Response:
        """``GET /templates/{id}/tags``."""
        row = self._row(request, path_param(request, "template_id").partition(":")[0])
        tags = self._store.tags(row.template_id)
        return JSONResponse(
            [
                {"tag": tag.tag, "buildID": tag.build_id, "createdAt": timestamp(tag.created_at)}
                for tag in tags
            ]
        )

    async def assign_tags(self, request: Request) -> Response:
        """``POST /templates/tags``: more names for the build that ``name:tag`` names."""
        body = await read_model(request, NewTags)
        name, tag = split(body.target)
        row = self._row(request, name)
        template = self._catalog.tagged(row, tag or DEFAULT_TAG)
        if template is None:
            raise ApiError(404, f"template '{name}' has no build with the tag '{tag or DEFAULT_TAG}'")
        tags = [checked_tag(new) for new in body.tags]
        for new in tags:
            self._store.set_tag(row.template_id, new, template.build_id)
        self._templates.builds.forget_untagged(row.template_id)
        return JSONResponse({"tags": tags, "buildID": template.build_id}, status_code=201)

    async def remove_tags(self, request: Request) -> Response:
        """``DELETE /templates/tags``: forget names; a build that has none left goes with the last."""
        body = await read_model(request, OldTags)
        name, _ = split(body.name)
        row = self._row(request, name)
        known = {tag.tag for tag in self._store.tags(row.template_id)}
        wanted = [checked_tag(tag) for tag in body.tags]
        for tag in wanted:
            if tag not in known:
                raise ApiError(404, f"template '{name}' has no tag '{tag}'")
        for tag in wanted:
            self._store.remove_tag(row.template_id, tag)
        self._templates.builds.forget_untagged(row.template_id)
        return Response(status_code=204)

    def _row(self, request: Request, name: str) -> TemplateRow:
        row = self._catalog.row(owner_of(request), name)
        if row is None:
            raise ApiError(404, f"template '{name[:128]}' not found")
        return row

    def _builtin(self, name: str) -> Template:
        base, _, tag = name.partition(":")
        template = self._catalog.builtin(base)
        if template is None or tag not in ("", DEFAULT_TAG, "latest"):
            raise ApiError(404, f"template '{name[:128]}' not found")
        return template

    def _builtins(self) -> list[dict[str, Any]]:
        return [self._described(template) for template in self._templates.engine.templates.values()]

    def _own(self, row: TemplateRow) -> dict[str, Any]:
        builds = self._store.builds(row.template_id)
        latest = builds[-1] if builds else None
        limits = Limits(**latest.request["limits"]) if latest else Limits()
        return {
            "templateID": row.template_id,
            "buildID": latest.build_id if latest else str(uuid.UUID(int=0)),
            "public": row.public,
            "aliases": [row.name],
            "names": [row.name],
            "createdAt": timestamp(row.created_at),
            "updatedAt": timestamp(row.updated_at),
            "buildCount": len(builds),
            "buildStatus": latest.status if latest else "waiting",
            "isDefault": False,
            **_common(limits),
        }

    def _described(self, template: Template) -> dict[str, Any]:
        moment = timestamp(self._since)
        return {
            "templateID": template.template_id,
            "buildID": _build_id(template),
            "public": True,
            "aliases": [template.name],
            "names": [template.name],
            "createdAt": moment,
            "updatedAt": moment,
            "buildCount": 1,
            "buildStatus": "ready",
            "isDefault": True,
            **_common(template.limits),
        }

    def _builtin_build(self, template: Template) -> dict[str, Any]:
        moment = timestamp(self._since)
        return {
            "buildID": _build_id(template),
            "status": "ready",
            "createdAt": moment,
            "updatedAt": moment,
            "finishedAt": moment,
            "cpuCount": whole_cpus(template.limits.cpus),
            "memoryMB": template.limits.memory_mb,
        }


def _common(limits: Limits) -> dict[str, Any]:
    return {
        "cpuCount": whole_cpus(limits.cpus),
        "memoryMB": limits.memory_mb,
        "diskSizeMB": limits.disk_mb,
        "createdBy": None,
        "lastSpawnedAt": None,
        "spawnCount": 0,
        "envdVersion": ENVD_VERSION,
    }


def _build(build: BuildRow) -> dict[str, Any]:
    """One of a template's builds, as ``GET /templates/{id}`` lists them."""
    limits = Limits(**build.request["limits"])
    body = {
        "buildID": build.build_id,
        "status": build.status,
        "createdAt": timestamp(build.created_at),
        "updatedAt": timestamp(build.finished_at or build.created_at),
        "cpuCount": whole_cpus(limits.cpus),
        "memoryMB": limits.memory_mb,
    }
    if build.finished_at is not None:
        body["finishedAt"] = timestamp(build.finished_at)
    return body


def _build_id(template: Template) -> str:
    return str(uuid.uuid5(_BUILDS, template.template_id))
