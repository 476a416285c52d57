"""Who may talk to envd: the access token, and signed URLs for files."""

import base64
import hashlib
import hmac
import time

from starlette.datastructures import Headers, QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ringfence.guest.connect import discard_body

ACCESS_TOKEN_HEADER = "X-Access-Token"  # noqa: S105

_OPEN = {("GET", "/health"), ("GET", "/files"), ("HEAD", "/files"), ("POST", "/files"), ("POST", "/init")}


def error_response(status: int, message: str) -> JSONResponse:
    """An answer in envd's form. The body has exactly these two keys: clients compare it."""
    return JSONResponse({"code": status, "message": message}, status)


class HTTPError(Exception):
    """An answer other than success, of the plain HTTP part."""

    def __init__(self, status: int, message: str) -> None:
        """Make an error that the client sees as `status` and `message`."""
        super().__init__(message)
        self.status = status
        self.message = message


class TokenGuard:
    """ASGI middleware: refuses requests without the access token, except those that check for themselves.

    /files accepts a signature instead, and /init has no handler here, so it answers 404 to everybody.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        """Guard `app` with `token`; None: everybody who can connect may use it."""
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on or answer 401."""
        if scope["type"] == "http" and self._token is not None and not self._admits(scope):
            message = (
                "unauthorized access, please provide a valid access token or method signing if supported"
            )
            await discard_body(receive)
            await error_response(401, message)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _admits(self, scope: Scope) -> bool:
        if (scope["method"], scope["path"]) in _OPEN:
            return True
        return _same(Headers(scope=scope).get(ACCESS_TOKEN_HEADER, ""), self._token or "")


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode())


def signature(path: str, operation: str, user: str, token: str, expiration: int | None) -> str:
    """The signature of a file URL, version 1: the SHA-256 of its parts and the token, base64 unpadded."""
    parts = [path, operation, user, token]
    if expiration is not None:
        parts.append(str(expiration))
    digest = hashlib.sha256(":".join(parts).encode("utf-8", "surrogatepass")).digest()
    return "v1_" + base64.b64encode(digest).rstrip(b"=").decode("ascii")


def check_file_access(request: Request, token: str | None, operation: str) -> None:
    """Admit a /files request that has the token or a valid signature for `operation` (read or write).

    Raises `HTTPError` (401), worded as E2B's clients expect.
    """
    if token is None:
        return
    given = request.headers.get(ACCESS_TOKEN_HEADER, "")
    if given:
        if not _same(given, token):
            raise HTTPError(401, "access token present in header but does not match")
        return
    query = request.query_params
    signed = query.get("signature")
    if signed is None:
        raise HTTPError(401, "missing signature query parameter")
    expiration = _expiration(query)
    wanted = signature(query.get("path", ""), operation, query.get("username", ""), token, expiration)
    if not _same(signed, wanted):
        raise HTTPError(401, "invalid signature")
    if expiration is not None and expiration < time.time():
        raise HTTPError(401, "signature is already expired")


def _expiration(query: QueryParams) -> int | None:
    text = query.get("signature_expiration")
    if text is None:
        return None
    if not text.lstrip("-").isdigit() or len(text) > 18:
        raise HTTPError(400, "signature_expiration must be an integer")
    return int(text)
