"""Short-lived children of the launcher: work that takes long, or that must not have the launcher's power."""

import contextlib
import json
import os
import signal
from collections.abc import Callable
from typing import Any

from ringfence.engine.isolation import linux, userns
from ringfence.engine.launcher.records import SandboxRecord

MAX_ANSWER = 4096
_MOST = 1 << 53


def in_child(work: Callable[[], Any], *needed: int) -> tuple[int, int]:
    """Do `work` in a child that has no descriptors but those `needed`.

    A pipe that its result, or its error, will come from (see `result_of`), and the child's pid.
    """
    answer, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        result: dict[str, Any]
        try:
            settle({end, *needed})
            result = {"result": work()}
        except BaseException as error:
            result = {"error": (str(error) or type(error).__name__)[: MAX_ANSWER // 8]}
        with contextlib.suppress(OSError):
            os.write(end, json.dumps(result).encode())
        os._exit(0)
    os.close(end)
    return answer, pid


def give_up_power(record: SandboxRecord, seconds: int = 0) -> None:
    """In such a child: keep only the power over one sandbox, and end after so many seconds, if any."""
    signal.alarm(seconds)
    plan = record.template.plan
    if not plan.single:
        os.setgroups([])
    userns.enter(record.slot_fd, plan.guest_uid())
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)  # forgotten with the change of ids


def result_of(answer: int) -> dict[str, Any]:
    """What has come from a pipe of `in_child`, as ``result`` or ``error``; the pipe is closed.

    The child may have been taken over by what it worked on. So a result is nothing, or numbers by name.
    """
    data = os.read(answer, MAX_ANSWER)
    os.close(answer)
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        message = None
    match message:
        case {"result": None}:
            return {"result": None}
        case {"result": {"bytes": size, **more}} if _is_count(size) and _is_count(more.get("entries", 0)):
            return {"result": {"bytes": size, "entries": more.get("entries", 0)}}
        case {"error": str(text)}:
            return {"error": text[: MAX_ANSWER // 8] or "it does not say why"}
    return {"error": "the process that worked on it ended early"}


def _is_count(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < _MOST


def settle(needed: set[int]) -> None:
    """Become a helper: die with the launcher, and let go of its signals and descriptors."""
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    first = 3
    for fd in sorted(needed):
        if fd > first:
            linux.close_range(first, fd - 1)
        first = fd + 1
    linux.close_range(first)
