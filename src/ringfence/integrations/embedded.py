"""The embedded server: a Ringfence server on loopback that belongs to this process and ends with it.

Its life hangs on a pipe: the server holds the reading end and leaves when it reads end-of-file, which the
kernel sees to even when this process is killed. It gets an environment made from a list of allowed names, a
random key, and no standard input.
"""

import asyncio
import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ringfence.core.errors import BackendError
from ringfence.core.ids import new_api_key

Progress = Callable[[str], None]
"""Told, on the event loop, what a start-up that takes longer than a second is doing."""

_log = logging.getLogger(__name__)

# What the server needs of this process's environment: where things are, how to reach a package index when a
# template is built for the first time, and its own settings. Nothing else: no keys, no tokens.
_ALLOWED = frozenset(
    """
    PATH HOME USER LOGNAME LANG LANGUAGE TZ TMPDIR XDG_CACHE_HOME XDG_CONFIG_HOME XDG_DATA_HOME XDG_STATE_HOME
    XDG_RUNTIME_DIR DBUS_SESSION_BUS_ADDRESS SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE HTTP_PROXY
    HTTPS_PROXY
    NO_PROXY ALL_PROXY http_proxy https_proxy no_proxy all_proxy
    """.split()  # noqa: SIM905
)
_ALLOWED_PREFIXES = ("LC_", "UV_", "PIP_", "RINGFENCE_")
# These choose and authenticate *this* process's backend; the embedded server is the backend.
_REFUSED = frozenset(
    """
    RINGFENCE_URL RINGFENCE_API_KEY RINGFENCE_BACKEND RINGFENCE_TEMPLATE RINGFENCE_DATA_DIR RINGFENCE_HOST
    RINGFENCE_PORT
    """.split()  # noqa: SIM905
)
_OURS = ("RINGFENCE_MCP_", "RINGFENCE_AGENT_")
"""What is about this process alone, tokens among it."""
DEFAULT_TEMPLATE = "code-interpreter-v1"
"""What the SDK asks for when no template is named; so only this one is warmed."""

_GRACE = 10.0
_TAIL_LINES = 40


def server_environment(environ: Mapping[str, str], api_key: str) -> dict[str, str]:
    """The embedded server's whole environment: the allowed part of `environ`, and its key."""
    allowed = {
        name: value
        for name, value in environ.items()
        if name not in _REFUSED
        and not name.startswith(_OURS)
        and (name in _ALLOWED or name.startswith(_ALLOWED_PREFIXES))
    }
    return {**allowed, "RINGFENCE_API_KEY": api_key}


def _bypass_proxies() -> None:
    """Let no proxy stand between us and our own loopback: the SDK's HTTP library takes proxies from the
    environment.
    """
    for name in ("NO_PROXY", "no_proxy"):
        hosts = [host for host in os.environ.get(name, "").split(",") if host]
        if "127.0.0.1" not in hosts:
            os.environ[name] = ",".join([*hosts, "127.0.0.1"])


@dataclass
class EmbeddedServer:
    """A running embedded server. `url` and `api_key` are all that a client needs."""

    url: str
    api_key: str = field(repr=False)
    isolation: dict[str, Any] | None
    templates: tuple[str, ...]
    _child: "_Child" = field(repr=False)

    @classmethod
    async def start(
        cls, *, template: str | None, start_timeout: float, progress: Progress | None = None
    ) -> "EmbeddedServer":
        """Start a server and wait until its templates are warmed, `start_timeout` seconds at most.

        A `BackendError` carries the server's own last words when it does not get ready.
        """
        _bypass_proxies()
        child = await asyncio.to_thread(_Child, template)
        try:
            async with asyncio.timeout(start_timeout):
                ready = await _wait_until_ready(child, progress)
            return cls(
                url=ready["url"],
                api_key=child.api_key,
                isolation=ready.get("isolation"),
                templates=tuple(ready.get("templates") or ()),
                _child=child,
            )
        except TimeoutError:
            await _stop(child)
            raise BackendError(
                f"the embedded server was not ready after {start_timeout:.0f} s.\n{child.tail()}"
            ) from None
        except BaseException:
            await _stop(child)
            raise

    def running(self) -> bool:
        """Whether the server's process still lives."""
        return self._child.lives()

    async def stop(self) -> None:
        """End the server, and with it every sandbox it has; returns when it is gone."""
        await _stop(self._child)


