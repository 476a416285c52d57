"""The program that runsc starts: imports everything, warms the template's Python, and waits for its orders.

Up to there nothing belongs to a certain sandbox, so gVisor can write this state to an image once and restore
it for each sandbox. Only then the host says which one this is: one message over the socket that is standard
input, with the way out of the network beside it, and the file of the state of kernels that it is a copy of.

The root of the container holds our own Python, which only this process sees, before it changes its root to
``sandbox``, where the template's files are, and gives the power to do so away.
"""

import contextlib
import ctypes
import functools
import json
import os
import random
import resource
import signal
import socket
import traceback
from typing import Any

from ringfence.guest import main as guest_main
from ringfence.guest.config import GuestConfig
from ringfence.guest.doors import PassedDoors
from ringfence.guest.gvisor import nursery
from ringfence.guest.gvisor.gate import BorrowingGate
from ringfence.guest.gvisor.memory import MemoryGuard
from ringfence.guest.gvisor.tasks import TaskLimit
from ringfence.guest.kernel import process

SANDBOX = "/sandbox"
"""Where the template's files are in the root that the container starts with."""
_MAX_MESSAGE = 256 * 1024
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_CAPABILITY_VERSION_3 = 0x20080522
_HIGHEST_CAPABILITY = 40
_KEPT = (0, 1, 3, 4, 5, 6, 7, 8)
"""CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP: over the sandbox's own files and
processes, as PID 1 of the process tier keeps them."""


def main(order: dict[str, Any]) -> None:
    """Warm up, wait, serve. order: ``python`` (path; empty: no kernels), ``modules`` and ``env``."""
    control = socket.socket(fileno=os.dup(0))
    os.set_inheritable(control.fileno(), False)
    try:
        plan = nursery.Plan(order["python"], order["modules"], order["env"], nursery.read_sources())
        tasks = TaskLimit()
        _enter_sandbox()
        warm = nursery.start(plan) if plan.python else None
        control.send(json.dumps({"warm": True, "report": warm.report if warm else {}}).encode())
        data, fds, _, _ = socket.recv_fds(control, _MAX_MESSAGE, 4)
        if not data:
            os._exit(0)
        _serve(control, json.loads(data), fds, plan, warm, tasks)
    except BaseException as error:
        text = f"{type(error).__name__}: {error}\n{traceback.format_exc()[-2000:]}"
        with contextlib.suppress(OSError):
            control.send(json.dumps({"error": text}).encode())
        os._exit(1)


def _serve(
    control: socket.socket,
    orders: dict[str, Any],
    fds: list[int],
    plan: nursery.Plan,
    warm: nursery.NurseryProcess | None,
    tasks: TaskLimit,
) -> None:
    _take_null()
    random.seed(os.urandom(32))  # a restored process has the state of the one that was written down
    for kind, soft, hard in orders["rlimits"]:
        for pid in (0, *([warm.pid] if warm else [])):
            with contextlib.suppress(OSError, ValueError):  # what this gVisor does not know
                resource.prlimit(pid, kind, (soft, hard))
    egress, image = socket.socket(fileno=fds[0]), fds[1] if len(fds) > 1 else None
    ours, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    config = GuestConfig(**orders["guest"])
    tasks.set(config.pids)
    guard = MemoryGuard(config.memory_bytes, frozenset({os.getpid(), warm.pid if warm else 0}), tasks)
    guest_main.run_behind(
        config,
        PassedDoors(control, guard.start, functools.partial(nursery.renew, plan)),
        warm.socket if warm else ours,
        lambda: BorrowingGate(egress),
        None,
        guard,
        image,
    )


def _take_null() -> None:
    """Standard streams lead nowhere: the host's are for the time until here."""
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    if null > 2:
        os.close(null)


def _enter_sandbox() -> None:
    process.set_title("init")
    os.chroot(SANDBOX)
    os.chdir("/")
    os.umask(0o022)
    for number in range(_HIGHEST_CAPABILITY + 1):
        if number not in _KEPT:
            process.prctl(_PR_CAPBSET_DROP, number)  # EINVAL past the last one
    kept = sum(1 << number for number in _KEPT)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)(kept, kept)  # effective and permitted; nothing inheritable
    if ctypes.CDLL(None, use_errno=True).capset(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "capset")
    process.prctl(_PR_SET_NO_NEW_PRIVS, 1)
    process.set_dumpable(False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
