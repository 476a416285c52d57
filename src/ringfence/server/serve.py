"""``ringfence serve``: start, say so, run, and stop without leaving anything behind."""

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import resource
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import uvicorn

from ringfence import __version__
from ringfence.core.errors import ConfigurationError, LauncherError, TemplateError
from ringfence.core.log import configure_logging
from ringfence.engine.engine import Engine
from ringfence.engine.proof.startup import prove, require_level
from ringfence.server.app import App
from ringfence.server.engine_settings import engine_settings
from ringfence.server.keys import keep_key, load_keys
from ringfence.server.listener import bind, is_loopback, listen, url_of
from ringfence.server.network import NetworkRequests
from ringfence.server.pausing import Pausing
from ringfence.server.protocol import ClientConnection
from ringfence.server.registry import Registry
from ringfence.server.sampler import sample_forever
from ringfence.server.secrets.service import Secrets
from ringfence.server.settings import ServeSettings
from ringfence.server.snapshot_store import SnapshotStore
from ringfence.server.snapshots import Snapshots
from ringfence.server.stop import Stop
from ringfence.server.store import Store
from ringfence.server.templates.service import TemplateService
from ringfence.server.tls import Certificate, make_certificate, own_certificate
from ringfence.server.volumes.store import VolumeStore
from ringfence.server.volumes.volumes import Volumes

logger = logging.getLogger(__name__)

_KEEP_ALIVE_SECONDS = 620
"""Longer than any SDK keeps an idle connection, so that it is never the server that closes one in use."""
_GRACE_SECONDS = 3
_DESCRIPTORS = 65536


def run(settings: ServeSettings) -> int:
    """Run a server in the foreground until SIGTERM, SIGINT or the lifeline's end; the process's exit code.

    Raises ConfigurationError (bad address, port or data directory in use, weak key), IsolationError (less is
    in force than was asked for), and what the engine's start raises: UnsupportedHostError, TemplateError.
    """
    configure_logging(settings.log_level)
    _allow_many_connections()
    with _locked(settings.data_dir), contextlib.closing(bind(settings.host, settings.port)) as listener:
        return asyncio.run(_Serving(settings, listener).run())


def _certificate(settings: ServeSettings) -> Certificate | None:
    """What to serve HTTPS with; None: plain HTTP. Raises ConfigurationError."""
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise ConfigurationError("--tls-cert and --tls-key belong together: give both")
    if settings.tls_cert is not None and settings.tls_key is not None:
        return own_certificate(settings.tls_cert, settings.tls_key)
    if not settings.tls:
        return None
    names = ["localhost", "*.localhost", "127.0.0.1", "::1"]
    if settings.domain:
        domain = settings.domain.partition(":")[0]
        names += [domain, f"*.{domain}"]
    if settings.host not in names and settings.host not in ("0.0.0.0", "::"):  # noqa: S104 - compared only
        names.append(settings.host)
    return make_certificate(settings.data_dir / "tls", names)


