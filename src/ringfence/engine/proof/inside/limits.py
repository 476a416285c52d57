"""Attacks on limits: use up what there is. The cheap ones are essential, those that fill things are not."""

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import signal
import time
from contextlib import suppress

from ringfence.engine.proof.inside.harness import Facts, GotThrough, NotApplicable, attack

CATEGORY = "limits"
_COUNT_SLACK = 8
_MIB = 1 << 20
_SCRATCH = "/tmp/ringfence-proof"


@attack(CATEGORY, "rlimits", apart=True)
def limits_are_raised(facts: Facts) -> str:
    """Hard limits can only be lowered."""
    kinds = (
        resource.RLIMIT_NOFILE,
        resource.RLIMIT_NPROC,
        resource.RLIMIT_CORE,
        resource.RLIMIT_MEMLOCK,
        resource.RLIMIT_FSIZE,
    )
    for kind in kinds:
        hard = resource.getrlimit(kind)[1]
        if hard == resource.RLIM_INFINITY:
            raise GotThrough(f"resource {kind} has no hard limit")
        with suppress(ValueError, OSError):
            resource.setrlimit(kind, (hard + 1, hard + 1))
            raise GotThrough(f"the hard limit of resource {kind} could be raised")
    return f"{len(kinds)} hard limits stand"


@attack(CATEGORY, "rlimits")
def a_crash_leaves_a_core(facts: Facts) -> str:
    """A core dump would run the host's core_pattern and hold what the zygote had in memory."""
    if resource.getrlimit(resource.RLIMIT_CORE) != (0, 0):
        raise GotThrough(f"RLIMIT_CORE {resource.getrlimit(resource.RLIMIT_CORE)}")
    return "RLIMIT_CORE 0"


@attack(CATEGORY, "rlimits", apart=True)
def open_files(facts: Facts) -> str:
    """Descriptors until there are no more."""
    made = 0
    try:
        while made <= facts["open_files"]:
            os.dup(1)
            made += 1
    except OSError:
        return f"stopped at {made}"
    raise GotThrough(f"{made} descriptors, the limit is {facts['open_files']}")


@attack(CATEGORY, "capabilities")
def priority_is_raised(facts: Facts) -> str:
    """Negative niceness, real-time scheduling, and safety from the out-of-memory killer."""
    with suppress(OSError):
        os.nice(-5)
        raise GotThrough("nice -5")
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
        raise GotThrough("SCHED_FIFO")
    with open("/proc/self/oom_score_adj") as file:
        before = int(file.read())
    with suppress(OSError):
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(max(-1000, before - 500)))
        raise GotThrough("oom_score_adj could be lowered")
    return "EPERM for all"


@attack(CATEGORY, "rlimits", apart=True)
def memory_is_locked(facts: Facts) -> str:
    """Locked memory cannot be reclaimed."""
    block = (ctypes.c_char * (4 * _MIB))()
    if ctypes.CDLL(None).mlock(block, len(block)) == 0:
        raise GotThrough("4 MiB could be locked")
    return "mlock of 4 MiB: refused"


@attack(CATEGORY, "generated /proc")
def it_sees_the_hosts_size(facts: Facts) -> str:
    """Processors and memory as the sandbox is allowed them, so that programs size themselves right."""
    with open("/proc/meminfo") as file:
        total = int(file.readline().split()[1]) << 10
    if total > facts["memory"] * 1.01:
        raise GotThrough(f"MemTotal {total >> 20} MiB, the limit is {facts['memory'] >> 20}")
    with open("/proc/cpuinfo") as file:
        processors = sum(line.startswith("processor") for line in file)
    return f"MemTotal {total >> 20} MiB, {processors} processors"


@attack(CATEGORY, "devpts", essential=False, apart=True)
def terminals(facts: Facts) -> str:
    """Pseudo-terminals: the host's supply is limited for all together."""
    made = 0
    for _ in range(300):
        try:
            os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
        except OSError:
            return f"stopped at {made}"
        made += 1
    raise GotThrough(f"{made} terminals")


@attack(CATEGORY, "cgroup pids", essential=False, who={"user"}, seconds=20, apart=True)
def a_fork_bomb(facts: Facts) -> str:
    """Processes until there are no more."""
    return _fork_until_refused(facts)


@attack(CATEGORY, "cgroup pids", essential=False, who={"root"}, seconds=20, apart=True)
def a_fork_bomb_of_root(facts: Facts) -> str:
    """The same as the sandbox's root, which RLIMIT_NPROC may not hold."""
    return _fork_until_refused(facts)


def _fork_until_refused(facts: Facts) -> str:
    made = 0
    while made <= facts["pids"] + _COUNT_SLACK:
        try:
            pid = os.fork()
        except OSError:
            return f"stopped at {made}"
        if pid == 0:
            signal.pause()
            os._exit(0)
        made += 1
    raise GotThrough(f"{made} processes, the limit is {facts['pids']}")


