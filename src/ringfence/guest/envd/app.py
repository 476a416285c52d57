"""The whole of envd as one Starlette application."""

import os

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ringfence.guest.config import GuestConfig
from ringfence.guest.envd.auth import TokenGuard
from ringfence.guest.envd.entries import Entries
from ringfence.guest.envd.files import FileService
from ringfence.guest.envd.filesystem import FilesystemService
from ringfence.guest.envd.metrics import Metrics
from ringfence.guest.envd.processes import ProcessService
from ringfence.guest.envd.start import Starter
from ringfence.guest.envd.unknown import unknown
from ringfence.guest.envd.users import UserDatabase
from ringfence.guest.envd.watch import WatchService
from ringfence.guest.limits import LimitWatch
from ringfence.guest.reaper import Reaper

ENVD_VERSION = "0.6.13"
"""The version of E2B's envd whose protocol this is; SDKs choose features by it."""

_UMASK = 0o022
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_EXPOSED = ("Location", "Cache-Control", "X-Content-Type-Options", "Content-Range", "Content-Disposition")


def build(
    config: GuestConfig,
    reaper: Reaper,
    users: UserDatabase | None = None,
    limits: LimitWatch | None = None,
) -> Starlette:
    """Make the application. `reaper` must have been started, or be started before the first request.

    limits: tells why commands failed.
    users: whom processes run as; by default those of /etc/passwd.
    Sets the umask of this process to 022, because files are created with it.
    """
    os.umask(_UMASK)
    users = users or UserDatabase(single_id=config.single_id)
    entries = Entries(users)
    routes = [
        *_plain_routes(config),
        *FileService(config, users).routes(),
        *ProcessService(config, users, Starter(config, users, reaper), limits).routes(),
        *FilesystemService(config, users, entries).routes(),
        *WatchService(config, users, entries).routes(),
    ]
    cors = Middleware(
        CORSMiddleware,
        allow_origins=("*",),
        allow_methods=_METHODS,
        allow_headers=("*",),
        expose_headers=_EXPOSED,
        max_age=7200,
    )
    guard = Middleware(TokenGuard, token=config.access_token)
    app = Starlette(routes=routes, middleware=[cors, guard])
    app.router.redirect_slashes = False
    app.router.default = unknown
    return app


def _plain_routes(config: GuestConfig) -> list[Route]:
    metrics = Metrics(config)

    async def health(request: Request) -> Response:
        return Response(status_code=204, headers={"cache-control": "no-store"})

    async def envs(request: Request) -> Response:
        return JSONResponse(config.variables, headers={"cache-control": "no-store"})

    async def measured(request: Request) -> Response:
        return JSONResponse(metrics.measure(), headers={"cache-control": "no-store"})

    return [Route("/health", health), Route("/envs", envs), Route("/metrics", measured)]
