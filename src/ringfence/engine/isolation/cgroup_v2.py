"""cgroups version 2: one hierarchy, in which only groups without processes may hand controllers to their
children.

The engine's sandboxes are groups below ``ringfence-<pid>-<start time>``. What that group hangs from has to
be empty of processes (or the real root), see `cgroups.detect`.
"""

import contextlib
import os
from collections.abc import Mapping

from . import cgroup_base as base
from .cgroup_base import Alive, Cgroup, CgroupDriver, GroupStats

REQUIRED = frozenset({"memory", "pids"})
WANTED = REQUIRED | {"cpu"}


class V2Group(Cgroup):
    """One group."""

    def __init__(self, name: str, directory: str, limits: Mapping[str, float]) -> None:
        self.name = name
        self._directory = directory
        self._limits = limits

    def procs_fds(self) -> list[int]:
        return [os.open(f"{self._directory}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)]

    def directory_fd(self) -> int:
        """A descriptor of the group, for ``CLONE_INTO_CGROUP``; the caller closes it."""
        return os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def counter_fds(self) -> list[int]:
        names = ("memory.peak", "memory.events", "pids.events")
        files = [f"{self._directory}/{name}" for name in names]
        if not all(os.path.exists(file) for file in files):  # memory.peak is of Linux 5.19
            return []
        return [os.open(file, os.O_RDONLY | os.O_CLOEXEC) for file in files]

    def pids(self) -> list[int]:
        try:
            return [int(pid) for pid in base.read(f"{self._directory}/cgroup.procs").split()]
        except OSError:
            return []

    def stats(self) -> GroupStats:
        at = self._directory
        cache = base.field_of(f"{at}/memory.stat", "inactive_file")
        used = max(0, base.number(f"{at}/memory.current") - cache)
        return GroupStats(
            memory_used=used,
            memory_cache=cache,
            memory_peak=base.number(f"{at}/memory.peak"),
            memory_limit=base.memory_bytes(self._limits),
            cpu_seconds=base.field_of(f"{at}/cpu.stat", "usage_usec") / 1e6,
            cpus=float(self._limits.get("cpus", 0)),
            pids=base.number(f"{at}/pids.current") or len(self.pids()),
            oom_kills=self.oom_kills(),
        )

    def oom_kills(self) -> int:
        return base.field_of(f"{self._directory}/memory.events", "oom_kill")

    def _event(self, name: str) -> int:
        return base.field_of(f"{self._directory}/cgroup.events", name)

    def freeze(self) -> None:
        base.write(f"{self._directory}/cgroup.freeze", "1")
        if not base.wait_until(lambda: self._event("frozen") == 1, 5.0):
            self.thaw()
            raise TimeoutError(f"{self.name} did not freeze")

    def thaw(self) -> None:
        base.write(f"{self._directory}/cgroup.freeze", "0")

    def reclaim(self) -> None:
        used = base.number(f"{self._directory}/memory.current")
        if used:
            base.write(f"{self._directory}/memory.reclaim", str(used))

    def kill(self, timeout: float = 5.0) -> bool:
        try:
            base.write(f"{self._directory}/cgroup.kill", "1")
        except OSError:  # Linux before 5.14, or the group is gone
            return base.wait_until(self._kill_once, timeout)
        return base.wait_until(lambda: self._event("populated") == 0, timeout)

    def _kill_once(self) -> bool:
        if not self.pids():
            return True
        with contextlib.suppress(OSError):
            self.freeze()
        base.kill_pids(self.pids())  # a frozen process of version 2 dies at once
        with contextlib.suppress(OSError):
            self.thaw()
        return not self.pids()

    def remove(self, timeout: float = 2.0) -> bool:
        return base.wait_until(lambda: base.remove_directory(self._directory), timeout)


class V2Driver(CgroupDriver):
    """Makes groups below ``<parent>/ringfence-<pid>-<start time>``."""

    available = True
    remedy = ""
    can_freeze = True

    def __init__(self, parent: str, required: frozenset[str] = REQUIRED) -> None:
        """`parent`: directory of a group that is ours to divide.

        Raises `OSError` when it is not writable or cannot hand down the `required` controllers.
        """
        self._parent = parent
        self._own = f"{parent}/{base.engine_group_name()}"
        self._required = required
        try:
            controllers = self._make_own()
        except OSError:
            self.remove()
            raise
        self.detail = f"cgroup v2 at {parent}: " + ", ".join(sorted(controllers))

    def _make_own(self) -> set[str]:
        hand_down(self._parent, self._required)
        os.makedirs(self._own, mode=0o755, exist_ok=True)
        return hand_down(self._own, self._required)

    def create(self, name: str, limits: Mapping[str, float]) -> Cgroup:
        directory = f"{self._own}/{base.check_name(name)}"
        if not os.path.isdir(self._own):
            self._make_own()
        os.mkdir(directory, 0o755)
        group = V2Group(name, directory, limits)
        try:
            write_limits(directory, limits)
        except OSError:
            group.remove(timeout=0)
            raise
        return group

    def limit_total(self, limits: Mapping[str, float]) -> None:
        write_limits(self._own, limits)

    def sweep(self, alive: Alive | None = None) -> list[str]:
        dead = base.dead_engines(self._parent, alive or base.is_alive)
        return [engine for engine in dead if self._sweep_engine(f"{self._parent}/{engine}")]

    def _sweep_engine(self, directory: str) -> bool:
        with os.scandir(directory) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        for name in names:
            group = V2Group(name, f"{directory}/{name}", {})
            if 0 in group.pids():  # seen from another PID namespace: its engine may be alive there
                return False
            group.kill()
            group.remove()
        return base.remove_directory(directory)

    def remove(self) -> None:
        base.remove_directory(self._own)


def hand_down(directory: str, required: frozenset[str]) -> set[str]:
    """Give the controllers we want to the children of a group; those it then gives, or `OSError`."""
    control = f"{directory}/cgroup.subtree_control"
    given = set(base.read(control).split())
    offered = set(base.read(f"{directory}/cgroup.controllers").split())
    for controller in sorted((WANTED & offered) - given):
        try:
            base.write(control, f"+{controller}")
        except OSError:
            if controller in required:
                raise
            continue
        given.add(controller)
    if missing := required - given:
        raise OSError(f"{directory} has no controller for {', '.join(sorted(missing))}")
    return given & WANTED


def write_limits(directory: str, limits: Mapping[str, float]) -> None:
    """Write `limits` into the control files of a group; a controller that is not there limits nothing.

    memory.high is left alone: there is no swap and little to reclaim, so it would only make a sandbox crawl
    before it meets its limit. memory.oom.group stays 0: the largest process dies, which is a kernel or a
    command, and PID 1 lives to say so.
    """
    memory, quota, pids = base.memory_bytes(limits), base.cpu_quota_us(limits), int(limits.get("pids", 0))
    settings = {
        "memory.max": str(memory) if memory else "",
        "memory.swap.max": "0" if memory else "",
        "pids.max": str(pids) if pids else "",
        "cpu.max": f"{quota} {base.CPU_PERIOD_US}" if quota else "",
    }
    for file, value in settings.items():
        path = f"{directory}/{file}"
        if value and os.path.exists(path):
            base.write(path, value)
