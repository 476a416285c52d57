"""From a fork of the guest zygote to the PID 1 of a sandbox.

The order is the point. Each step needs a power that a later one gives up:

1. join the sandbox's cgroups, so that everything after is counted;
2. clone the template's directories, and volumes, as id-mapped mounts, make the device nodes, and open the
   saved state of kernels, if any, through a read-only mount (needs the launcher's privilege);
3. enter the template's user namespace: from here on no privilege on the host is left;
4. new mount, PID, network, IPC, UTS and cgroup namespaces, which the template namespace owns, so that nobody
in the
   sandbox, its root included, has any power over them;
5. as PID 1: the root filesystem, loopback and what leads to it, host name;
6. enter the sandbox's own user namespace, keep a handful of capabilities over its own files and processes,
   no_new_privs, seccomp;
7. tell the launcher, and serve.
"""

import contextlib
import os
import select
import signal
import socket
import traceback
from collections.abc import Iterator
from typing import Any

from ringfence.engine.gvisor import sandbox as gvisor
from ringfence.engine.isolation import (
    capabilities,
    devices,
    landlock,
    linux,
    mounts,
    network,
    oom,
    rlimits,
    seccomp,
    userns,
    volume_mounts,
)
from ringfence.engine.zygote import channel
from ringfence.engine.zygote.descriptors import Descriptors
from ringfence.engine.zygote.joining import NAMESPACES, join_cgroups, report_namespaces
from ringfence.guest import main as guest_main
from ringfence.guest.config import GuestConfig
from ringfence.guest.kernel.process import set_title

_KEPT = frozenset(
    capabilities.NUMBERS[name]
    for name in ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP")
)


def start(request: dict[str, Any], fds: list[int], program: bytes) -> None:
    """Become the sandbox.

    Called in a fresh fork, never returns normally in the process that becomes PID 1.
    """
    given = Descriptors.of(fds, request["counters"], request["has_disk"])
    report = socket.socket(fileno=given.report)
    with _reporting(report):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        oom.expose()
        plan = _root_plan(request)
        if request["gvisor"] is not None:
            gvisor.start(request, given, plan, program)
            return
        join_cgroups(given.procs)
        idmap = given.sandbox_ns if request["idmap"] else None
        trees = mounts.clone_lowers(plan.layers, idmap)
        volumes = volume_mounts.clone(plan.volumes, idmap)
        nodes = devices.make()
        states = mounts.open_file(*request["states"]) if request["states"] else None
        if not request["single_id"]:
            os.setgroups([])
        userns.enter(given.template_ns, 0)
        namespaces = 0
        for flag in NAMESPACES.values():
            namespaces |= flag
        linux.unshare(namespaces)
        parent = linux.pidfd_open(os.getpid())
        names = os.open("/proc/self/ns", os.O_PATH | os.O_DIRECTORY)
        pid = os.fork()
        if pid:
            report_namespaces(report, pid, names)
            return
        intake = _become_init(request, plan, (trees, volumes, nodes), given, program, parent, states)
        channel.send(report, {"ready": True})
        report.close()  # the launcher believes what comes from there
        guest_main.run(
            GuestConfig(**request["guest"]),
            http=socket.socket(fileno=given.http),
            tunnels=socket.socket(fileno=given.tunnel),
            nursery=socket.socket(fileno=given.nursery),
            egress=socket.socket(fileno=given.egress),
            intake=intake,
            counters=given.counters,
            lifeline=socket.socket(fileno=given.lifeline),
            words=given.words,
            image=states,
        )


@contextlib.contextmanager
def _reporting(report: socket.socket) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(Exception):
            channel.send(report, {"error": f"{error}", "trace": traceback.format_exc()[-8000:]})
        os._exit(1)


def _root_plan(request: dict[str, Any]) -> mounts.RootPlan:
    root = request["root"]
    return mounts.RootPlan(
        layers=tuple(mounts.LayerPaths(layer["target"], tuple(layer["lowers"])) for layer in root["layers"]),
        size=root["size"],
        inodes=root["inodes"],
        root_id=root["root_id"],
        memory=root["memory"],
        cpus=root["cpus"],
        volumes=tuple(volume_mounts.VolumePath(**volume) for volume in root["volumes"]),
    )


def _become_init(
    request: dict[str, Any],
    plan: mounts.RootPlan,
    made: tuple[list[list[int]], list[int], int | None],
    given: Descriptors,
    program: bytes,
    parent: int,
    states: int | None,
) -> socket.socket | None:
    os.setsid()
    set_title("init")
    trees, volumes, nodes = made
    mounts.assemble(plan, trees, given.disk, lambda disk: _hand_over_disk(given.report, disk), volumes, nodes)
    socket.sethostname(request["hostname"])
    network.loopback_up()
    intake = _intercept()
    _redirect_standard_streams(request["debug"])
    # A death signal set before our parent is gone would be for its death; afterwards it is for the
    # launcher's.
    select.select([parent], [], [])
    userns.enter(given.sandbox_ns, 1000 if request["single_id"] else 0)
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    os.close(given.sandbox_ns)
    os.close(given.template_ns)
    _keep_only(given, intake, states)
    rlimits.apply(request["limits"], bound_memory=not given.counters)
    capabilities.drop(keep=_KEPT)
    capabilities.no_new_privs()
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    # A second barrier: whatever is not below the sandbox's root stays closed, even if a descriptor leads
    # there.
    landlock.restrict([landlock.PathRule("/", landlock.ALL)], scopes=0)
    seccomp.install(program, request["filter_flags"])
    return intake


def _hand_over_disk(report: int, disk: int) -> None:
    with socket.socket(fileno=os.dup(report)) as to_launcher:
        channel.send(to_launcher, {"disk": True}, [disk])
    os.close(disk)


def _keep_only(given: Descriptors, intake: socket.socket | None, states: int | None) -> None:
    more = [*([intake.fileno()] if intake else []), *([states] if states is not None else [])]
    sockets = (given.report, given.http, given.tunnel, given.nursery, given.egress, given.lifeline)
    kept = sorted({*sockets, given.words, *given.counters, *more})
    first = 3
    for fd in kept:
        if fd > first:
            linux.close_range(first, fd - 1)
        first = fd + 1
    linux.close_range(first)


def _intercept() -> socket.socket | None:
    """The listener that plain connections are led to.

    None where the kernel cannot: then the guest's proxies are the only way out, as the report says.
    """
    try:
        return network.intercept()
    except OSError:
        return None


def _redirect_standard_streams(debug: bool) -> None:
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1) if debug else (0, 1, 2):
        os.dup2(null, fd)
    if null > 2:
        os.close(null)
