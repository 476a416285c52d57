"""What a template's tags name and named before (``/templates/{id}/tags/…``)."""

import base64
import binascii
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ringfence.server.errors import ApiError
from ringfence.server.records import timestamp
from ringfence.server.requests import owner_of, path_param
from ringfence.server.templates.catalog import Catalog
from ringfence.server.templates.names import checked_tag
from ringfence.server.templates.store import AssignmentRow, TemplateStore

_SORTS: dict[str, tuple[Callable[[list[AssignmentRow]], Any], bool]] = {
    "latest_asc": (lambda group: (group[0].assigned_at, group[0].tag), False),
    "latest_desc": (lambda group: (group[0].assigned_at, group[0].tag), True),
    "name_asc": (lambda group: group[0].tag, False),
    "name_desc": (lambda group: group[0].tag, True),
}
_MOST = 100


class TagRoutes:
    """Handlers of the operations that read the history of tags. A build that is gone has none."""

    def __init__(self, catalog: Catalog, store: TemplateStore) -> None:
        self._catalog = catalog
        self._store = store

    def routes(self) -> list[Route]:
        """The routes."""
        tags = "/templates/{template_id}/tags"
        return [
            Route(f"{tags}/count", self.count, methods=["GET"]),
            Route(f"{tags}/exists", self.exists, methods=["GET"]),
            Route(f"{tags}/groups", self.groups, methods=["GET"]),
            Route(f"{tags}/{{tag}}/assignments", self.assignments, methods=["GET"]),
        ]

    async def count(self, request: Request) -> Response:
        """``GET …/tags/count``."""
        return JSONResponse({"total": len(self._groups(request))})

    async def exists(self, request: Request) -> Response:
        """``GET …/tags/exists``: whether the tag names, or has named, a build that there is."""
        groups = self._groups(request)
        tag = checked_tag(request.query_params.get("tag", ""))
        return JSONResponse({"exists": tag in groups, "normalizedTag": tag})

    async def groups(self, request: Request) -> Response:
        """``GET …/tags/groups``: tags with their latest assignments, a page at a time."""
        params = request.query_params
        sort = params.get("sort") or "latest_desc"
        if sort not in _SORTS:
            raise ApiError(400, f"sort must be one of {', '.join(_SORTS)}")
        shown = _number(params.get("assignmentLimit"), "assignmentLimit", 6)
        search = (params.get("search") or "").strip().lower()
        key, backwards = _SORTS[sort]
        found = [group for tag, group in self._groups(request).items() if search in tag]
        found.sort(key=key, reverse=backwards)
        page, cursor = _page(
            found, params.get("tagsCursor"), _number(params.get("tagsLimit"), "tagsLimit", 25)
        )
        tags = [
            {
                "tag": group[0].tag,
                "assignments": [_assignment(row) for row in group[:shown]],
                "hasMore": len(group) > shown,
            }
            for group in page
        ]
        return JSONResponse({"tags": tags, "nextCursor": cursor})

    async def assignments(self, request: Request) -> Response:
        """``GET …/tags/{tag}/assignments``: latest first, a page at a time; none for an unknown tag."""
        tag = checked_tag(path_param(request, "tag"))
        params = request.query_params
        limit = _number(params.get("limit"), "limit", 50)
        page, cursor = _page(self._groups(request).get(tag, []), params.get("cursor"), limit)
        return JSONResponse({"data": [_assignment(row) for row in page], "nextCursor": cursor})

    def _groups(self, request: Request) -> dict[str, list[AssignmentRow]]:
        """The assignments of a template's tags, latest first. Raises ApiError (404)."""
        name = path_param(request, "template_id")
        row = self._catalog.row(owner_of(request), name)
        if row is None:
            raise ApiError(404, f"template '{name[:128]}' not found")
        groups: dict[str, list[AssignmentRow]] = {}
        for assignment in self._store.assignments(row.template_id):
            groups.setdefault(assignment.tag, []).append(assignment)
        return groups


def _assignment(row: AssignmentRow) -> dict[str, Any]:
    finished = row.build_finished_at
    return {
        "assignmentId": row.assignment_id,
        "buildId": row.build_id,
        "assignedAt": timestamp(row.assigned_at),
        "buildCreatedAt": timestamp(row.build_created_at),
        "buildFinishedAt": None if finished is None else timestamp(finished),
    }


def _page(rows: list[Any], cursor: str | None, limit: int) -> tuple[list[Any], str | None]:
    try:
        start = int(base64.urlsafe_b64decode(cursor.encode()).decode()) if cursor else 0
    except (ValueError, binascii.Error):
        raise ApiError(400, "the cursor is not one that this server gave") from None
    end = start + limit
    following = base64.urlsafe_b64encode(str(end).encode()).decode() if end < len(rows) else None
    return rows[max(0, start) : end], following


def _number(text: str | None, name: str, default: int) -> int:
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and 1 <= int(text) <= _MOST):
        raise ApiError(400, f"{name} must be from 1 to {_MOST}")
    return int(text)
