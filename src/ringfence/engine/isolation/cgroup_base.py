"""What both generations of cgroups have in common: the interface, names, sweeping, and the case of none."""

import contextlib
import os
import re
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

Alive = Callable[[int, int], bool]
"""Whether the engine with this pid and start time still runs."""

_ENGINE_GROUP = re.compile(r"ringfence-(\d+)-(\d+)")
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_PAUSE = 0.002
CPU_PERIOD_US = 100_000


@dataclass(frozen=True)
class GroupStats:
    """Use of one group: memory in bytes, CPU in seconds since it was made. What the host cannot tell is 0.

    memory_cache: file pages that the kernel would give back at once; not part of `memory_used`.
    """

    memory_used: int
    memory_cache: int
    memory_peak: int
    memory_limit: int
    cpu_seconds: float
    cpus: float
    pids: int
    oom_kills: int


class Cgroup(ABC):
    """The processes of one sandbox, counted and limited together."""

    name: str

    @abstractmethod
    def procs_fds(self) -> list[int]:
        """Open descriptors that a process joins by writing ``0`` to each; the caller closes them.

        They work from any mount namespace, and also for a process that could not open the files itself.
        """

    @abstractmethod
    def counter_fds(self) -> list[int]:
        """Read-only descriptors of the memory peak, the out-of-memory events and the events of processes.

        The caller closes them.
        """

    @abstractmethod
    def pids(self) -> list[int]:
        """The processes in it; 0 stands for one in a PID namespace that cannot be seen from here."""

    @abstractmethod
    def stats(self) -> GroupStats:
        """What it uses now. Counters that a dying group no longer has are 0."""

    @abstractmethod
    def oom_kills(self) -> int:
        """How many of its processes the kernel has killed for want of memory."""

    @abstractmethod
    def freeze(self) -> None:
        """Stop all of its processes where they are; returns when they have stopped."""

    @abstractmethod
    def thaw(self) -> None:
        """Let a frozen group go on."""

    def reclaim(self) -> None:
        """Have the kernel take back what memory it can, from a frozen group best; may take a while.

        Without swap that is the file cache: what processes have written for themselves cannot go anywhere.
        """
        return None

    @abstractmethod
    def kill(self, timeout: float = 5.0) -> bool:
        """Kill everything in it, forks in flight included; whether it was empty within `timeout` seconds."""

    @abstractmethod
    def remove(self, timeout: float = 2.0) -> bool:
        """Remove the empty group; whether it is gone. What does not go is left to the next engine's sweep."""

    def join_self(self) -> None:
        """Move the calling process into it."""
        for fd in self.procs_fds():
            try:
                os.write(fd, b"0")
            finally:
                os.close(fd)


class CgroupDriver(ABC):
    """Makes groups below one group that belongs to this engine.

    available: whether limits are enforced at all.
    detail: the evidence, one line; remedy: what to do when they are not.
    can_freeze: whether groups can be frozen.
    """

    available: bool
    detail: str
    remedy: str
    can_freeze: bool = False

    @abstractmethod
    def create(self, name: str, limits: Mapping[str, float]) -> Cgroup:
        """A new group with these limits (the fields of `ringfence.engine.model.Limits`)."""

    @abstractmethod
    def limit_total(self, limits: Mapping[str, float]) -> None:
        """Limit all groups together: ``memory_mb``, ``cpus``, ``pids``, as far as they are given."""

    @abstractmethod
    def sweep(self, alive: Alive | None = None) -> list[str]:
        """Kill and remove what engines left behind that are not `alive` any more; the names of what went."""

    @abstractmethod
    def remove(self) -> None:
        """Remove this engine's own group, when its last sandbox is gone."""