class _Serving:
    """One run of a server."""

    def __init__(self, settings: ServeSettings, listener: socket.socket) -> None:
        self._settings = settings
        self._listener = listener
        self._certificate = _certificate(settings)
        if self._certificate is None and not is_loopback(listener) and not settings.plain_http:
            raise ConfigurationError(
                f"{settings.host} is not loopback, and without TLS keys and data would cross the network "
                "unencrypted: give --tls-cert and --tls-key, or --tls, or say --plain-http if a proxy with "
                "TLS is in front or you trust the network"
            )
        self._url = url_of(listener, "https" if self._certificate else "http")
        self._engine_settings = engine_settings(settings, listener.getsockname()[1])
        self._stop = Stop()

    async def run(self) -> int:
        self._stop.watch(self._settings.lifeline_fd)
        with contextlib.ExitStack() as stack:
            store = stack.enter_context(contextlib.closing(Store(self._database)))
            keys, made_key = load_keys(store, self._settings.preset_keys())
            secrets = Secrets(self._database, self._settings.data_dir / "secrets.key")
            stack.enter_context(contextlib.closing(secrets))
            secrets.check()
            starting = asyncio.create_task(Engine.start(self._engine_settings, self._progress))
            engine = await self._unless_stopped(starting)
            if engine is None:
                return 0
            try:
                report = await prove(engine, self._engine_settings.cache_dir)
                require_level(report, self._settings.level)
                stack.enter_context(contextlib.closing(snapshot_store := SnapshotStore(self._database)))
                snapshots = Snapshots(engine, snapshot_store, self._settings.max_snapshots)
                stack.enter_context(contextlib.closing(volume_store := VolumeStore(self._database)))
                volumes = Volumes(
                    engine,
                    volume_store,
                    most=self._settings.max_volumes,
                    size_mb=self._settings.volume_size_mb,
                )
                registry = self._registry(engine, snapshots, volumes, NetworkRequests(engine, secrets))
                secrets.listeners.append(registry.refresh_secrets)
                async with (
                    self._templates(engine, registry) as templates,
                    _background(sample_forever, engine, registry),
                ):
                    await snapshots.recover(self._snapshot_dir)
                    await volumes.recover()
                    app = App(
                        engine,
                        registry,
                        Pausing(engine, registry, max_paused=self._settings.max_paused),
                        keys,
                        templates,
                        volumes,
                        secrets,
                        volume_domain=self._settings.domain,
                        domain=self._domain(),
                        allowed_hosts=self._settings.allowed_hosts,
                        max_body=self._settings.max_upload_mb << 20,
                    )
                    await self._serve(app, engine, registry, lambda: self._announce(engine, store, made_key))
                await snapshots.close()
                await volumes.close()
            finally:
                await engine.aclose()
        return 0

    async def _unless_stopped(self, starting: "asyncio.Task[Engine]") -> Engine | None:
        """The engine; None when the server was told to stop before it stood."""
        stopping = asyncio.create_task(self._stop.asked.wait())
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if starting.done():
            return starting.result()
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError, TemplateError):
            await (await starting).aclose()
        return None

    def _progress(self, message: str) -> None:
        """Show it. A template is built in a thread, which cannot be cancelled but comes by here every few
        seconds: raises TemplateError when the server was told to stop, which ends the build and removes
        its leftovers.
        """
        if self._stop.asked.is_set():
            raise TemplateError("the server was told to stop")
        _show_progress(message)

    async def _serve(self, app: App, engine: Engine, registry: Registry, ready: Callable[[], None]) -> None:
        server = _Server(
            uvicorn.Config(
                app,
                http=ClientConnection,
                ws="none",
                lifespan="off",
                loop="none",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=_GRACE_SECONDS,
                ssl_certfile=self._certificate.chain if self._certificate else None,
                ssl_keyfile=self._certificate.key if self._certificate else None,
            )
        )
        listen(self._listener)
        serving = asyncio.create_task(server.serve(sockets=[self._listener]))
        ends = [asyncio.create_task(event.wait()) for event in (self._stop.asked, engine.ended)]
        ready()
        await asyncio.wait((serving, *ends), return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
        if not engine.ended.is_set():
            await registry.close()
        server.should_exit = True
        await serving
        if engine.ended.is_set():
            raise LauncherError(
                "the launcher died, and every sandbox with it; the server ends. Start it again"
            )

    def _templates(self, engine: Engine, registry: Registry) -> TemplateService:
        return TemplateService(
            engine,
            registry,
            data_dir=self._settings.data_dir,
            image_dir=self._settings.image_dir,
            registries=self._settings.image_registries,
            ceiling=engine.ceiling,
            max_upload=self._settings.max_upload_mb << 20,
        )

    @property
    def _database(self) -> Path:
        return self._settings.data_dir / "ringfence.db"

    @property
    def _snapshot_dir(self) -> Path:
        return self._settings.data_dir / "snapshots"

    def _registry(
        self, engine: Engine, snapshots: Snapshots, volumes: Volumes, network: NetworkRequests
    ) -> Registry:
        return Registry(
            engine,
            snapshots,
            volumes,
            network,
            max_sandboxes=self._settings.max_sandboxes,
            max_timeout=self._settings.max_timeout,
            max_memory_mb=self._settings.max_memory_mb,
        )

    def _domain(self) -> str:
        """Without a domain of the operator's: names under localhost, which browsers take for loopback."""
        return self._settings.domain or f"localhost:{self._listener.getsockname()[1]}"

    def _announce(self, engine: Engine, store: Store, made_key: str | None) -> None:
        """Say that the server is ready: to people on stdout, to the program that started it on `ready_fd`."""
        print(f"Ringfence {__version__} is ready at {self._url}", flush=True)
        if made_key is not None:
            print(f"API key, shown only this once: {made_key}", flush=True)
            keep_key(store, made_key)
        if self._certificate is not None and self._certificate.authority is not None:
            path = self._certificate.authority
            print(f"Clients must trust {path}: SSL_CERT_FILE or NODE_EXTRA_CA_CERTS", flush=True)
        if self._certificate is None and not is_loopback(self._listener):
            logger.warning(
                "listening on %s without TLS: keys and data cross the network unencrypted", self._url
            )
        if self._settings.ready_fd is not None:
            account = {
                "url": self._url,
                "isolation": engine.isolation.as_dict(),
                "templates": sorted(engine.templates),
            }
            with contextlib.suppress(BrokenPipeError), os.fdopen(self._settings.ready_fd, "w") as ready:
                ready.write(json.dumps(account) + "\n")


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # `_Serving` has its own handlers: sandboxes end before connections are waited for.
        yield


@contextlib.asynccontextmanager
async def _background(
    work: Callable[[Engine, Registry], Coroutine[Any, Any, None]], engine: Engine, registry: Registry
) -> AsyncIterator[None]:
    task = asyncio.create_task(work(engine, registry))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _allow_many_connections() -> None:
    """Every stream takes two descriptors; the usual soft limit of 1024 would be reached soon."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    """Hold the data directory, which one server at a time may use; it is made when it is not there."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (data_dir / "server.lock").open("w")
    except OSError as error:
        raise ConfigurationError(f"cannot use the data directory {data_dir}: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                f"another server uses the data directory {data_dir}; give this one its own with --data-dir"
            ) from None
        yield


def _show_progress(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
