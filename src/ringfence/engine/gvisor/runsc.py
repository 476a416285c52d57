"""The installed runsc: where it is, what it can, and on which platform it runs here.

A *platform* is how gVisor catches the system calls of what it runs: ``systrap`` (since 2023), ``ptrace``
(before, slow) or ``kvm`` (needs /dev/kvm). See https://gvisor.dev/docs/architecture_guide/platforms/.
"""

import asyncio
import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from ringfence.core.errors import TierUnavailableError

PLATFORMS = ("systrap", "ptrace", "kvm")
_AUTOMATIC = ("systrap", "ptrace")
"""kvm only when it is asked for: it would hand every sandbox a device of the host."""
_PROBE_SECONDS = 20
_QUESTION_SECONDS = 10
_TRUE = "/bin/true"
INSTALL = (
    "install runsc: `apt install runsc` on Debian and Ubuntu, or as "
    "https://gvisor.dev/docs/user_guide/install/ says; RINGFENCE_RUNSC names its path "
    "when it is not on the PATH"
)


@dataclass(frozen=True)
class Runtime:
    """A runsc that runs here. flags: the options that this version knows."""

    path: str
    version: str
    platform: str
    flags: tuple[str, ...]

    @property
    def detail(self) -> str:
        """For people."""
        return f"runsc {self.version} on platform {self.platform} ({self.path})"


def find() -> str:
    """The path of runsc. Raises TierUnavailableError, which says how to install it."""
    asked = os.environ.get("RINGFENCE_RUNSC")
    path = shutil.which(asked or "runsc", path=None if asked else _search_path())
    if path is None:
        missing = f"{asked} (RINGFENCE_RUNSC) is no program" if asked else "runsc is not installed"
        raise TierUnavailableError(f"isolation gvisor is not available: {missing}; {INSTALL}")
    return os.path.realpath(path)


def _search_path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/bin", "/usr/bin", "/usr/local/sbin"])


async def detect(platform: str, cache_dir: Path) -> Runtime:
    """Find runsc and try its platforms; what was found out is kept in `cache_dir` for the same program.

    platform: one of `PLATFORMS`, or ``auto``. Raises TierUnavailableError with the remedy.
    """
    path = find()
    about = await asyncio.to_thread(os.stat, path)
    key = [path, about.st_size, about.st_mtime_ns, os.uname().release, os.geteuid(), platform]
    cache = cache_dir / "gvisor.json"
    if (known := _read(cache, key)) is not None:
        return known
    runtime = await _examine(path, platform)
    _write(cache, key, runtime)
    return runtime


def _read(cache: Path, key: list[object]) -> Runtime | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(cache.read_text())
        if kept["key"] == key:
            return Runtime(**{**kept["runtime"], "flags": tuple(kept["runtime"]["flags"])})
    return None


def _write(cache: Path, key: list[object], runtime: Runtime) -> None:
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        fresh = cache.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps({"key": key, "runtime": asdict(runtime)}))
        fresh.replace(cache)


async def _examine(path: str, asked: str) -> Runtime:
    status, text = await _run([path, "--version"], _QUESTION_SECONDS)
    found = re.search(r"runsc version (\S+)", text)
    if status != 0 or found is None:
        raise TierUnavailableError(f"isolation gvisor is not available: {path} does not run: {text[-300:]}")
    _, text = await _run([path, "flags"], _QUESTION_SECONDS)
    flags = tuple(re.findall(r"^\s+-(\S+)", text, re.MULTILINE))
    problems = []
    for platform in _AUTOMATIC if asked == "auto" else (asked,):
        problem = await _try_platform(path, platform, flags)
        if problem is None:
            return Runtime(path, found[1], platform, flags)
        problems.append(f"{platform}: {problem}")
    raise TierUnavailableError(
        f"isolation gvisor is not available: runsc {found[1]} cannot run here ({'; '.join(problems)}). "
        "RINGFENCE_GVISOR_PLATFORM chooses another platform: " + ", ".join(PLATFORMS)
    )


async def _try_platform(path: str, platform: str, flags: tuple[str, ...]) -> str | None:
    """Run ``true`` under gVisor; what is wrong, or None."""
    if platform == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "/dev/kvm is not there, or not for this user"
    with tempfile.TemporaryDirectory(prefix="ringfence-gvisor-") as state:
        command = [path, f"--root={state}", f"--platform={platform}", "--network=none", "--ignore-cgroups"]
        if os.geteuid() != 0:
            command.append("--rootless")
        status, text = await _run([*command, "do", _TRUE], _PROBE_SECONDS)
    if status == 0:
        return None
    return "it did not answer" if status is None else (text.strip().splitlines() or ["it failed"])[-1][-300:]


async def _run(command: list[str], seconds: float) -> tuple[int | None, str]:
    """Status (None: it took too long) and output. All that it started ends with it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-m", "ringfence.engine.gvisor.attempt", str(seconds), *command,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        output, _ = await process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
        raise
    text = output.decode("utf-8", "replace")
    return (None if process.returncode == 124 else process.returncode), text
