"""The work of ``ringfence run``: a sandbox, the script in it, its output passed through, its files
brought back.
"""

import asyncio
import base64
import contextlib
import importlib.resources
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import httpx
from e2b import AuthenticationException, NotFoundException, SandboxException
from e2b.sandbox.filesystem.filesystem import EntryInfo, FileType
from e2b_code_interpreter import AsyncSandbox, OutputMessage

from ringfence.core.config import Settings
from ringfence.core.errors import BackendError
from ringfence.integrations.backend import Backend, open_backend
from ringfence.integrations.learning import allow_list
from ringfence.integrations.network import LEARN, network_options

HOME = PurePosixPath("/home/user")
_WORK = "/tmp/.ringfence-run"  # noqa: S108 - in the sandbox
_FIGURES = f"{_WORK}/figures"
_TIMED_OUT = 124
_NOT_RUN = 125
_KILLED = 137
_HINTS = {"SIGKILL": ": perhaps it reached the sandbox's limit of memory"}
_MAX_PICTURE = 64 * 1024 * 1024


@dataclass(frozen=True)
class OneShot:
    """What to run. `files` are (host, inside) and `outputs` (inside, host) paths; None means the same name.

    exec_timeout: seconds the script may take. network: what it may reach, see `network_options`.
    """

    name: str
    source: bytes
    args: tuple[str, ...]
    files: tuple[tuple[str, str | None], ...]
    outputs: tuple[tuple[str, str | None], ...]
    figures: Path
    exec_timeout: float
    network: str | None = None


async def run_one_shot(job: OneShot, settings: Settings) -> int:
    """Run `job` in a fresh sandbox of the backend that `settings` select; its exit status. Nothing is
    left behind.
    """
    _end_on_sigterm()
    try:
        async with open_backend(settings, progress=_say) as backend, _sandbox(backend, job) as sandbox:
            status = await _run_in(sandbox, job)
            if job.network == LEARN:
                await _say_what_was_reached(backend, sandbox.sandbox_id)
            return status
    except (BackendError, SandboxException, AuthenticationException, httpx.HTTPError) as error:
        _say(str(error) or type(error).__name__)
        return _NOT_RUN


async def _say_what_was_reached(backend: Backend, sandbox_id: str) -> None:
    reached = await allow_list(backend, sandbox_id)
    if not reached:
        _say("nothing was reached over the network; --network none is enough")
        return
    _say("reached over the network: " + ", ".join(reached))
    _say(f"allow that and nothing else with --network {','.join(reached)}")


def _end_on_sigterm() -> None:
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


@contextlib.asynccontextmanager
async def _sandbox(backend: Backend, job: OneShot) -> AsyncIterator[AsyncSandbox]:
    lease = int(min(job.exec_timeout + 120, 86_400))
    sandbox = await AsyncSandbox.create(
        template=backend.template,
        timeout=lease,
        **network_options(job.network, backend.name),
        **backend.sdk_options(),
    )
    try:
        yield sandbox
    finally:
        with contextlib.suppress(SandboxException, httpx.HTTPError):
            await sandbox.kill()


async def _run_in(sandbox: AsyncSandbox, job: OneShot) -> int:
    try:
        for host, inside in job.files:
            await _upload(sandbox, Path(host), inside)
    except OSError as error:
        _say(f"--file: {error}")
        return _NOT_RUN
    config = await _prepare(sandbox, job)
    script = _Script()
    runner = importlib.resources.files("ringfence.cli").joinpath("script_runner.py").read_text()
    cell = f"{runner}\nrun({config!r})"
    try:
        async with asyncio.timeout(job.exec_timeout):
            while script.more:
                script.more = False
                execution = await sandbox.run_code(
                    cell, on_stdout=script.take, on_stderr=script.take_stderr, timeout=0
                )
                cell = "go_on()"
    except TimeoutError:
        _say(f"ended after its timeout of {job.exec_timeout:g} s")
        script.status = _TIMED_OUT
    else:
        if script.status is None:
            _say(_why(execution.error))
            script.status = _KILLED
        elif script.killed_by is not None:
            _say(f"the script was ended by {script.killed_by}{_HINTS.get(script.killed_by, '')}")
    if not await _bring_back(sandbox, job) and script.status == 0:
        return 1
    return script.status


def _why(error: object) -> str:
    return f"the script did not end by itself: {getattr(error, 'value', None) or 'its process was killed'}"


