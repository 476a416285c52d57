"""Reading control-plane requests: bodies with a bound, models, path parameters."""

import asyncio
from typing import TypeVar
from urllib.parse import unquote

from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request

from ringfence.server.errors import ApiError
from ringfence.server.models import Body

MAX_BODY = 1024 * 1024
"""Largest body of a control-plane request, in bytes."""

BODY_TIMEOUT = 30.0
"""Seconds in which it must have arrived."""

OWNER = "ringfence.owner"
"""Key of the authenticated owner in the scope."""

Model = TypeVar("Model", bound=Body)


def owner_of(request: Request) -> str:
    """The owner that the request's API key stands for."""
    owner: str = request.scope[OWNER]
    return owner


def path_param(request: Request, name: str) -> str:
    """A path parameter, decoded. Routes are matched on the encoded path, so it may hold a slash."""
    return unquote(request.path_params[name])


async def read_body(request: Request) -> bytes:
    """The request's body. Raises ApiError: 413 once it is known to be too large, 408 when it stays out."""
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > MAX_BODY:
        raise ApiError(413, f"the request body is larger than {MAX_BODY} bytes")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            async for part in request.stream():
                body += part
                if len(body) > MAX_BODY:
                    raise ApiError(413, f"the request body is larger than {MAX_BODY} bytes")
    except TimeoutError:
        raise ApiError(408, "the request body did not arrive in time") from None
    except ClientDisconnect:
        raise ApiError(499, "the client hung up") from None
    return bytes(body)


async def read_model(request: Request, model: type[Model]) -> Model:
    """The request's JSON body as `model`; no body is an empty object. Raises ApiError (400, 413)."""
    return parse_model(await read_body(request), model)


def parse_model(body: bytes, model: type[Model]) -> Model:
    """JSON as `model`. Raises ApiError (400), which names the field but never repeats what was sent."""
    try:
        return model.model_validate_json(body or b"{}")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise ApiError(400, f"{place}: {reason}" if place else reason) from None
