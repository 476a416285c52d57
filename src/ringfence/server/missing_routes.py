"""E2B operations that this server does not have: each says so at once, in the shape the SDKs parse."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ringfence.server.errors import not_implemented
from ringfence.server.registry import Registry
from ringfence.server.requests import owner_of, path_param

Handler = Callable[[Request], Awaitable[Response]]

_OF_A_SANDBOX = (
    ("POST", "/sandboxes/{sandbox_id}/pause", "pause (pausing sandboxes)"),
    ("POST", "/sandboxes/{sandbox_id}/snapshots", "snapshots of sandboxes"),
    ("POST", "/sandboxes/{sandbox_id}/fork", "fork (forking sandboxes)"),
)
_OTHERS = (
    ("GET", "/snapshots", "snapshots of sandboxes"),
    ("POST", "/templates", "building templates over the API"),
    ("POST", "/v2/templates", "building templates over the API"),
    ("POST", "/templates/{template_id}", "building templates over the API"),
    ("PATCH", "/templates/{template_id}", "changing templates over the API"),
    ("PATCH", "/v2/templates/{template_id}", "changing templates over the API"),
    ("GET", "/templates/{template_id}/tags/{rest:path}", "template tags"),
    ("GET", "/volumes", "volumes"),
    ("POST", "/volumes", "volumes"),
    ("GET", "/volumes/{volume_id}", "volumes"),
    ("DELETE", "/volumes/{volume_id}", "volumes"),
    ("GET", "/secrets", "secrets"),
    ("POST", "/secrets", "secrets"),
    ("GET", "/secrets/{secret_id}", "secrets"),
    ("POST", "/secrets/{secret_id}", "secrets"),
    ("DELETE", "/secrets/{secret_id}", "secrets"),
    ("GET", "/teams", "teams"),
    ("GET", "/teams/{rest:path}", "teams"),
)


def missing_routes(registry: Registry) -> list[Route]:
    """Routes of what E2B has and this server lacks. A sandbox that does not exist is a 404 also here."""

    def of_a_sandbox(what: str) -> Handler:
        async def refuse(request: Request) -> Response:
            registry.lookup(owner_of(request), path_param(request, "sandbox_id"))
            raise not_implemented(what)

        return refuse

    routes = [Route(path, of_a_sandbox(what), methods=[method]) for method, path, what in _OF_A_SANDBOX]
    # DELETE /templates/tags must be tried before DELETE /templates/{template_id}.
    others = sorted(_OTHERS, key=lambda row: row[1].count("{"))
    return routes + [Route(path, _refuse(what), methods=[method]) for method, path, what in others]


def _refuse(what: str) -> Handler:
    async def refuse(_: Request) -> Response:
        raise not_implemented(what)

    return refuse
