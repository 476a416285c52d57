"""The operations by which the SDK's ``Template`` is built."""

from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ringfence.core.ids import new_sandbox_id
from ringfence.engine.model import Limits
from ringfence.engine.templates.builder.spec import BuildSpec, Credentials, Step
from ringfence.server.errors import ApiError, not_implemented
from ringfence.server.requests import owner_of, path_param, read_model
from ringfence.server.templates.builds import LEVELS, Builds
from ringfence.server.templates.catalog import OWN_IMAGES, Catalog
from ringfence.server.templates.models import NewBuild, NewTemplate
from ringfence.server.templates.names import split, tags_of
from ringfence.server.templates.store import BuildRow, TemplateRow, TemplateStore
from ringfence.server.templates.uploads import Uploads

_PAGE = 100


class BuildRoutes:
    """Handlers of building. `ceiling`: the most a template's sandboxes may have; builds get that."""

    def __init__(
        self, store: TemplateStore, catalog: Catalog, builds: Builds, uploads: Uploads, ceiling: Limits
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._builds = builds
        self._uploads = uploads
        self._ceiling = ceiling

    def routes(self) -> list[Route]:
        """The routes."""
        build = "/templates/{template_id}/builds/{build_id}"
        return [
            Route("/v3/templates", self.register, methods=["POST"]),
            Route("/templates/{template_id}/files/{hash}", self.files, methods=["GET"]),
            Route(f"/v2{build}", self.start, methods=["POST"]),
            Route(f"{build}/status", self.status, methods=["GET"]),
            Route(f"{build}/logs", self.logs, methods=["GET"]),
        ]

    async def register(self, request: Request) -> Response:
        """``POST /v3/templates``: a new template, or a new build of one that is there."""
        body = await read_model(request, NewTemplate)
        owner = owner_of(request)
        name, tag = split(body.name or body.alias)
        tags = tags_of(tag, body.tags)
        if self._catalog.builtin(name) is not None:
            raise ApiError(403, f"the name '{name}' is taken by a built-in template")
        limits = self._limits(body)
        row = self._store.template(owner, name)
        if row is None or row.name != name:
            row = self._store.add_template(new_sandbox_id(), owner, name)
        build_id = self._builds.register(row, {"tags": tags, "limits": vars(limits)})
        answer = {
            "templateID": row.template_id,
            "buildID": build_id,
            "public": False,
            "names": [name],
            "aliases": [name],
            "tags": tags,
        }
        return JSONResponse(answer, status_code=202)

    async def files(self, request: Request) -> Response:
        """``GET /templates/{id}/files/{hash}``: whether the files are there, and where to put them."""
        row = self._row(request)
        files_hash = path_param(request, "hash")
        present = self._uploads.find(row.owner, files_hash) is not None
        origin = f"{request.scope['scheme']}://{request.headers.get('host', '')}"
        url = origin + self._uploads.grant(row.owner, files_hash)
        return JSONResponse({"present": present, "url": url}, status_code=201)

    async def start(self, request: Request) -> Response:
        """``POST /v2/templates/{id}/builds/{buildID}``: start a registered build."""
        row, build = self._build(request)
        body = await read_model(request, NewBuild)
        limits = Limits(**build.request["limits"])
        self._builds.start(row, build, self._spec(row, body, limits), limits)
        return JSONResponse({}, status_code=202)

    async def status(self, request: Request) -> Response:
        """``GET …/status``: the state of a build and the next lines of its log."""
        row, build = self._build(request)
        offset, limit = _number(request, "logsOffset", 0), _number(request, "limit", _PAGE)
        log = self._builds.log(build.build_id)
        body: dict[str, Any] = {
            "templateID": row.template_id,
            "buildID": build.build_id,
            "status": build.status,
            "logs": [],
            "logEntries": log.page(offset, min(limit, _PAGE), _level(request)),
        }
        if build.reason is not None:
            errors = [entry for entry in log.lines[-20:] if entry["level"] == "error"]
            body["reason"] = {**build.reason, "logEntries": errors}
        return JSONResponse(body)

    async def logs(self, request: Request) -> Response:
        """``GET …/logs``: the log alone."""
        _, build = self._build(request)
        offset, limit = _number(request, "logsOffset", 0), _number(request, "limit", _PAGE)
        entries = self._builds.log(build.build_id).page(offset, min(limit, _PAGE), _level(request))
        return JSONResponse({"logs": entries, "logEntries": entries})

    def _row(self, request: Request) -> TemplateRow:
        name = path_param(request, "template_id")
        row = self._catalog.row(owner_of(request), name)
        if row is None:
            raise ApiError(404, f"template '{name[:128]}' not found")
        return row

    def _build(self, request: Request) -> tuple[TemplateRow, BuildRow]:
        row = self._row(request)
        build_id = path_param(request, "build_id")
        build = self._store.build(build_id)
        if build is None or build.template_id != row.template_id:
            raise ApiError(404, f"build '{build_id[:64]}' not found")
        return row, build

    def _limits(self, body: NewTemplate) -> Limits:
        asked = Limits(
            memory_mb=body.memory_mb or Limits.memory_mb,
            cpus=body.cpu_count or Limits.cpus,
            disk_mb=max(Limits.disk_mb, body.min_free_disk_mb or 0),
        )
        for name in ("memory_mb", "cpus", "disk_mb"):
            if getattr(asked, name) > (most := getattr(self._ceiling, name)):
                raise ApiError(400, f"{name} {getattr(asked, name)} is over this server's limit of {most}")
        return asked

    def _spec(self, row: TemplateRow, body: NewBuild, limits: Limits) -> BuildSpec:
        image, template = body.from_image, body.from_template
        if (image is None) == (template is None):
            raise ApiError(400, "one of fromImage and fromTemplate is needed")
        if image is not None and body.from_image_registry is None:
            known = OWN_IMAGES.get(image.removeprefix("docker.io/").removesuffix(":latest"))
            if known is not None and self._catalog.builtin(known):
                image, template = None, known
        return BuildSpec(
            scope=row.owner,
            steps=tuple(Step(s.type, tuple(s.args), s.files_hash, s.force) for s in body.steps),
            files=lambda files_hash: self._uploads.find(row.owner, files_hash),
            from_template=self._parent(row.owner, template),
            from_image=image,
            credentials=_credentials(body),
            start_cmd=body.start_cmd or "",
            ready_cmd=body.ready_cmd or "",
            force=body.force,
            limits=self._build_limits(limits),
        )

    def _parent(self, owner: str, name: str | None) -> str | None:
        if name is None:
            return None
        found = self._catalog.resolve(owner, name)
        if found is None:
            raise ApiError(404, f"template '{name[:128]}' not found")
        return found.key

    def _build_limits(self, limits: Limits) -> Limits:
        """Builds may use more than the sandboxes they make: packages are unpacked, compilers run."""
        most = self._ceiling
        return replace(
            limits,
            memory_mb=min(most.memory_mb, max(limits.memory_mb, 4096)),
            disk_mb=min(most.disk_mb, max(limits.disk_mb, 4096)),
            pids=min(most.pids, 1024),
            inodes=min(most.inodes, 500_000),
        )


def _credentials(body: NewBuild) -> Credentials | None:
    registry = body.from_image_registry
    if registry is None:
        return None
    if registry.type != "registry":
        raise not_implemented(
            f"fromImageRegistry of type {registry.type[:20]!r} (only user name and password)"
        )
    return Credentials(registry.username, registry.password)


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ApiError(400, f"{name} must be a whole number")
    return int(text)


def _level(request: Request) -> str | None:
    level = request.query_params.get("level")
    if level is not None and level not in LEVELS:
        raise ApiError(400, f"level must be one of {', '.join(LEVELS)}")
    return level
