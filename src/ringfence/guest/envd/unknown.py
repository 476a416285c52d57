"""The answer to a request that this envd does not know: at once, in the form its client can read."""

import re

from starlette.types import Receive, Scope, Send

from ringfence.guest.connect import ConnectError, discard_body, refuse
from ringfence.guest.envd.auth import error_response

_RPC = re.compile(r"/[\w.]+\.[A-Z]\w*/\w+")
_SHOWN_CHARACTERS = 200


async def unknown(scope: Scope, receive: Receive, send: Send) -> None:
    """An ASGI application: Connect's ``unimplemented`` for an RPC, E2B's error object for anything else."""
    if scope["type"] != "http":
        return
    path = scope["path"][:_SHOWN_CHARACTERS]
    if scope["method"] == "POST" and _RPC.fullmatch(path):
        error = ConnectError("unimplemented", f"not implemented: {path[1:]} is not known to this sandbox")
        await refuse(scope, receive, send, error)
        return
    await discard_body(receive)
    response = error_response(404, f"not implemented: {scope['method']} {path} is not known to this sandbox")
    await response(scope, receive, send)
