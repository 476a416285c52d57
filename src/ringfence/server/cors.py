"""Cross-origin requests to the control plane: a page that may call it can also read the answers.

Which origins may is decided by `HostPolicy`: pages of this machine and of names that the operator allows.
There is nothing ambient to steal: every operation wants the API key in a header, and no cookie is looked at.
"""

from starlette.responses import Response
from starlette.types import Message, Scope, Send

from ringfence.server.routing import single

_EXPOSED = b"x-next-token"
_SECONDS = "7200"


def preflight(scope: Scope) -> Response | None:
    """The answer to a browser's question if it may send a request; None when this is no such question."""
    wanted = single(scope["headers"], b"access-control-request-method")
    if scope["method"] != "OPTIONS" or wanted is None or single(scope["headers"], b"origin") is None:
        return None
    headers = {
        "Access-Control-Allow-Methods": "GET, HEAD, POST, PUT, PATCH, DELETE",
        "Access-Control-Max-Age": _SECONDS,
    }
    asked = single(scope["headers"], b"access-control-request-headers")
    if asked is not None:
        headers["Access-Control-Allow-Headers"] = asked
    return Response(status_code=204, headers=headers)


def readable(scope: Scope, send: Send) -> Send:
    """`send`, which lets the page that has asked read the answer."""
    origin = single(scope["headers"], b"origin")
    if origin is None:
        return send

    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            extra = [
                (b"access-control-allow-origin", origin.encode("latin-1")),
                (b"access-control-expose-headers", _EXPOSED),
                (b"vary", b"Origin"),
            ]
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
        await send(message)

    return with_headers