async def _prepare(sandbox: AsyncSandbox, job: OneShot) -> dict[str, object]:
    """Put the script and its runner into the sandbox; the runner's configuration."""
    from ringfence.cli.script_runner import FIGURES_MODULE

    path = f"{_WORK}/code.py" if job.name in ("-c", "-") else str(HOME / job.name)
    await sandbox.files.write(path, job.source)
    await sandbox.files.write(f"{_WORK}/lib/ringfence_figures.py", FIGURES_MODULE)
    runner = importlib.resources.files("ringfence.cli").joinpath("script_runner.py").read_bytes()
    await sandbox.files.write(f"{_WORK}/runner.py", runner)
    return {
        "path": path,
        "shown": job.name,
        "args": list(job.args),
        "cwd": str(HOME),
        "figures": _FIGURES,
        "library": f"{_WORK}/lib",
        "runner": f"{_WORK}/runner.py",
    }


class _Script:
    """What the runner says, taken apart: bytes go to our own streams at once, the status is kept."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.more = True
        self.killed_by: str | None = None
        self._rest = ""

    def take(self, message: OutputMessage) -> None:
        *lines, self._rest = (self._rest + message.line).split("\n")
        for line in lines:
            tag, _, value = line.partition(" ")
            if tag == "x":
                self.status = int(value)
            elif tag == "m":
                self.more = True
            elif tag == "k":
                self.killed_by = value
            elif tag in ("o", "e"):
                stream = sys.stdout.buffer if tag == "o" else sys.stderr.buffer
                stream.write(base64.b64decode(value))
                stream.flush()

    def take_stderr(self, message: OutputMessage) -> None:
        """The kernel's own standard error, not the script's."""
        sys.stderr.write(message.line)


async def _upload(sandbox: AsyncSandbox, host: Path, inside: str | None) -> None:
    target = HOME / (inside or host.absolute().name)  # noqa: ASYNC240
    if not host.is_dir():  # noqa: ASYNC240
        await _upload_file(sandbox, host, target)
        return
    for path in sorted(host.rglob("*")):  # noqa: ASYNC240
        if path.is_file():
            await _upload_file(sandbox, path, target / path.relative_to(host))


async def _upload_file(sandbox: AsyncSandbox, host: Path, target: PurePosixPath) -> None:
    with host.open("rb") as file:
        await sandbox.files.write(str(target), file)


async def _bring_back(sandbox: AsyncSandbox, job: OneShot) -> bool:
    """Download what was asked for and every shown picture; False when something that was asked for is
    missing.
    """
    complete = True
    for inside, host in job.outputs:
        try:
            await _download(sandbox, inside, Path(host or PurePosixPath(inside).name))
        except (SandboxException, httpx.HTTPError, OSError) as error:
            _say(f"--out {inside}: {error}")
            complete = False
    try:
        await _save_figures(sandbox, job.figures)
    except (SandboxException, httpx.HTTPError, OSError) as error:
        _say(f"the pictures could not be saved: {error}")
        complete = False
    return complete


async def _download(sandbox: AsyncSandbox, inside: str, host: Path) -> None:
    info: EntryInfo = await sandbox.files.get_info(str(HOME / inside))
    if info.type != FileType.DIR:
        await _download_file(sandbox, info.path, host)
        return
    for entry in await sandbox.files.list(info.path, depth=50):
        below = PurePosixPath(entry.path).relative_to(info.path)
        # The sandbox names these paths; none of them may lead out of the directory that was asked for.
        if entry.type == FileType.FILE and not entry.symlink_target and ".." not in below.parts:
            await _download_file(sandbox, entry.path, host / below)


async def _download_file(sandbox: AsyncSandbox, inside: str, host: Path) -> None:
    host.parent.mkdir(parents=True, exist_ok=True)
    with host.open("wb") as file:
        async with await sandbox.files.read(inside, format="stream") as chunks:
            async for chunk in chunks:
                file.write(chunk)


async def _save_figures(sandbox: AsyncSandbox, directory: Path) -> None:
    try:
        entries = await sandbox.files.list(_FIGURES)
    except (NotFoundException, SandboxException):
        return
    pictures = [entry for entry in entries if entry.type == FileType.FILE and entry.size <= _MAX_PICTURE]
    for number, entry in enumerate(sorted(pictures, key=lambda entry: (len(entry.name), entry.name)), 1):
        suffix = ".html" if entry.name.endswith(".html") else ".png"
        target = directory / f"figure-{number}{suffix}"
        await _download_file(sandbox, entry.path, target)
        _say(f"saved {target}")


def _say(message: str) -> None:
    print(f"ringfence: {message}", file=sys.stderr, flush=True)