class NoGroup(Cgroup):
    """Stands in where there are no cgroups: nothing is limited or counted."""

    def __init__(self, name: str, limits: Mapping[str, float]) -> None:
        self.name = name
        self._limits = limits

    def procs_fds(self) -> list[int]:
        return []

    def counter_fds(self) -> list[int]:
        return []

    def pids(self) -> list[int]:
        return []

    def stats(self) -> GroupStats:
        return GroupStats(0, 0, 0, memory_bytes(self._limits), 0.0, float(self._limits.get("cpus", 0)), 0, 0)

    def oom_kills(self) -> int:
        return 0

    def freeze(self) -> None:
        raise OSError("a sandbox can only be frozen with cgroups")

    def thaw(self) -> None:
        return None

    def kill(self, timeout: float = 5.0) -> bool:
        return True

    def remove(self, timeout: float = 2.0) -> bool:
        return True


class NoCgroups(CgroupDriver):
    """The driver of a host without usable cgroups; `detail` says why, `remedy` what to do."""

    available = False

    def __init__(self, detail: str, remedy: str) -> None:
        self.detail = detail
        self.remedy = remedy

    def create(self, name: str, limits: Mapping[str, float]) -> Cgroup:
        return NoGroup(check_name(name), limits)

    def limit_total(self, limits: Mapping[str, float]) -> None:
        return None

    def sweep(self, alive: Alive | None = None) -> list[str]:
        return []

    def remove(self) -> None:
        return None


# --- names


def start_time(pid: int) -> int | None:
    """When process `pid` started, in clock ticks since boot: with the pid it names a process for good."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError):
        return None


def engine_group_name() -> str:
    """The name of this process's group: ``ringfence-<pid>-<start time>``."""
    pid = os.getpid()
    return f"ringfence-{pid}-{start_time(pid)}"


def is_alive(pid: int, started: int) -> bool:
    """Whether the process with this pid is the one that started then."""
    return start_time(pid) == started


def dead_engines(directory: str, alive: Alive) -> list[str]:
    """The names of groups in `directory` that belong to engines which are not alive."""
    names = []
    with contextlib.suppress(FileNotFoundError):
        for entry in sorted(os.listdir(directory)):
            match = _ENGINE_GROUP.fullmatch(entry)
            if match and not alive(int(match[1]), int(match[2])):
                names.append(entry)
    return names


def check_name(name: str) -> str:
    """`name`, which becomes the name of a directory; `ValueError` when it could be anything else."""
    if not _SAFE_NAME.fullmatch(name):
        raise ValueError(f"not a name for a cgroup: {name!r}")
    return name


# --- limits and files


def memory_bytes(limits: Mapping[str, float]) -> int:
    """The memory limit in bytes; 0 for none."""
    return int(limits.get("memory_mb", 0)) << 20


def cpu_quota_us(limits: Mapping[str, float]) -> int:
    """Microseconds of processor time for each `CPU_PERIOD_US`; 0 for no limit. The kernel's least is 1000."""
    cpus = float(limits.get("cpus", 0))
    return max(1000, int(cpus * CPU_PERIOD_US)) if cpus > 0 else 0


def read(path: str) -> str:
    """The text of a small file."""
    with open(path) as file:
        return file.read()


def write(path: str, text: str) -> None:
    """Write to a control file in one write; errors of the kernel come at once."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise OSError(error.errno, f"write {text!r} to {path}: {error.strerror}") from error
    finally:
        os.close(fd)


def number(path: str) -> int:
    """The number in a counter file; 0 when the file is gone."""
    try:
        return int(read(path))
    except (OSError, ValueError):
        return 0


def field_of(path: str, key: str) -> int:
    """The number after `key` in a file of ``key number`` lines; 0 when there is none."""
    with contextlib.suppress(OSError):
        for line in read(path).splitlines():
            name, _, value = line.partition(" ")
            if name == key:
                return int(value)
    return 0


def wait_until(condition: Callable[[], bool], timeout: float) -> bool:
    """Look at `condition` until it holds; whether it did within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE)
    return True


def kill_pids(pids: Iterable[int]) -> None:
    """SIGKILL to each. A pid that was reused meanwhile cannot be hit while the group is frozen."""
    for pid in pids:
        if pid > 0:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def remove_directory(path: str) -> bool:
    """Remove one group; whether it is gone. A group with processes or groups in it stays."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
