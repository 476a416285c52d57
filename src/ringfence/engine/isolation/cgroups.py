"""Limits on memory, processes and CPU for each sandbox: which cgroups the machine has, and a driver for them.

`detect` never fails: a host without usable cgroups gets a driver that limits nothing and says so, with the
remedy.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from . import cgroup_scope, cgroup_v1
from .cgroup_base import Cgroup, CgroupDriver, GroupStats, NoCgroups, start_time
from .cgroup_v1 import V1Driver
from .cgroup_v2 import WANTED, V2Driver

__all__ = ["Cgroup", "CgroupDriver", "GroupStats", "NoCgroups", "detect", "start_time"]

_REMEDY_ROOT = "mount the cgroup file system writable, or run outside of the container"
_REMEDY_V1 = (
    "cgroup v1 gives nothing to ordinary users: start the engine as root, or boot with "
    "systemd.unified_cgroup_hierarchy=1"
)
_REMEDY_V2 = (
    "start the engine in a delegated scope (systemd-run --user --scope -p Delegate=yes ringfence serve), "
    "as a service with Delegate=yes, or as root"
)


@dataclass(frozen=True)
class Hierarchy:
    """One mounted hierarchy: where, the calling process's own group in it, and its controllers (v1)."""

    mount: str
    own: str
    controllers: frozenset[str]
    version: int


def detect(proc: str = "/proc/self") -> CgroupDriver:
    """The best driver for this machine; makes this engine's own group, so call it once for each engine.

    May move the calling process (and its family) within the engine's own service or scope, never elsewhere.
    """
    found = hierarchies(proc)
    v1 = {name: entry for entry in found if entry.version == 1 for name in entry.controllers}
    if all(name in v1 for name in cgroup_v1.REQUIRED):
        return _version_1({name: entry.own for name, entry in v1.items()})
    for entry in found:
        if entry.version == 2:
            return _version_2(entry, proc)
    return NoCgroups("no cgroup file system with memory and pids controllers is mounted", _REMEDY_ROOT)


def _version_1(directories: dict[str, str]) -> CgroupDriver:
    wanted = {name: directories[name] for name in cgroup_v1.REQUIRED}
    for name in cgroup_v1.OPTIONAL:
        if name in directories and os.access(directories[name], os.W_OK):
            wanted[name] = directories[name]
    try:
        return V1Driver(wanted)
    except OSError as error:
        return NoCgroups(f"cgroup v1: {error}", _REMEDY_ROOT if os.geteuid() == 0 else _REMEDY_V1)


def _version_2(entry: Hierarchy, proc: str) -> CgroupDriver:
    root = os.geteuid() == 0
    reasons = []
    for place in _places(entry, proc):
        try:
            return V2Driver(place)
        except OSError as error:
            reasons.append(str(error))
    why = reasons[0] if reasons else f"the group of this process, {entry.own}, is not ours to divide"
    return NoCgroups(f"cgroup v2: {why}", _REMEDY_ROOT if root else _REMEDY_V2)


def _places(entry: Hierarchy, proc: str) -> Iterator[str]:
    """Directories to try, best first. Each is looked for only when the one before was no good."""
    real_root = not os.path.exists(f"{entry.mount}/cgroup.type")
    if entry.own == entry.mount and real_root and os.geteuid() == 0:
        yield entry.mount  # the real root may have processes and children
        return
    if place := cgroup_scope.make_room(entry.own):
        yield place
    if cgroup_scope.enter_scope():
        for moved in hierarchies(proc):
            if moved.version == 2 and (place := cgroup_scope.make_room(moved.own)):
                yield place
    if os.geteuid() == 0:
        yield entry.mount


def hierarchies(proc: str = "/proc/self") -> list[Hierarchy]:
    """The mounted cgroup hierarchies in which the process of `proc` has a group that can be seen."""
    with open(f"{proc}/cgroup") as file:
        own = dict(pair for line in file.read().splitlines() for pair in _membership(line))
    found = []
    with open(f"{proc}/mountinfo") as file:
        mounts = file.read().splitlines()
    for line in mounts:
        left, _, right = line.partition(" - ")
        root, mount = (_unescape(field) for field in left.split()[3:5])
        fstype, _, options = right.split()[:3]
        if fstype not in ("cgroup", "cgroup2"):
            continue
        controllers = frozenset(options.split(",")) & own.keys() if fstype == "cgroup" else WANTED
        path = own.get("" if fstype == "cgroup2" else next(iter(controllers), "none"))
        relative = _below(path, root) if path is not None else None
        if relative is not None:
            version = 1 if fstype == "cgroup" else 2
            found.append(Hierarchy(mount, (mount + relative).rstrip("/"), controllers, version))
    return found


def _membership(line: str) -> list[tuple[str, str]]:
    # "4:cpu,cpuacct:/path" of v1, "0::/path" of v2: the latter's controller is the empty name.
    _, controllers, path = line.split(":", 2)
    return [(controller, path) for controller in controllers.split(",")]


def _below(path: str, root: str) -> str | None:
    """`path` as seen from a mount that shows the hierarchy from `root` on; None when it is outside."""
    if root == "/":
        return path
    if path == root:
        return ""
    return path[len(root) :] if path.startswith(root + "/") else None


def _unescape(field: str) -> str:
    for code, character in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        field = field.replace(code, character)
    return field