@attack(CATEGORY, "cgroup memory", essential=False, seconds=30, apart=True)
def memory(facts: Facts) -> str:
    """Touched memory, until the kernel says no."""
    _offer_to_die()
    held: list[mmap.mmap] = []
    size = 16 * _MIB
    while len(held) * size <= facts["memory"] * 1.1:
        try:
            block = mmap.mmap(-1, size)
        except (OSError, ValueError, MemoryError):
            return f"refused at {len(held) * size >> 20} MiB"
        for offset in range(0, size, mmap.PAGESIZE):
            block[offset] = 1
        held.append(block)
    time.sleep(facts["grace"])  # a watchdog takes its moment
    raise GotThrough(f"{len(held) * size >> 20} MiB, the limit is {facts['memory'] >> 20}")


@attack(CATEGORY, "cgroup memory", essential=False, who={"user"}, seconds=30, apart=True)
def memory_of_many(facts: Facts) -> str:
    """The same shared out among processes, each of which stays below the limit."""
    _offer_to_die()
    part = int(facts["memory"] * 1.2) // 4
    children = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            block = mmap.mmap(-1, part, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            for offset in range(0, part, mmap.PAGESIZE):
                block[offset] = 1
            time.sleep(facts["grace"])
            os._exit(0)
        children.append(pid)
    killed = sum(os.WIFSIGNALED(os.waitpid(pid, 0)[1]) for pid in children)
    if not killed:
        raise GotThrough(f"4 processes of {part >> 20} MiB, the limit is {facts['memory'] >> 20}")
    return f"{killed} of 4 processes were killed"


def _offer_to_die() -> None:
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


@attack(CATEGORY, "size-limited layer", essential=False, who={"user", "root"}, seconds=30, apart=True)
def disk(facts: Facts) -> str:
    """A file that grows, in /tmp; unlinked, so that nobody sees it."""
    written = 0
    with open(f"{_SCRATCH}-{os.getpid()}", "wb", buffering=0) as file:
        os.unlink(file.name)
        block = bytes(_MIB)
        try:
            while written <= facts["disk"]:
                written += file.write(block)
        except OSError:
            return f"stopped at {written >> 20} MiB"
    raise GotThrough(f"{written >> 20} MiB, the limit is {facts['disk'] >> 20}")


@attack(CATEGORY, "size-limited layer", essential=False, who={"user", "root"}, seconds=30, apart=True)
def inodes(facts: Facts) -> str:
    """Empty files until there are no more."""
    directory = f"{_SCRATCH}-{os.getpid()}.d"
    os.mkdir(directory)
    made = 0
    try:
        while made <= facts["inodes"]:
            os.close(os.open(f"{directory}/{made}", os.O_CREAT | os.O_WRONLY))
            made += 1
    except OSError:
        return f"stopped at {made}"
    finally:
        for name in os.listdir(directory):
            os.unlink(f"{directory}/{name}")
        os.rmdir(directory)
    raise GotThrough(f"{made} files, the limit is {facts['inodes']}")


@attack(CATEGORY, "rlimits", essential=False, who={"user"}, apart=True)
def a_sparse_bomb(facts: Facts) -> str:
    """A file of a terabyte that is all hole."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with open(f"{_SCRATCH}-sparse-{os.getpid()}", "wb") as file:
        os.unlink(file.name)
        try:
            file.truncate(1 << 40)
        except OSError as error:
            return f"truncate: {errno.errorcode.get(error.errno or 0)}"
    raise GotThrough("a file of 1 TiB")


@attack(CATEGORY, "cgroup CPU", essential=False, who={"user"}, seconds=10, apart=True)
def processors(facts: Facts) -> str:
    """More processes than processors, all busy for a second."""
    count = (os.cpu_count() or 1) * 2
    if facts["cpus"] + 0.5 >= facts["host_cpus"]:
        raise NotApplicable(f"the limit of {facts['cpus']} is no less than the host has")
    started = time.monotonic()
    for _ in range(count):
        if os.fork() == 0:
            while time.monotonic() < started + 1:
                pass
            os._exit(0)
    for _ in range(count):
        os.wait()
    elapsed = time.monotonic() - started
    used = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    if used > (facts["cpus"] * 1.3 + 0.1) * elapsed:
        raise GotThrough(f"{used / elapsed:.2f} processors, the limit is {facts['cpus']}")
    return f"{used / elapsed:.2f} processors used"


@attack(CATEGORY, "pipe size", essential=False, who={"user"}, apart=True)
def pipes(facts: Facts) -> str:
    """Kernel memory in pipes' buffers: above the soft limit pipes are small."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(OSError):
        fcntl.fcntl(writer, 1031, 64 * _MIB)
        raise GotThrough("a pipe of 64 MiB")
    os.close(reader)
    return "no pipe of 64 MiB"