class _Child:
    """The server's process, the pipes to it, and its directory."""

    def __init__(self, template: str | None) -> None:
        _sweep()
        self.api_key = new_api_key()
        self.directory = _make_directory()
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self.on_line: Callable[[str], None] | None = None
        self._ended = False
        lifeline, self._lifeline = os.pipe()
        self.ready, ready = os.pipe()
        try:
            self.process = self._spawn(template, lifeline, ready)
        except BaseException:
            os.close(self._lifeline)
            os.close(self.ready)
            shutil.rmtree(self.directory, ignore_errors=True)
            raise
        finally:
            os.close(lifeline)
            os.close(ready)
        self._relay = threading.Thread(target=self._relay_output, name="embedded-server-output", daemon=True)
        self._relay.start()

    def _spawn(self, template: str | None, lifeline: int, ready: int) -> "subprocess.Popen[bytes]":
        # -P: the directory we are in is not searched for modules.
        command = [sys.executable, "-P", "-m", "ringfence", "serve", "--host", "127.0.0.1", "--port", "0"]
        command += [
            "--lifeline-fd",
            str(lifeline),
            "--ready-fd",
            str(ready),
            "--data-dir",
            str(self.directory),
        ]
        if template is not None or "RINGFENCE_TEMPLATES" not in os.environ:
            command += ["--templates", template or DEFAULT_TEMPLATE]
        command.append("--gradual-warmup")  # somebody waits: a sandbox now, fully warmed ones later
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=server_environment(os.environ, self.api_key),
            pass_fds=(lifeline, ready),
            # Its own session: a Ctrl-C at the terminal reaches us, and we end the server in order.
            start_new_session=True,
            cwd=self.directory,
        )

    def _relay_output(self) -> None:
        output = self.process.stdout
        if output is None:
            return
        while raw := output.readline(8192):
            line = raw.decode(errors="replace").rstrip()
            if line:
                self._tail.append(line)
                _log.info("server: %s", line)
                if (callback := self.on_line) is not None:
                    callback(line)

    def lives(self) -> bool:
        # A killed process is a zombie, and answers nobody, until its last thread has ended; only then
        # can it be waited for.
        return self.process.poll() is None and _state(self.process.pid) not in ("Z", "X")

    def tail(self) -> str:
        return "\n".join(self._tail) or "(it wrote nothing)"

    def end(self) -> None:
        """Blocking: let go of the lifeline, then insist. Once: the descriptors' numbers are others' then."""
        if self._ended:
            return
        self._ended = True
        for descriptor in (self._lifeline, self.ready):
            os.close(descriptor)
        for insist in (self.process.terminate, self.process.kill):
            try:
                self.process.wait(_GRACE)
                break
            except subprocess.TimeoutExpired:
                insist()
        self.process.wait()
        self._relay.join(1.0)
        if self.process.stdout is not None and not self._relay.is_alive():
            self.process.stdout.close()
        shutil.rmtree(self.directory, ignore_errors=True)
        with contextlib.suppress(OSError):  # others still have theirs in it
            self.directory.parent.rmdir()


async def _stop(child: _Child) -> None:
    # A thread, shielded: whatever is being cancelled around us, the server goes.
    await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, child.end))


async def _wait_until_ready(child: _Child, progress: Progress | None) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    received = bytearray()
    complete = asyncio.Event()

    def read() -> None:
        chunk = os.read(child.ready, 65536)
        received.extend(chunk)
        if not chunk or b"\n" in chunk:
            loop.remove_reader(child.ready)
            complete.set()

    loop.add_reader(child.ready, read)
    try:
        await _wait_with_progress(child, complete, progress)
    finally:
        loop.remove_reader(child.ready)
    line, end, _ = received.partition(b"\n")
    if end:
        ready: dict[str, Any] = json.loads(line)
        return ready
    await _stop(child)
    raise BackendError(
        f"the embedded server did not start (exit status {child.process.returncode}):\n{child.tail()}"
    )


