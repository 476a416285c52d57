"""One ASGI application for both of the guest's services, told apart by the port the client meant."""

from collections.abc import Mapping

from starlette.types import ASGIApp, Receive, Scope, Send

ENVD_PORT = 49983
INTERPRETER_PORT = 49999

_PORT_HEADER = b"e2b-sandbox-port"


class PortDispatch:
    """Routes a request by its ``E2b-Sandbox-Port`` header, else by the TCP port it came in on."""

    def __init__(self, services: Mapping[int, ASGIApp]) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the ASGI server."""
        if scope["type"] != "http":
            return
        service = self._services.get(_port(scope))
        if service is None:
            await _answer_unknown(send)
            return
        await service(scope, receive, send)


def _port(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == _PORT_HEADER:
            return int(value) if value.isdigit() and len(value) <= 5 else 0
    server = scope.get("server")
    return server[1] if server and isinstance(server[1], int) else 0


async def _answer_unknown(send: Send) -> None:
    body = b'{"code":404,"message":"no such service in the sandbox"}'
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 404, "headers": headers})
    await send({"type": "http.response.body", "body": body})
