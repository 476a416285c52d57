"""Resource limits of each process: the backstop below the cgroups, or part of their stand-in."""

import resource
from collections.abc import Mapping

_MIB = 1 << 20
_SPARSE = 4
"""A file may be longer than the disk is large, because most of it may be a hole; but not without end."""


def plan(limits: Mapping[str, float], bound_memory: bool = False) -> dict[int, tuple[int, int]]:
    """The soft and hard limit by resource, from the fields of `ringfence.engine.model.Limits`.

    bound_memory: also limit each process's data to the memory limit, for hosts without cgroups. Not its
        address
    space: numeric libraries reserve far more of that than they use.
    """
    pids, files = int(limits["pids"]), int(limits["open_files"])
    longest = int(limits["disk_mb"]) * _MIB * _SPARSE
    wanted = {
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_NOFILE: (files, files),
        resource.RLIMIT_NPROC: (pids, pids),  # counts by user id, in this user namespace
        resource.RLIMIT_FSIZE: (longest, longest),
        resource.RLIMIT_MEMLOCK: (64 << 10, 64 << 10),
        resource.RLIMIT_MSGQUEUE: (819200, 819200),
        resource.RLIMIT_SIGPENDING: (2048, 2048),
        resource.RLIMIT_RTPRIO: (0, 0),
        resource.RLIMIT_NICE: (0, 0),
        resource.RLIMIT_STACK: (8 * _MIB, 64 * _MIB),
    }
    if bound_memory:
        memory = int(limits["memory_mb"]) * _MIB
        wanted[resource.RLIMIT_DATA] = (memory, memory)
    return wanted


def apply(limits: Mapping[str, float], bound_memory: bool = False) -> None:
    """Put the limits of `plan` in force for this process and what it starts; never raise one."""
    for kind, (soft, hard) in plan(limits, bound_memory).items():
        ceiling = resource.getrlimit(kind)[1]
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(kind, (soft, hard))
