"""What a sandbox sees in /proc: its own processes, and generated files that tell its limits, not the host's.

An allow-list: every top-level entry that is not a process, is not namespaced by the kernel and is not
generated here is covered, so what a newer kernel adds is covered too. `cover` does it before anything
hostile runs in the mount namespace, so there is no race over the masks to lose (as in CVE-2025-31133 and
its kin).

The system call sysinfo(2) still tells the host's memory, load and uptime: the kernel namespaces none of
them. The files are written once. What moves in reality stands still in them: the load is 0, the
processors are idle, and all memory is available.
"""

import contextlib
import functools
import math
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from . import linux

VISIBLE = frozenset({"self", "thread-self", "mounts", "net"})
"""Top-level entries that stay: links into the reader's own process, which the kernel namespaces."""

LIVE_SETTINGS = (
    "kernel/hostname",
    "kernel/random/uuid",
    "net/core/somaxconn",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/ip_unprivileged_port_start",
)
"""Files of /proc/sys that stay the kernel's own: namespaced, or, as the uuid, different at each reading."""

_IDLE_MEMORY = """
Buffers Cached SwapCached Active Inactive Active(anon) Inactive(anon) Active(file) Inactive(file) Unevictable
Mlocked SwapTotal SwapFree Dirty Writeback AnonPages Mapped Shmem KReclaimable Slab SReclaimable SUnreclaim
KernelStack PageTables Bounce CommitLimit Committed_AS VmallocUsed AnonHugePages ShmemHugePages
"""
_TICKS = os.sysconf("SC_CLK_TCK")
_TREE = "sys"


@dataclass(frozen=True)
class Mask:
    """What covers one entry of /proc: `files` by path below it (``""`` is itself); none: it looks empty."""

    name: str
    is_directory: bool
    files: Mapping[str, bytes] = field(default_factory=dict)


