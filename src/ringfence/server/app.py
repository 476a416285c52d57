"""The server's ASGI application: one URL for the control plane and for all sandbox traffic."""

import logging
import time
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Router
from starlette.types import Receive, Scope, Send

from ringfence import __version__
from ringfence.core.errors import RingfenceError
from ringfence.server.clients import Clients, remark
from ringfence.server.cors import preflight, readable
from ringfence.server.errors import NOT_IMPLEMENTED, ApiError, error_response, from_engine
from ringfence.server.headers import ENVD_PORT
from ringfence.server.keys import Keys
from ringfence.server.lifecycle_routes import LifecycleRoutes
from ringfence.server.missing_routes import missing_routes
from ringfence.server.observe_routes import ObserveRoutes
from ringfence.server.pausing import Pausing
from ringfence.server.protocol import answer
from ringfence.server.proxy import Proxy
from ringfence.server.registry import Registry
from ringfence.server.requests import OWNER
from ringfence.server.routing import HostPolicy, Target, host_name, single, target_of
from ringfence.server.sandbox_routes import SandboxRoutes
from ringfence.server.secrets.routes import SecretRoutes
from ringfence.server.secrets.service import Secrets
from ringfence.server.signatures import match_signature
from ringfence.server.template_routes import TemplateRoutes
from ringfence.server.templates.service import TemplateService
from ringfence.server.templates.uploads import PATH as UPLOADS
from ringfence.server.usage import NetworkUsage
from ringfence.server.volumes.content import PATH as VOLUME_CONTENT
from ringfence.server.volumes.content import VolumeContent
from ringfence.server.volumes.routes import VolumeRoutes
from ringfence.server.volumes.volumes import Volumes

if TYPE_CHECKING:
    from ringfence.engine.engine import Engine

logger = logging.getLogger(__name__)


class App:
    """The whole server as an ASGI application.

    domain: under which sandboxes are reached by host name, with its port when that is not the scheme's own.
    volume_domain: under which clients are told that volumes' contents are served; None: they are not told.
    allowed_hosts: further names of the control plane. max_body: bound of one request to a sandbox, in bytes.
    """

    def __init__(
        self,
        engine: "Engine",
        registry: Registry,
        pausing: Pausing,
        keys: Keys,
        templates: TemplateService,
        volumes: Volumes,
        secrets: Secrets,
        *,
        volume_domain: str | None,
        domain: str,
        allowed_hosts: tuple[str, ...],
        max_body: int,
    ) -> None:
        self._engine = engine
        self._registry = registry
        self._keys = keys
        self._clients = Clients()
        self._uploads = templates.uploads
        self._volume_content = VolumeContent(volumes, engine.volumes, max_body)
        self._domain_name = host_name(domain)
        self._hosts = HostPolicy(self._domain_name, allowed_hosts)
        self._proxy = Proxy(registry, pausing, max_body, keys)
        template_routes = TemplateRoutes(templates, time.time())
        self._router = Router(
            [
                *ObserveRoutes(registry).routes(),
                *NetworkUsage(engine, registry).routes(),
                *SandboxRoutes(registry, pausing, domain).routes(),
                *template_routes.routes(),
                *VolumeRoutes(volumes, volume_domain).routes(),
                *SecretRoutes(secrets).routes(),
                *missing_routes(),
                *LifecycleRoutes(registry, pausing, domain, template_routes.delete).routes(),
            ],
            redirect_slashes=False,
            default=_unknown,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        try:
            target = target_of(scope["headers"], self._domain_name) or self._signed_target(scope)
            if target is not None:
                await self._proxy.serve(target, scope, receive, send)
                return
            self._hosts.check(scope["headers"])
            send = readable(scope, send)
            response = preflight(scope) or await self._control(scope, receive, send)
        except ApiError as error:
            if error.message.startswith(NOT_IMPLEMENTED):
                error.message += remark(scope["headers"])
            response = error.response()
        except RingfenceError as error:
            response = from_engine(error).response()
        except HTTPException as error:
            response = error_response(error.status_code, error.detail, headers=error.headers)
        except Exception:
            logger.exception("a request failed")
            response = error_response(500, "internal server error")
        if response is not None:
            await answer(response, scope, receive, send)

    def _signed_target(self, scope: Scope) -> Target | None:
        """A signed ``/files`` URL bears no sandbox id; the signature tells whose it is."""
        if scope["path"] != "/files":
            return None
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        sandbox_id = match_signature(self._registry.records(), scope["method"], query)
        if sandbox_id is None:
            # As envd says it. Nothing here tells a caller without a header which sandboxes there are.
            given = "signature" in query
            raise ApiError(401, "invalid signature" if given else "missing signature query parameter")
        return Target(sandbox_id, ENVD_PORT)

    async def _control(self, scope: Scope, receive: Receive, send: Send) -> Response | None:
        """Serve a control-plane request; the answer to give when the router did not give it."""
        if scope["path"] == "/health":
            return self._health(scope)
        if scope["path"].startswith(UPLOADS):
            return await self._uploads.receive(Request(scope, receive))
        if scope["path"].startswith(VOLUME_CONTENT):
            return await self._volume_content.serve(Request(scope, receive))
        scope[OWNER] = self._authenticate(scope)
        self._clients.note(scope["headers"])
        scope["app"] = self  # so that Starlette raises its refusals instead of writing them as text
        # Routes are matched on the path as it was sent, so that an encoded slash stays within its segment.
        scope["path"] = scope["raw_path"].decode("latin-1")
        await self._router(scope, receive, send)
        return None

    def _authenticate(self, scope: Scope) -> str:
        key = single(scope["headers"], b"x-api-key")
        if not key:
            raise ApiError(401, "missing API key: send it in the X-API-KEY header")
        owner = self._keys.owner(key)
        if owner is None:
            raise ApiError(401, "invalid API key")
        return owner

    def _health(self, scope: Scope) -> Response:
        """What a load balancer and a check of the level need; the details are for those who have a key."""
        isolation = self._engine.isolation.as_dict()
        isolation["gvisor"]["starts"] = self._engine.warm_starts.as_dict()
        brief = {"status": "ok", "version": __version__, "backend": "local"}
        if self._keys.owner(single(scope["headers"], b"x-api-key") or "") is None:
            return JSONResponse({**brief, "isolation": {key: isolation[key] for key in ("level", "tier")}})
        return JSONResponse(
            {
                **brief,
                "templates": sorted(self._engine.templates),
                "isolation": isolation,
                "network": self._engine.network_settings,
                "sandboxes": len(self._registry),
            }
        )


async def _unknown(scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope)
    raise ApiError(
        404,
        f"{NOT_IMPLEMENTED} {request.method} {scope['path'][:200]} is not known to Ringfence {__version__}",
    )
