"""What the birth of a sandbox has in common in every tier: the cgroups it joins, the namespaces it gets."""

import os
import socket

from ringfence.engine.isolation import linux
from ringfence.engine.zygote import channel

NAMESPACES = {
    "mnt": linux.CLONE_NEWNS,
    "net": linux.CLONE_NEWNET,
    "ipc": linux.CLONE_NEWIPC,
    "uts": linux.CLONE_NEWUTS,
    "cgroup": linux.CLONE_NEWCGROUP,
    "pid_for_children": linux.CLONE_NEWPID,
}
HOSTNAME = "sandbox"
"""What the host is called in every sandbox, and where what it is forked from imports its libraries."""


def join_cgroups(procs: tuple[int, ...]) -> None:
    """Join the sandbox's cgroups through the descriptors of their ``cgroup.procs``, which are used up."""
    for fd in procs:
        os.write(fd, b"0")
        os.close(fd)


def report_namespaces(report: socket.socket, pid: int, names: int) -> None:
    """Tell the launcher of PID 1, `pid`; `names` is the directory of its namespaces."""
    # The kernel zygote joins these; nobody else could open them once PID 1 is undumpable. They are opened
    # through a descriptor because our child is changing the root under our feet.
    fds = [os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=names) for name in NAMESPACES]
    channel.send(report, {"pid": pid}, fds)
