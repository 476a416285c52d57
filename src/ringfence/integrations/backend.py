"""The backend: the thing that answers the E2B SDK, and how to reach it.

All three (E2B's cloud, an embedded server, a server elsewhere) speak the same protocol; here is the only
place that knows which
one it is. What a user of a backend needs is `Backend.sdk_options`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ringfence.core.config import Settings
from ringfence.core.errors import BackendError
from ringfence.core.placement import BackendName
from ringfence.integrations.embedded import EmbeddedServer, Progress, embedded_server


def level_of(isolation: dict[str, Any] | None) -> str | None:
    """How a server's report of its isolation is named in results, e.g. ``strict`` or ``strict, gVisor``."""
    level = (isolation or {}).get("level")
    return f"{level}, gVisor" if level and (isolation or {}).get("tier") == "gvisor" else level


@dataclass(frozen=True)
class Backend:
    """A backend that is ready to be used.

    isolation: the server's own report of the layers in force (``level`` and ``layers``); None where it does
    not say (E2B).
    template: the template sandboxes are made from; None is the backend's default.
    request_timeout: seconds for one HTTP request.
    """

    name: BackendName
    api_url: str | None
    sandbox_url: str | None
    api_key: str = field(repr=False)
    template: str | None
    isolation: dict[str, Any] | None
    request_timeout: float = 60
    domain: str | None = None
    embedded: EmbeddedServer | None = field(default=None, repr=False)

    def sdk_options(self) -> dict[str, Any]:
        """The connection's keyword arguments for `AsyncSandbox.create`, `connect`, `list` and the like."""
        options: dict[str, Any] = {
            "api_key": self.api_key,
            "request_timeout": self.request_timeout,
            "debug": False,
        }
        given = {"api_url": self.api_url, "sandbox_url": self.sandbox_url, "domain": self.domain}
        return options | {name: value for name, value in given.items() if value is not None}

    @property
    def isolation_level(self) -> str | None:
        """The server's level of isolation, and the tier of its sandboxes where that is a harder one."""
        return level_of(self.isolation)

    def describe(self) -> str:
        """One phrase for results and logs: the backend's name, where it is, and its level of isolation."""
        if self.name == "e2b":
            return f"e2b ({self.api_url or self.domain or 'cloud'})"
        level = self.isolation_level or "unknown"
        place = "local" if self.name == "local" else f"remote ({self.api_url})"
        return f"{place}, isolation {level}"

    def running(self) -> bool:
        """False when the embedded server has died; a server elsewhere is taken to run."""
        return self.embedded is None or self.embedded.running()


@asynccontextmanager
async def open_backend(
    settings: Settings, *, name: BackendName | None = None, progress: Progress | None = None
) -> AsyncIterator[Backend]:
    """The backend `name`, or the one that `settings` select, for as long as the context lasts.

    The embedded server is started when it is that one, and ended on the way out; `progress` is told about a
    start that takes longer than a second. `ConfigurationError` for settings that contradict each other,
    `BackendError` for a backend that does not start or does not answer.
    """
    name = name or settings.choose_backend()
    if name == "local":
        server = embedded_server(
            template=settings.template, start_timeout=settings.start_timeout, progress=progress
        )
        async with server as running:
            yield _local(settings, running)
    else:
        backend = backend_elsewhere(settings, name)
        if name == "remote":
            health = await fetch_health(backend)
            backend = replace(backend, isolation=health.get("isolation"))
        yield backend


def _local(settings: Settings, server: EmbeddedServer) -> Backend:
    return Backend(
        name="local",
        api_url=server.url,
        sandbox_url=server.url,
        api_key=server.api_key,
        template=settings.template,
        isolation=server.isolation,
        request_timeout=settings.request_timeout,
        embedded=server,
    )


def backend_elsewhere(settings: Settings, name: Literal["remote", "e2b"]) -> Backend:
    """A backend that runs without us, and is not asked yet: what it says of its isolation is missing.

    Raises BackendError when the settings do not name it.
    """
    key = settings.api_key if name == "remote" else settings.e2b_api_key
    if key is None or (name == "remote" and settings.url is None):
        raise BackendError("no server is configured" if name == "remote" else "no E2B key is configured")
    return Backend(
        name=name,
        api_url=settings.url if name == "remote" else settings.e2b_api_url,
        sandbox_url=settings.url if name == "remote" else settings.e2b_sandbox_url,
        api_key=key.get_secret_value(),
        template=settings.template,
        isolation=None,
        request_timeout=settings.request_timeout,
        domain=settings.e2b_domain if name == "e2b" else None,
    )


async def fetch_health(backend: Backend) -> dict[str, Any]:
    """A server's ``GET /health``. Raises BackendError, which says what is wrong with it."""
    import httpx  # the SDK's HTTP client; imported only where a server elsewhere is used

    url = backend.api_url
    try:
        async with httpx.AsyncClient(timeout=backend.request_timeout) as client:
            response = await client.get(f"{url}/health", headers={"X-API-Key": backend.api_key})
    except httpx.HTTPError as error:
        raise BackendError(f"no answer from the server at {url}: {error or type(error).__name__}") from error
    if response.status_code != 200:
        raise BackendError(
            f"the server at {url} answers /health with {response.status_code}, not as Ringfence does"
        )
    try:
        health = response.json()
    except ValueError:
        health = None
    if not isinstance(health, dict):
        raise BackendError(f"what answers at {url} is not a Ringfence server")
    return health