def generate(memory_bytes: int, cpus: float, boot_id: str, started_at: float) -> dict[str, bytes]:
    """The generated files, by their path below /proc.

    memory_bytes, cpus: the sandbox's limits; a part of a processor counts as a whole one.
    boot_id: what ``/proc/sys/kernel/random/boot_id`` says, a UUID; a new one for each sandbox.
    started_at: seconds since the epoch to which the start times of processes refer: the boot of the host, or
        of the sandbox when it has a time namespace.
    """
    count = max(1, math.ceil(cpus))
    uptime = max(0.0, time.time() - started_at)
    return {
        "meminfo": _meminfo(memory_bytes // 1024),
        "stat": _stat(count, uptime, started_at),
        "cpuinfo": _cpuinfo(count),
        "uptime": f"{uptime:.2f} {uptime * count:.2f}\n".encode(),
        "loadavg": b"0.00 0.00 0.00 1/1 1\n",
        "version": _version(),
        "filesystems": b"".join(b"nodev\t%s\n" % name for name in (b"proc", b"tmpfs", b"devpts", b"overlay")),
        "swaps": b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n",
        "vmstat": b"pgpgin 0\npgpgout 0\npswpin 0\npswpout 0\npgfault 0\npgmajfault 0\n",
        **{f"{_TREE}/{path}": text.encode() + b"\n" for path, text in _settings(boot_id).items()},
    }


def _meminfo(total_kb: int) -> bytes:
    values = dict.fromkeys(("MemTotal", "MemFree", "MemAvailable"), total_kb)
    values |= dict.fromkeys(_IDLE_MEMORY.split(), 0)
    values["CommitLimit"] = total_kb
    return "".join(f"{name + ':':<15} {value:>8} kB\n" for name, value in values.items()).encode()


def _stat(count: int, uptime: float, started_at: float) -> bytes:
    idle = int(uptime * _TICKS)
    lines = [f"cpu  0 0 0 {idle * count} 0 0 0 0 0 0"]
    lines += [f"cpu{number} 0 0 0 {idle} 0 0 0 0 0 0" for number in range(count)]
    lines += [
        "intr 0",
        "ctxt 0",
        f"btime {int(started_at)}",
        "processes 1",
        "procs_running 1",
        "procs_blocked 0",
    ]
    lines += ["softirq" + " 0" * 11, ""]
    return "\n".join(lines).encode()


@functools.cache
def host_processor() -> tuple[tuple[str, str], ...]:
    """The fields of the host's first processor. The instruction set shows the same, so this hides nothing.

    Cached: call it once before forking, because on a large machine the file is slow to read.
    """
    with contextlib.suppress(OSError), open("/proc/cpuinfo", "rb", buffering=0) as file:
        block = file.read(4096).decode(errors="replace").split("\n\n")[0]
        pairs = (line.partition(":") for line in block.splitlines())
        return tuple((name.rstrip(), value.strip()) for name, _, value in pairs)
    return (("processor", "0"),)


def _cpuinfo(count: int) -> bytes:
    blocks = []
    for number in range(count):
        own = {
            "processor": number,
            "core id": number,
            "apicid": number,
            "initial apicid": number,
            "physical id": 0,
            "siblings": count,
            "cpu cores": count,
        }
        lines = [f"{name:<16}: {own.get(name, value)}\n" for name, value in host_processor()]
        blocks.append("".join(lines).replace("  :", "\t:"))
    return "\n".join([*blocks, ""]).encode()


def _version() -> bytes:
    system = os.uname()
    return f"{system.sysname} version {system.release} {system.version}\n".encode()


def _settings(boot_id: str) -> dict[str, str]:
    """The tree of /proc/sys: what libraries and programs read to size themselves."""
    system = os.uname()
    return {
        "fs/file-max": "1048576",
        "fs/inotify/max_queued_events": "16384",
        "fs/inotify/max_user_instances": "128",
        "fs/inotify/max_user_watches": "65536",
        "fs/nr_open": "1048576",
        "fs/pipe-max-size": "1048576",
        "kernel/cap_last_cap": "40",
        "kernel/ngroups_max": "65536",
        "kernel/osrelease": system.release,
        "kernel/ostype": system.sysname,
        "kernel/pid_max": "4194304",
        "kernel/random/boot_id": boot_id,
        "kernel/random/entropy_avail": "256",
        "kernel/random/poolsize": "256",
        "kernel/threads-max": "65536",
        "kernel/version": system.version,
        "vm/max_map_count": "65530",
        "vm/overcommit_memory": "0",
        "vm/overcommit_ratio": "50",
        "vm/swappiness": "0",
    }


def generate_sys(cpus: float) -> dict[str, bytes]:
    """The little of /sys that tells libraries and ``lscpu`` the number of processors, by path below it."""
    last = max(1, math.ceil(cpus)) - 1
    numbers = f"0-{last}\n" if last else "0\n"
    return {f"devices/system/cpu/{name}": numbers.encode() for name in ("online", "possible", "present")}


def mask_plan(
    proc_listing: Iterable[tuple[str, bool]], files: Mapping[str, bytes], live: frozenset[str] = frozenset()
) -> list[Mask]:
    """What to bind over what, for the entries of /proc given as (name, is a directory).

    `files` come from `generate`. Entries named in `live` stay the kernel's own.
    """
    plan = []
    for name, is_directory in proc_listing:
        if name.isdigit() or name in VISIBLE or name in live:
            continue
        prefix = f"{name}/" if is_directory else name
        below = {path[len(prefix) :]: text for path, text in files.items() if path.startswith(prefix)}
        if not is_directory:
            below = {"": files[name]} if name in files else {}
        plan.append(Mask(name, is_directory, below))
    return plan


def listing(proc: str) -> list[tuple[str, bool]]:
    """The top-level entries of a mounted proc that may need a mask: (name, is a directory)."""
    with os.scandir(proc) as entries:
        return [
            (entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries if not entry.name.isdigit()
        ]


def cover(proc: str, staging: str, plan: Iterable[Mask]) -> None:
    """Bind the masks over the entries of `proc`, a fresh mount of it that nobody untrusted has reached yet.

    staging: an empty directory; a small tmpfs is mounted there for the contents, and detached at the end.
    Masks are read-only for good: to lift that, a process would need CAP_SYS_ADMIN over the mount namespace.
    """
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    linux.mount("tmpfs", staging, "tmpfs", flags, "size=1m,nr_inodes=256,mode=755")
    masks = list(plan)
    _write(f"{staging}/hidden", b"")
    _mkdir(f"{staging}/nothing")
    for mask in masks:
        for path, contents in mask.files.items():
            _write(f"{staging}/{mask.name}/{path}".rstrip("/"), contents)
    settings, tree = f"{proc}/{_TREE}", f"{staging}/{_TREE}"
    live = [path for path in LIVE_SETTINGS if _place_live(f"{settings}/{path}", f"{tree}/{path}")]
    read_only = linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY | flags
    linux.mount(None, staging, None, read_only)  # and binds of it inherit that
    for path in live:
        linux.mount(f"{settings}/{path}", f"{tree}/{path}", None, linux.MS_BIND)
        linux.mount(None, f"{tree}/{path}", None, read_only)
    for mask in masks:
        empty = "nothing" if mask.is_directory else "hidden"
        source = f"{staging}/{mask.name if mask.files else empty}"
        linux.mount(source, f"{proc}/{mask.name}", None, linux.MS_BIND | linux.MS_REC)
    linux.umount(staging, linux.MNT_DETACH)


def _place_live(source: str, place: str) -> bool:
    if not os.access(source, os.F_OK):
        return False
    _write(place, b"")
    return True


def _mkdir(path: str) -> None:
    os.makedirs(path, mode=0o755, exist_ok=True)


def _write(path: str, contents: bytes) -> None:
    _mkdir(os.path.dirname(path))
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o444)
    try:
        os.write(fd, contents)
    finally:
        os.close(fd)
