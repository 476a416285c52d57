"""From a fork of the guest zygote to a sandbox under runsc; the counterpart of `zygote.sandbox`.

1. join the sandbox's cgroups: everything of gVisor counts as the sandbox's;
2. clone the template's directories, runsc and our own Python as id-mapped mounts;
3. enter the sandbox's user namespace: from here on no privilege on the host is left;
4. new mount, PID, network, IPC, UTS and cgroup namespaces;
5. as PID 1: the tree that runsc sees, then runsc as a child, which sets up its own, smaller world in it;
6. give up every capability, no_new_privs, seccomp; pass connections in until the end.
"""

import dataclasses
import json
import os
import select
import signal
import socket
from typing import Any

from ringfence.engine.gvisor import bundle, root, warden
from ringfence.engine.gvisor.imaging import Imager
from ringfence.engine.gvisor.python import HostPython
from ringfence.engine.isolation import capabilities, linux, mounts, rlimits, seccomp, userns
from ringfence.engine.zygote import channel
from ringfence.engine.zygote.descriptors import Descriptors
from ringfence.engine.zygote.joining import NAMESPACES, join_cgroups, report_namespaces

_ID = "sandbox"
_RESTORE_SECONDS = 40
"""How long a restored guest may take to serve, on a machine that is busy; it is started cold then."""
_IMAGE_SECONDS = 300
_FLAGS = ("--network=none", "--ignore-cgroups", "--host-uds=none", "--overlay2=none")


def command(gvisor: dict[str, Any], *arguments: str) -> list[str]:
    """A command line of runsc. Its own network is loopback alone; its cgroup is the one it is in already."""
    flags = [flag for flag in _FLAGS if flag.partition("=")[0][2:] in gvisor["flags"]]
    return [root.RUNSC, f"--root={root.STATE}", f"--platform={gvisor['platform']}", *flags, *arguments]


def start(request: dict[str, Any], given: Descriptors, plan: mounts.RootPlan, program: bytes) -> None:
    """Become the sandbox; errors are raised for the caller to report."""
    gvisor = request["gvisor"]
    join_cgroups(given.procs)
    plan = dataclasses.replace(plan, root_id=0)  # as seen from the namespace of the sandbox itself
    python = HostPython.of_this_process()
    trees = root.clone(
        plan, gvisor["path"], python, gvisor["image"], given.sandbox_ns if request["idmap"] else None
    )
    states = mounts.open_file(*request["states"]) if request["states"] else None
    if not request["single_id"]:
        os.setgroups([])
    # An ordinary user's one id is the template namespace's root; gVisor makes up the others.
    userns.enter(given.template_ns if request["single_id"] else given.sandbox_ns, 0)
    linux.unshare(sum(NAMESPACES.values()))
    parent = linux.pidfd_open(os.getpid())
    names = os.open("/proc/self/ns", os.O_PATH | os.O_DIRECTORY)
    report = socket.socket(fileno=os.dup(given.report))
    pid = os.fork()
    if pid:
        report_namespaces(report, pid, names)
        return
    os.setsid()
    files = {
        f"{root.BUNDLE}/config.json": json.dumps(
            bundle.config(python, request["hostname"], request["limits"]["disk_mb"] << 20)
        ),
        f"{root.BUNDLE}/root{bundle.BOOT}": bundle.boot_program(python, gvisor["order"]),
    }
    root.assemble(
        plan, trees, python, files, given.disk, lambda disk: _hand_over(report, disk), gvisor["room"]
    )
    select.select([parent], [], [])
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    _run(request, given, report, program, states)


def _hand_over(report: socket.socket, disk: int) -> None:
    channel.send(report, {"disk": True}, [disk])
    os.close(disk)


def _run(
    request: dict[str, Any], given: Descriptors, report: socket.socket, program: bytes, states: int | None
) -> None:
    gvisor = request["gvisor"]
    how = ("restore", f"--image-path={root.IMAGE}") if gvisor["image"] else ("run",)
    container = warden.Container.start(
        command(gvisor, *how, "--detach", f"--pid-file={root.PID_FILE}", f"--bundle={root.BUNDLE}", _ID)
    )
    guest = {**request["guest"], "own_kernel": True}
    orders = {"guest": guest, "rlimits": _rlimits(request["limits"])}
    doors = {"http": socket.socket(fileno=given.http), "tunnel": socket.socket(fileno=given.tunnel)}
    _confine(given, request, program)
    lifeline = socket.socket(fileno=given.lifeline)
    os.set_blocking(given.words, False)
    if gvisor["room"]:
        checkpoint = command(gvisor, "checkpoint", f"--image-path={root.IMAGE}", _ID)
        Imager(
            container, report, lifeline, given.words, doors, None, _IMAGE_SECONDS, checkpoint=checkpoint
        ).run()
    passed_in = [given.egress, *([states] if states is not None else [])]
    guard = warden.Warden(container, report, lifeline, given.words, doors, (orders, passed_in))
    if gvisor["image"]:
        guard.patience = _RESTORE_SECONDS
        guard.on_warm()  # it was so when it was written down
    guard.run()


def _confine(given: Descriptors, request: dict[str, Any], program: bytes) -> None:
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1) if request["debug"] else (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    for fd in (
        given.report,
        given.template_ns,
        given.sandbox_ns,
        given.nursery,
        *given.counters,
    ):
        os.close(fd)
    capabilities.drop()
    capabilities.no_new_privs()
    seccomp.install(program, request["filter_flags"])


def _rlimits(limits: dict[str, Any]) -> list[list[int]]:
    """Limits of each process inside; gVisor keeps them itself.

    A process that asks for more memory than the sandbox may have gets none, as it would where the host's
    kernel ends it: here the kernel that the host would end is the sandbox's own.
    """
    return [[kind, *values] for kind, values in rlimits.plan(limits, bound_memory=True).items()]
