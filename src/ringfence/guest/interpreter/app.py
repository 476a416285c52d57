"""The code-interpreter API of E2B: ``/health``, ``/execute`` and ``/contexts``, as the SDKs call it."""

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ringfence.guest.config import GuestConfig
from ringfence.guest.interpreter.context import Cell, Context
from ringfence.guest.interpreter.kernel import MAX_LINE
from ringfence.guest.interpreter.nursery import KernelStartError
from ringfence.guest.interpreter.pool import KernelPool, UnknownContextError
from ringfence.guest.interpreter.stream import KEEPALIVE_SECONDS, ExecutionResponse

_MAX_BODY = MAX_LINE - 64 * 1024
_MAX_TIMEOUT = 366 * 86_400
_Handler = Callable[[Request], Awaitable[Response]]


class BadRequestError(Exception):
    """The request makes no sense. `status` is its HTTP status, the message its body."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def build(config: GuestConfig, kernels: KernelPool) -> Starlette:
    """The application on port 49999. Errors are plain text, as E2B's clients show them as they are."""
    api = _Api(kernels)
    token = config.access_token

    def route(path: str, handler: _Handler, method: str, *, token_required: bool = False) -> Route:
        return Route(path, _guarded(handler, token, token_required), methods=[method])

    return Starlette(
        routes=[
            Route("/health", _health, methods=["GET"]),
            route("/execute", api.execute, "POST", token_required=True),
            route("/contexts", api.list, "GET"),
            route("/contexts", api.create, "POST"),
            route("/contexts/{context_id}", api.remove, "DELETE"),
            route("/contexts/{context_id}/restart", api.restart, "POST"),
        ],
        exception_handlers={
            BadRequestError: _bad_request,
            HTTPException: _unknown_route,
            UnknownContextError: _unknown_context,
            KernelStartError: _no_kernel,
        },
    )


def _guarded(handler: _Handler, token: str | None, required: bool) -> _Handler:
    """`handler` behind the sandbox's access token.

    The official SDKs send it with ``/execute`` only, so where it is not required it may be missing, but not
    be wrong.
    """

    async def guarded(request: Request) -> Response:
        given = request.headers.get("x-access-token")
        asked = token is not None and (given is not None or required)
        if asked and not hmac.compare_digest((given or "").encode(), (token or "").encode()):
            return PlainTextResponse("Unauthorized", status_code=401)
        return await handler(request)

    return guarded


async def _health(_request: Request) -> Response:
    return JSONResponse("Request was successful")


async def _bad_request(_request: Request, error: Exception) -> Response:
    status = error.status if isinstance(error, BadRequestError) else 400
    return PlainTextResponse(str(error), status_code=status)


async def _unknown_route(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    text = f"not implemented: {request.method} {request.url.path[:200]} is not known to this sandbox"
    return PlainTextResponse(text, status_code=status)


async def _unknown_context(_request: Request, error: Exception) -> Response:
    return PlainTextResponse(str(error), status_code=404)


async def _no_kernel(_request: Request, error: Exception) -> Response:
    return PlainTextResponse(f"Failed to start a kernel: {error}", status_code=500)


class _Api:
    """The handlers, over one pool of kernels."""

    def __init__(self, kernels: KernelPool) -> None:
        self._kernels = kernels

    async def execute(self, request: Request) -> Response:
        body = await _json_object(request)
        context = self._context(_text(body, "context_id"), _text(body, "language"))
        execution = context.submit(_cell(body))
        try:
            first = await asyncio.wait_for(execution.events.get(), KEEPALIVE_SECONDS)
        except TimeoutError:
            first = None
        except asyncio.CancelledError:
            execution.cancel()
            raise
        if execution.failed_to_start is not None:
            raise KernelStartError(execution.failed_to_start)
        return ExecutionResponse(execution, first)

    def _context(self, context_id: str | None, language: str | None) -> Context:
        if context_id and language:
            raise BadRequestError("Only one of context_id or language can be provided")
        if context_id:
            return self._kernels.get(context_id)
        return self._kernels.default(language or "python")

    async def list(self, _request: Request) -> Response:
        return JSONResponse([context.as_dict() for context in self._kernels.list()])

    async def create(self, request: Request) -> Response:
        body = await _json_object(request)
        context = await self._kernels.create(_text(body, "language"), _text(body, "cwd"))
        return JSONResponse(context.as_dict())

    async def remove(self, request: Request) -> Response:
        await self._kernels.remove(request.path_params["context_id"])
        return Response()

    async def restart(self, request: Request) -> Response:
        await self._kernels.get(request.path_params["context_id"]).restart()
        return Response()


def _cell(body: dict[str, Any]) -> Cell:
    """The cell a request describes. ``timeout``, in seconds, is an extension of ours."""
    code = body.get("code")
    if not isinstance(code, str):
        raise BadRequestError("code must be a string", 422)
    env = body.get("env_vars") or {}
    if not isinstance(env, dict) or not all(_is_variable(name, value) for name, value in env.items()):
        raise BadRequestError(
            "env_vars must be an object of strings, without '=' in names and without NUL", 422
        )
    timeout = body.get("timeout")
    if timeout is not None and (
        isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 <= timeout <= _MAX_TIMEOUT
    ):
        raise BadRequestError(f"timeout must be a number of seconds, at most {_MAX_TIMEOUT}", 422)
    return Cell(code, env, float(timeout) if timeout else None)


def _is_variable(name: object, value: object) -> bool:
    if not (isinstance(name, str) and isinstance(value, str)):
        return False
    return bool(name) and "=" not in name and "\0" not in name + value


def _text(body: dict[str, Any], key: str) -> str | None:
    value = body.get(key)
    if value is not None and not isinstance(value, str):
        raise BadRequestError(f"{key} must be a string", 422)
    return value


async def _json_object(request: Request) -> dict[str, Any]:
    """The body, which is limited in size. Raises BadRequestError."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > _MAX_BODY:
            raise BadRequestError(
                f"the request is larger than {_MAX_BODY} bytes; write large data to a file", 413
            )
    try:
        body = json.loads(data.decode("utf-8") or "{}")
    except (ValueError, RecursionError):
        raise BadRequestError("the body is not JSON", 422) from None
    if not isinstance(body, dict):
        raise BadRequestError("the body must be a JSON object", 422)
    return body
