"""The control plane's views of running sandboxes: metrics and logs."""

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ringfence.server.errors import ApiError
from ringfence.server.records import LogLine, Record, metric, timestamp
from ringfence.server.registry import Registry
from ringfence.server.requests import owner_of, path_param

_MAX_LINES = 1000
_MAX_IDS = 100


class ObserveRoutes:
    """Handlers of ``/sandboxes/{id}/metrics`` and ``/sandboxes/{id}/logs``."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def routes(self) -> list[Route]:
        """The routes; they come before ``/sandboxes/{id}``."""
        return [
            Route("/sandboxes/metrics", self.latest, methods=["GET"]),
            Route("/sandboxes/{sandbox_id}/metrics", self.metrics, methods=["GET"]),
            Route("/sandboxes/{sandbox_id}/logs", self.logs, methods=["GET"]),
            Route("/v2/sandboxes/{sandbox_id}/logs", self.logs_v2, methods=["GET"]),
        ]

    async def latest(self, request: Request) -> Response:
        """``GET /sandboxes/metrics``: the newest point of each of the sandboxes named."""
        wanted = request.query_params.get("sandbox_ids", "").split(",")[:_MAX_IDS]
        owned = {record.sandbox_id: record for record in self._registry.owned(owner_of(request))}
        points = {
            name: metric(owned[name], owned[name].samples[-1])
            for name in wanted
            if name in owned and owned[name].samples
        }
        return JSONResponse({"sandboxes": points})

    async def metrics(self, request: Request) -> Response:
        """``GET /sandboxes/{id}/metrics``: the points from `start` to `end` (seconds since the epoch)."""
        record = self._record(request)
        start = _number(request, "start", 0)
        end = _number(request, "end", 2**62)
        points = [metric(record, sample) for sample in record.samples if start <= int(sample.at) <= end]
        return JSONResponse(points)

    async def logs(self, request: Request) -> Response:
        """``GET /sandboxes/{id}/logs``: events from `start` on (milliseconds since the epoch), in order."""
        lines = self._lines(request, _number(request, "start", 0))
        return JSONResponse(
            {
                "logs": [{"timestamp": timestamp(line.at), "line": _line(line)} for line in lines],
                "logEntries": [_entry(line) for line in lines],
            }
        )

    async def logs_v2(self, request: Request) -> Response:
        """``GET /v2/sandboxes/{id}/logs``: the same, newest first with ``direction=backward``."""
        lines = self._lines(request, _number(request, "cursor", 0))
        if request.query_params.get("direction") == "backward":
            lines.reverse()
        return JSONResponse({"logs": [_entry(line) for line in lines]})

    def _lines(self, request: Request, start: int) -> list[LogLine]:
        limit = min(_number(request, "limit", _MAX_LINES), _MAX_LINES)
        return [line for line in self._record(request).log if line.at * 1000 >= start][:limit]

    def _record(self, request: Request) -> Record:
        return self._registry.lookup(owner_of(request), path_param(request, "sandbox_id"))


def _line(line: LogLine) -> str:
    """The event as E2B's command line tool reads it: a JSON object as text."""
    return json.dumps({"level": line.level, "logger": "sandbox", "message": line.message})


def _entry(line: LogLine) -> dict[str, Any]:
    return {"timestamp": timestamp(line.at), "message": line.message, "level": line.level, "fields": {}}


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ApiError(400, f"{name} must be a whole number")
    return int(text)
