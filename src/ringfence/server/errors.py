"""Errors of the control plane, in the shape that every E2B SDK parses.

::

    ApiError                    a refusal with an HTTP status; the body is {"code", "message"[, "error_code"]}
"""

from collections.abc import Mapping

from starlette.responses import JSONResponse

from ringfence.core.errors import (
    ConfigurationError,
    KernelStateError,
    LauncherError,
    LimitError,
    RingfenceError,
    SandboxNotFoundError,
    SandboxStartError,
    TemplateError,
    TierUnavailableError,
    UnsupportedHostError,
    VolumeError,
)

_STATUS_OF_VOLUME = {
    "missing": 404,
    "exists": 409,
    "invalid": 400,
    "full": 507,
    "denied": 403,
    "busy": 503,
    "unsupported": 400,
}
_STATUS_OF: tuple[tuple[type[RingfenceError], int], ...] = (
    (SandboxNotFoundError, 404),
    (TemplateError, 404),
    (LimitError, 429),
    (ConfigurationError, 400),
    (SandboxStartError, 500),
    (KernelStateError, 409),
    (LauncherError, 503),
    (TierUnavailableError, 400),
    (UnsupportedHostError, 501),
    (RingfenceError, 500),
)


NOT_IMPLEMENTED = "not implemented:"
"""How the message of every answer begins that refuses what E2B has and this server has not."""


class ApiError(Exception):
    """An answer that is an error. `status` is the HTTP status, `message` is shown to the caller.

    error_code: E2B's machine-readable code, where one is defined for the case.
    headers: further response headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        error_code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.error_code = error_code
        self.headers = dict(headers or {})

    def response(self) -> JSONResponse:
        """The HTTP answer for this error."""
        return error_response(self.status, self.message, self.error_code, self.headers)


def error_response(
    status: int,
    message: str,
    error_code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """An error answer. Both ``code`` and ``message`` are always there: the generated clients require them."""
    body: dict[str, object] = {"code": status, "message": message}
    if error_code is not None:
        body["error_code"] = error_code
    return JSONResponse(body, status_code=status, headers=dict(headers or {}))


def not_implemented(what: str) -> ApiError:
    """The answer to something E2B has and this server does not."""
    return ApiError(501, f"{NOT_IMPLEMENTED} {what}")


def quota_reached(message: str) -> ApiError:
    """A standing limit is reached; the SDK is told not to try again by itself, since waiting won't help."""
    return ApiError(429, message, headers={"Should-Retry": "false"})


def from_engine(error: RingfenceError) -> ApiError:
    """The answer for an error of the engine. Its messages are written for users and hold no secrets."""
    status = next(status for kind, status in _STATUS_OF if isinstance(error, kind))
    if isinstance(error, VolumeError):
        status = _STATUS_OF_VOLUME.get(error.kind, 500)
    if status == 429:
        return quota_reached(str(error))
    return ApiError(status, str(error))
