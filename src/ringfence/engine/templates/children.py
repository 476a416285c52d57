"""Run the programs that build a template: bounded output, told as it comes, nothing inherited by accident."""

import os
import select
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ringfence.core.errors import TemplateError

_QUIET_S = 5.0
_TAIL_LINES = 30
_LINE_BYTES = 4096


def run(
    command: Sequence[str],
    *,
    what: str,
    cwd: Path,
    env: Mapping[str, str],
    lock: int,
    on_line: Callable[[str], None],
    on_quiet: Callable[[float], None],
) -> None:
    """Run `command` to its end. Raises `TemplateError` (naming `what`, with the end of the output) when it
    fails.

    on_line: called with each line of its output (both streams).
    on_quiet: called with the seconds since the start whenever nothing was said for five seconds.
    lock: descriptor the child inherits: should this process be killed, the builder's lock is held until the
        child ends too.
    """
    try:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(lock,),
            umask=0o022,
        )
    except OSError as error:
        raise TemplateError(f"{what}: cannot run {command[0]}: {error}") from error
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    with process:
        try:
            for line in _lines(process, on_quiet):
                tail.append(line)
                on_line(line)
            status = process.wait()
        except BaseException:
            process.kill()
            raise
    if status != 0:
        raise TemplateError("\n".join([f"{what} failed (status {status}):", *tail]))


def _lines(process: subprocess.Popen[bytes], on_quiet: Callable[[float], None]) -> Iterator[str]:
    """The child's lines as they come, each cut at 4 KiB."""
    if process.stdout is None:  # pragma: no cover - a pipe was asked for
        return
    descriptor = process.stdout.fileno()
    started = time.monotonic()
    pending = b""
    while True:
        if not select.select([descriptor], [], [], _QUIET_S)[0]:
            on_quiet(time.monotonic() - started)
            continue
        chunk = os.read(descriptor, 65536)
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines if chunk else [*lines, pending]:
            if text := line[:_LINE_BYTES].decode(errors="replace").strip():
                yield text
        if not chunk:
            return
        pending = pending[:_LINE_BYTES]
