"""cgroups version 1: one hierarchy for each controller, and in each a group below our own.

There is no atomic kill and no killing of a whole group when memory runs out: the freezer holds still what
is to be killed, and whoever watches `Cgroup.oom_kills` decides what an OOM kill means for the sandbox.
"""

import contextlib
import os
from collections.abc import Mapping

from . import cgroup_base as base
from .cgroup_base import Alive, Cgroup, CgroupDriver, GroupStats

REQUIRED = ("memory", "pids")
OPTIONAL = ("cpu", "cpuacct", "freezer")

Directories = dict[str, str]
"""By controller, a directory of its hierarchy. Controllers that are mounted together have the same one."""


class V1Group(Cgroup):
    """A group in every hierarchy."""

    def __init__(self, name: str, directories: Directories, limits: Mapping[str, float]) -> None:
        self.name = name
        self._directories = directories
        self._limits = limits

    def _path(self, controller: str, file: str) -> str:
        return f"{self._directories[controller]}/{file}"

    def procs_fds(self) -> list[int]:
        return [
            os.open(f"{directory}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
            for directory in _unique(self._directories)
        ]

    def counter_fds(self) -> list[int]:
        files = ("memory.max_usage_in_bytes", "memory.oom_control")
        paths = [*(self._path("memory", file) for file in files), self._path("pids", "pids.events")]
        return [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths]

    def pids(self) -> list[int]:
        controller = "freezer" if "freezer" in self._directories else "memory"
        try:
            return [int(pid) for pid in base.read(self._path(controller, "cgroup.procs")).split()]
        except FileNotFoundError:
            return []

    def stats(self) -> GroupStats:
        memory = self._directories["memory"]
        # As other tools count: file cache that the kernel would give back at once is not use.
        cache = base.field_of(f"{memory}/memory.stat", "total_inactive_file")
        used = max(0, base.number(f"{memory}/memory.usage_in_bytes") - cache)
        accounting = self._directories.get("cpuacct")
        return GroupStats(
            memory_used=used,
            memory_cache=cache,
            memory_peak=base.number(f"{memory}/memory.max_usage_in_bytes"),
            memory_limit=base.memory_bytes(self._limits),
            cpu_seconds=base.number(f"{accounting}/cpuacct.usage") / 1e9 if accounting else 0.0,
            cpus=float(self._limits.get("cpus", 0)),
            pids=base.number(self._path("pids", "pids.current")),
            oom_kills=self.oom_kills(),
        )

    def oom_kills(self) -> int:
        return base.field_of(self._path("memory", "memory.oom_control"), "oom_kill")

    def freeze(self) -> None:
        state = self._path("freezer", "freezer.state")

        def frozen() -> bool:
            base.write(state, "FROZEN")  # again: a fork in flight may have missed the first
            return base.read(state).strip() == "FROZEN"

        if not base.wait_until(frozen, 5.0):
            base.write(state, "THAWED")
            raise TimeoutError(f"{self.name} did not freeze")

    def thaw(self) -> None:
        if "freezer" in self._directories:
            base.write(self._path("freezer", "freezer.state"), "THAWED")

    def reclaim(self) -> None:
        base.write(self._path("memory", "memory.force_empty"), "0")

    def kill(self, timeout: float = 5.0) -> bool:
        return base.wait_until(self._kill_once, timeout)

    def _kill_once(self) -> bool:
        if not self.pids():
            return True
        freezer = "freezer" in self._directories
        # Frozen processes cannot fork, so one pass gets all; they die when they are thawed.
        with contextlib.suppress(OSError):
            if freezer:
                self.freeze()
        base.kill_pids(self.pids())
        with contextlib.suppress(OSError):
            if freezer:
                self.thaw()
        return not self.pids()

    def remove(self, timeout: float = 2.0) -> bool:
        directories = _unique(self._directories)
        return base.wait_until(lambda: _remove_all(directories), timeout)


class V1Driver(CgroupDriver):
    """Makes groups below ``<own group>/ringfence-<pid>-<start time>`` in each hierarchy."""

    available = True
    remedy = ""

    def __init__(self, parents: Directories) -> None:
        """`parents`: by controller, the directory below which the engine's group goes.

        Raises `OSError` when one of them is not writable.
        """
        self._parents = parents
        self._own = {name: f"{path}/{base.engine_group_name()}" for name, path in parents.items()}
        self.detail = "cgroup v1: " + ", ".join(sorted(parents))
        self.can_freeze = "freezer" in parents
        try:
            self._make_own()
        except OSError:
            self.remove()
            raise

    def _make_own(self) -> None:
        for controller, path in self._own.items():
            os.makedirs(path, mode=0o755, exist_ok=True)
            if controller == "memory" and base.number(f"{path}/memory.use_hierarchy") == 0:
                base.write(f"{path}/memory.use_hierarchy", "1")  # or the total would not count sandboxes

    def create(self, name: str, limits: Mapping[str, float]) -> Cgroup:
        base.check_name(name)
        directories = {controller: f"{path}/{name}" for controller, path in self._own.items()}
        group = V1Group(name, directories, limits)
        if not all(os.path.isdir(path) for path in self._own.values()):
            self._make_own()
        try:
            for path in _unique(directories):
                os.mkdir(path, 0o755)
            write_limits(directories, limits)
        except OSError:
            group.remove(timeout=0)
            raise
        return group

    def limit_total(self, limits: Mapping[str, float]) -> None:
        write_limits(self._own, limits)

    def sweep(self, alive: Alive | None = None) -> list[str]:
        swept = set()
        for path in _unique(self._parents):
            for engine in base.dead_engines(path, alive or base.is_alive):
                if self._sweep_engine(engine):
                    swept.add(engine)
        return sorted(swept)

    def _sweep_engine(self, engine: str) -> bool:
        directories = {controller: f"{path}/{engine}" for controller, path in self._parents.items()}
        names = {entry.name for path in _unique(directories) for entry in _subdirectories(path)}
        for name in names:
            below = {controller: f"{path}/{name}" for controller, path in directories.items()}
            group = V1Group(name, below, {})
            if 0 in group.pids():  # seen from another PID namespace: its engine may be alive there
                return False
            group.kill()
            group.remove()
        return _remove_all(_unique(directories))

    def remove(self) -> None:
        for path in _unique(self._own):
            base.remove_directory(path)


def _unique(directories: Directories) -> list[str]:
    return list(dict.fromkeys(directories.values()))


def _remove_all(paths: list[str]) -> bool:
    gone = [base.remove_directory(path) for path in paths]  # every one, also when an earlier one stays
    return all(gone)


def _subdirectories(path: str) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(path) as entries:
            return [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def write_limits(directories: Directories, limits: Mapping[str, float]) -> None:
    """Write `limits` into the control files; a controller that is not there limits nothing."""
    memory, quota, pids = base.memory_bytes(limits), base.cpu_quota_us(limits), int(limits.get("pids", 0))
    if memory:
        base.write(f"{directories['memory']}/memory.limit_in_bytes", str(memory))
        swap = f"{directories['memory']}/memory.memsw.limit_in_bytes"
        if os.path.exists(swap):  # memory and swap together: the same number is no swap
            base.write(swap, str(memory))
    if pids:
        base.write(f"{directories['pids']}/pids.max", str(pids))
    if quota and "cpu" in directories:
        base.write(f"{directories['cpu']}/cpu.cfs_period_us", str(base.CPU_PERIOD_US))
        base.write(f"{directories['cpu']}/cpu.cfs_quota_us", str(quota))