async def _wait_with_progress(child: _Child, complete: asyncio.Event, progress: Progress | None) -> None:
    """Wait for `complete` or the child's end; from the first second on, pass on what the child says."""
    loop = asyncio.get_running_loop()
    first = True
    while not complete.is_set() and child.lives():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(complete.wait(), 1.0)
        if first and progress is not None and not complete.is_set():
            first = False
            progress("starting the embedded sandbox server")
            child.on_line = lambda line: _call_soon(loop, progress, line)
    child.on_line = None


def _call_soon(loop: asyncio.AbstractEventLoop, progress: Progress, line: str) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(progress, line)


def _parent() -> Path:
    """The directory, ours alone, in which embedded servers keep their files."""
    parent = Path(tempfile.gettempdir()) / f"ringfence-{os.getuid()}"
    parent.mkdir(mode=0o700, exist_ok=True)
    if parent.lstat().st_uid != os.getuid() or parent.is_symlink():
        raise BackendError(f"{parent} belongs to somebody else; remove it or set TMPDIR")
    return parent


def _make_directory() -> Path:
    """A directory for one server, named after this process, by which `_sweep` knows when it is rubbish."""
    while True:
        # Another process's last server may just have removed the parent.
        with contextlib.suppress(FileNotFoundError):
            prefix = f"{os.getpid()}-{_start_time(os.getpid())}-"
            return Path(tempfile.mkdtemp(prefix=prefix, dir=_parent()))


def _start_time(pid: int) -> str | None:
    """When process `pid` started, in the kernel's clock ticks; None when there is no such process."""
    return _status_field(pid, 22)


def _state(pid: int) -> str | None:
    """The state of process `pid`, one letter; None when there is no such process."""
    return _status_field(pid, 3)


def _status_field(pid: int, number: int) -> str | None:
    """A field of ``/proc/PID/stat``, counted from 1 as in proc(5); one that follows the name."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[number - 3]
    except (OSError, IndexError):
        return None


def _sweep() -> None:
    """Remove what servers of processes that were killed have left."""
    with contextlib.suppress(FileNotFoundError):
        for directory in list(_parent().iterdir()):
            pid, _, rest = directory.name.partition("-")
            if pid.isdecimal() and _start_time(int(pid)) != rest.partition("-")[0]:
                shutil.rmtree(directory, ignore_errors=True)


class _Shared:
    """One server for all users of it on an event loop; it ends with the last."""

    def __init__(self, task: "asyncio.Task[EmbeddedServer]") -> None:
        self.task = task
        self.users = 0


_shared: dict[tuple[asyncio.AbstractEventLoop, str | None], _Shared] = {}


@contextlib.asynccontextmanager
async def embedded_server(
    *, template: str | None, start_timeout: float, progress: Progress | None = None
) -> AsyncIterator[EmbeddedServer]:
    """The embedded server of this process, started at the first use and ended with the last."""
    key = (asyncio.get_running_loop(), template)
    entry = _shared.get(key)
    if entry is None or _is_dead(entry.task):
        start = EmbeddedServer.start(template=template, start_timeout=start_timeout, progress=progress)
        entry = _shared[key] = _Shared(asyncio.create_task(start))
    entry.users += 1
    try:
        yield await asyncio.shield(entry.task)
    finally:
        entry.users -= 1
        if entry.users == 0:
            if _shared.get(key) is entry:
                del _shared[key]
            await _finish(entry.task)


def _is_dead(task: "asyncio.Task[EmbeddedServer]") -> bool:
    if not task.done():
        return False
    return task.cancelled() or task.exception() is not None or not task.result().running()


async def _finish(task: "asyncio.Task[EmbeddedServer]") -> None:
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
    if not task.cancelled() and task.exception() is None:
        await task.result().stop()
