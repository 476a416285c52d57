"""The proxy between clients and sandboxes: HTTP both ways without buffering, and upgrades as raw bytes."""

import functools
import hmac
import html
import logging
import posixpath
from typing import Any

from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import Receive, Scope, Send

from ringfence.server.exchange import BodyTooLargeError, ClientGoneError, Exchange
from ringfence.server.guest_http import GuestConnection, GuestLostError
from ringfence.server.guest_pool import GuestGoneError, GuestPool, PortClosedError
from ringfence.server.headers import ENVD_PORT, GUEST_PORTS, to_client
from ringfence.server.keys import Keys, holds_key
from ringfence.server.pausing import Pausing
from ringfence.server.protocol import answer, connection_of
from ringfence.server.records import Record
from ringfence.server.registry import Registry
from ringfence.server.routing import Target, single
from ringfence.server.splice import splice

logger = logging.getLogger(__name__)

_CONTROL_ROUTES = frozenset(
    ("/init", "/freeze", "/unfreeze", "/collapse", "/fsfreeze", "/fsthaw", "/upgrade")
)
"""Routes of envd that only the host may call; from outside they do not exist."""

_NOT_FOUND = "The sandbox was not found"
_NOT_OPEN = "The sandbox is running but port is not open"


class Proxy:
    """Forwards requests to sandboxes. `max_body` bounds one request's body, in bytes.

    keys: the server's, which user code never gets to see.
    """

    def __init__(self, registry: Registry, pausing: Pausing, max_body: int, keys: Keys) -> None:
        self._keys = keys
        self._registry = registry
        self._pausing = pausing
        self._pool = GuestPool()
        self._max_body = max_body
        registry.on_removal(self._pool.forget)
        registry.on_stop(self._pool.break_off)

    async def serve(self, target: Target, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward one request to `target`, or answer why not, as E2B's proxy does."""
        record = self._registry.find(target.sandbox_id)
        refusal = _refusal(record, target, scope)
        if refusal is not None or record is None:
            await answer(refusal or _bad_gateway(target, scope, _NOT_FOUND), scope, receive, send)
            return
        if record.paused and (_is_probe(target, scope) or not await self._pausing.wake(record)):
            await answer(_bad_gateway(target, scope, _NOT_FOUND), scope, receive, send)
            return
        exchange = Exchange(
            scope,
            receive,
            target.port,
            record.mask_request_host,
            self._max_body,
            functools.partial(holds_key, self._keys),
        )
        try:
            connection = await self._request(record, target, exchange)
        except PortClosedError:
            await answer(_bad_gateway(target, scope, _NOT_OPEN), scope, receive, send)
        except (GuestGoneError, GuestLostError):
            await answer(self._gone(target, scope), scope, receive, send)
        except BodyTooLargeError:
            await answer(_too_large(), scope, receive, send)
        except ClientGoneError:
            return
        else:
            await self._respond(record, target, exchange, connection, scope, send)

    async def _request(self, record: Record, target: Target, exchange: Exchange) -> GuestConnection:
        """Send the request and wait for the response's head.

        An idle connection may turn out to be closed; then the request, if all of it is at hand, goes over a
        new one.
        """
        await exchange.begin()
        _require_running(record)
        if exchange.whole and (idle := self._pool.take(record.sandbox, target.port)) is not None:
            try:
                return await _run(exchange, idle)
            except GuestLostError:
                if idle.started:
                    raise
        _require_running(record)
        connection = await self._pool.open(record.sandbox, target.port)
        if record.paused:
            connection.close()
        return await _run(exchange, connection)

    async def _respond(
        self,
        record: Record,
        target: Target,
        exchange: Exchange,
        connection: GuestConnection,
        scope: Scope,
        send: Send,
    ) -> None:
        head = await connection.head()
        if head.status == 101:
            await exchange.end()
            await splice(connection_of(scope), connection, head)
            return
        await send(
            {
                "type": "http.response.start",
                "status": head.status,
                "headers": to_client(head.status, head.headers),
            }
        )
        try:
            async for data in connection.body():
                await send({"type": "http.response.body", "body": data, "more_body": True})
        except GuestLostError:
            if not exchange.client_gone:
                logger.debug("the response of %s broke off", target.sandbox_id)
                connection_of(scope).reset()
            return
        finally:
            await exchange.end()
            if not exchange.delivered or record.paused or self._registry.find(target.sandbox_id) is None:
                connection.close()
            else:
                self._pool.give_back(record.sandbox, target.port, connection)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _gone(self, target: Target, scope: Scope) -> Response:
        """The answer when the guest took no connection or hung up before it answered."""
        record = self._registry.find(target.sandbox_id)
        live = record is not None and not record.paused
        user_port = target.port not in GUEST_PORTS
        return _bad_gateway(target, scope, _NOT_OPEN if live and user_port else _NOT_FOUND)


def _require_running(record: Record) -> None:
    """Raises GuestGoneError for a sandbox that was paused meanwhile."""
    if record.paused:
        raise GuestGoneError("the sandbox is paused")


def _is_probe(target: Target, scope: Scope) -> bool:
    """Whether a request only asks if the sandbox runs; that is no reason to resume it."""
    return target.port == ENVD_PORT and scope["path"] == "/health"


async def _run(exchange: Exchange, connection: GuestConnection) -> GuestConnection:
    """Send the request over `connection`, and leave that closed when it fails."""
    try:
        await exchange.run(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _refusal(record: Record | None, target: Target, scope: Scope) -> Response | None:
    if record is None:
        return _bad_gateway(target, scope, _NOT_FOUND)
    if target.port == ENVD_PORT:
        path = posixpath.normpath("/" + scope["path"].strip("/"))
        hidden = any(path == route or path.startswith(route + "/") for route in _CONTROL_ROUTES)
        return JSONResponse({"code": 404, "message": "not found"}, status_code=404) if hidden else None
    if record.traffic_token is None:
        return None
    given = single(scope["headers"], b"e2b-traffic-access-token") or ""
    if hmac.compare_digest(given.encode(), record.traffic_token.encode()):
        return None
    message = "Traffic access token is missing or invalid"
    body = {"sandboxId": record.sandbox_id, "message": message, "code": 403}
    return JSONResponse(body, status_code=403)


def _bad_gateway(target: Target, scope: Scope, message: str) -> Response:
    """E2B's answer for what cannot be reached: a page for browsers, JSON for everyone else."""
    body: dict[str, Any] = {"sandboxId": target.sandbox_id, "message": message, "code": 502}
    if message == _NOT_OPEN:
        body["port"] = target.port
    accept = single(scope["headers"], b"accept") or ""
    agent = single(scope["headers"], b"user-agent") or ""
    if "text/html" in accept and agent.startswith("Mozilla/"):
        page = f"<!doctype html><title>502</title><h1>{html.escape(message)}</h1><p>Port {target.port}</p>"
        return HTMLResponse(page, status_code=502, headers={"Content-Security-Policy": "default-src 'none'"})
    return JSONResponse(body, status_code=502)


def _too_large() -> Response:
    return JSONResponse({"code": 413, "message": "the request body is too large"}, status_code=413)
