"""E2B operations that this server does not have: each says so at once, in the shape the SDKs parse."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ringfence.server.errors import not_implemented

Handler = Callable[[Request], Awaitable[Response]]

_OTHERS = (
    ("POST", "/templates", "building templates over the API"),
    ("POST", "/v2/templates", "building templates over the API"),
    ("POST", "/templates/{template_id}", "building templates over the API"),
    ("GET", "/teams", "teams"),
    ("GET", "/teams/{rest:path}", "teams"),
)


def missing_routes() -> list[Route]:
    """Routes of what E2B has and this server lacks."""
    # DELETE /templates/tags must be tried before DELETE /templates/{template_id}.
    others = sorted(_OTHERS, key=lambda row: row[1].count("{"))
    return [Route(path, _refuse(what), methods=[method]) for method, path, what in others]


def _refuse(what: str) -> Handler:
    async def refuse(_: Request) -> Response:
        raise not_implemented(what)

    return refuse
