"""Serving MCP over streamable HTTP, in both generations of the protocol, and ending in order.

What every request passes, outermost first: the check of its `Host` and `Origin`, the caller's token, then the
protocol (``/mcp``) or the files (``/files/…``). ``/healthz`` alone is open to everybody.
"""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Iterator

import uvicorn
from mcp.server import MCPServer
from mcp.server.auth.middleware.auth_context import AuthContextMiddleware
from mcp.server.auth.middleware.bearer_auth import BearerAuthBackend, RequireAuthMiddleware
from mcp.server.auth.provider import TokenVerifier
from mcp.server.auth.routes import build_resource_metadata_url, create_protected_resource_routes
from mcp.server.auth.settings import AuthSettings
from mcp.server.transport_security import TransportSecurityMiddleware, TransportSecuritySettings
from pydantic import AnyHttpUrl
from starlette.applications import Starlette
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ringfence.core.config import Settings
from ringfence.core.errors import ConfigurationError
from ringfence.integrations.mcp.servers.app import App
from ringfence.integrations.mcp.servers.http.files import FileRoutes
from ringfence.integrations.mcp.servers.http.settings import (
    AuthKind,
    HttpSettings,
    allowed_names,
    choose_auth,
)
from ringfence.integrations.mcp.servers.http.tokens import IssuedTokens, OwnTokens, ServerKeys

_IDLE_SECONDS = 600
"""After which a client of the older generation that says nothing has to shake hands again."""
_OPEN_PATHS = ("/healthz", "/.well-known/")


class HttpService:
    """The server of one address: its caller's App and the ASGI application."""

    def __init__(self, settings: Settings, http: HttpSettings, host: str, port: int) -> None:
        self._http = http
        self.host, self.port = host, port
        self.auth: AuthKind = choose_auth(http, settings, host)
        self._security = _security(http, host, port)
        name = f"[{host}]" if ":" in host else host
        self.url = http.public_url or f"http://{name}:{port}"
        self.app = App(
            settings,
            files_url=f"{self.url}/files",
            own_keys=self.auth == "keys",
            authenticated=self.auth != "none",
        )
        self._verifier = _verifier(self.auth, http, settings)

    def asgi(self, server: MCPServer[App]) -> ASGIApp:
        """The whole application around `server`."""
        inner = server.streamable_http_app(
            host=self.host,
            transport_security=self._security,
            session_idle_timeout=_IDLE_SECONDS,
            max_sessions=self._http.max_connections,
            max_request_body_size=self._http.max_request_body,
        )
        inner.router.routes.extend(FileRoutes(self.app, self._http.max_upload).routes())
        inner.router.routes.append(Route("/healthz", _health, methods=["GET"]))
        self._add_metadata(inner)
        return _Checked(self._authenticated(inner), self._security)

    def _add_metadata(self, inner: Starlette) -> None:
        auth = self._auth_settings()
        if auth is not None and auth.resource_server_url is not None:
            inner.router.routes.extend(
                create_protected_resource_routes(
                    resource_url=auth.resource_server_url,
                    authorization_servers=[auth.issuer_url],
                    scopes_supported=auth.required_scopes,
                )
            )

    def _auth_settings(self) -> AuthSettings | None:
        if self.auth != "oauth":
            return None
        return AuthSettings(
            issuer_url=AnyHttpUrl(self._http.oauth_issuer or ""),
            resource_server_url=AnyHttpUrl(f"{self.url}/mcp"),
            required_scopes=list(self._http.oauth_scopes) or None,
            validate_token_resource=True,
        )

    def _authenticated(self, inner: ASGIApp) -> ASGIApp:
        if self._verifier is None:
            return inner
        auth = self._auth_settings()
        resource = auth.resource_server_url if auth is not None else None
        metadata = build_resource_metadata_url(resource) if resource is not None else None
        guarded = RequireAuthMiddleware(inner, list(self._http.oauth_scopes), metadata)
        known = AuthContextMiddleware(_Fork(open_app=inner, guarded=guarded))
        backend = BearerAuthBackend(self._verifier, resource_server_url=resource)
        return AuthenticationMiddleware(known, backend=backend)

    def announce(self) -> str:
        """One line for the operator's terminal."""
        who = {
            "none": "no token is asked for: every program on this machine can use it",
            "tokens": "callers need a token of RINGFENCE_MCP_TOKENS",
            "keys": "callers need an API key of the Ringfence server",
            "oauth": f"callers need a token of {self._http.oauth_issuer}",
        }[self.auth]
        return f"python_executor is ready at {self.url}/mcp ({who})"


class _Fork:
    """Open paths go past the guard."""

    def __init__(self, open_app: ASGIApp, guarded: ASGIApp) -> None:
        self._open, self._guarded = open_app, guarded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_open = scope["type"] == "lifespan" or scope["path"].startswith(_OPEN_PATHS)
        await (self._open if is_open else self._guarded)(scope, receive, send)


class _Checked:
    """Refuses requests for other hosts and from other origins: pages of the web must not reach us."""

    def __init__(self, app: ASGIApp, security: TransportSecuritySettings) -> None:
        self._app = app
        self._check = TransportSecurityMiddleware(security)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            # The HTTP parser leaves white space around values; RFC 9110 has it no part of them.
            headers = [(name, value.strip(b" \t")) for name, value in scope["headers"]]
            scope = {**scope, "headers": headers}
        if scope["type"] == "http" and scope["path"] != "/healthz":
            refusal = await self._check.validate_request(Request(scope))
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)


async def _health(_: Request) -> JSONResponse:
    return JSONResponse({"status": "ok"})


def _security(http: HttpSettings, host: str, port: int) -> TransportSecuritySettings:
    hosts, origins = allowed_names(http, host, port)
    return TransportSecuritySettings(allowed_hosts=hosts, allowed_origins=origins)


def _verifier(auth: AuthKind, http: HttpSettings, settings: Settings) -> TokenVerifier | None:
    if auth == "tokens":
        return OwnTokens(http.named_tokens())
    if auth == "keys":
        return ServerKeys(settings.url or "")
    if auth == "oauth":
        return IssuedTokens(http.oauth_issuer or "", f"{http.public_url}/mcp")
    return None


class _Server(uvicorn.Server):
    """Uvicorn, without its habit of ending the process by the signal that it was told to end with."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        for number in numbers:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; a `ConfigurationError` when the address is taken or not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigurationError(f"{host}:{port} cannot be listened on: {error.strerror}") from error


async def serve_http(service: HttpService, server: MCPServer[App], listening: socket.socket) -> None:
    """Serve until a signal comes; running calls then get a few seconds, and every sandbox is ended."""
    http = service._http
    config = uvicorn.Config(
        service.asgi(server),
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=http.max_connections * 4,
        timeout_graceful_shutdown=http.drain_s,
        ws="none",
    )
    print(service.announce(), file=sys.stderr, flush=True)
    await _Server(config).serve(sockets=[listening])
