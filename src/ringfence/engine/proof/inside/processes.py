"""Attacks on processes: the host's, the guest's, and ways to become somebody else."""

import os
import signal
from contextlib import suppress

from ringfence.engine.proof.inside import native
from ringfence.engine.proof.inside.harness import Facts, GotThrough, NotApplicable, attack

CATEGORY = "processes"
_CAPABILITIES = sum(1 << number for number in (0, 1, 3, 4, 5, 6, 7, 8))
"""CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP: all over the sandbox's own."""


_WAYS_IN = (("mem", os.O_RDWR), ("mem", os.O_RDONLY), ("exe", os.O_RDWR), ("environ", os.O_RDONLY))


def _is_ours(pid: int) -> bool:
    try:
        return pid != 1 and native.status(pid)["Uid"].split()[0] == str(os.getuid())
    except OSError:
        return False


@attack(CATEGORY, "PID namespace")
def a_host_process_is_seen(facts: Facts) -> str:
    """By /proc, kill and pidfd_open."""
    pid = facts["victim"]
    if os.path.exists(f"/proc/{pid}/stat"):
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            if facts["token"].encode() in file.read():
                raise GotThrough(f"/proc/{pid} is the host's process")
        return f"{pid} is a process of the sandbox's own"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return f"kill {pid}: ESRCH"
    except PermissionError:
        if not _is_hidden(pid):
            raise GotThrough(f"process {pid} of the host is seen by kill") from None
        return f"{pid} is a hidden process of the sandbox's own"
    raise GotThrough(f"process {pid} of the host can be killed")


def _is_hidden(pid: int) -> bool:
    return pid <= _highest_pid()


def _highest_pid() -> int:
    with open("/proc/loadavg") as file:
        last = file.read().split()[4]
    return max(int(last) if last.isdigit() else 0, os.getpid())


@attack(CATEGORY, "PID namespace", seconds=3)
def the_guest_is_killed(facts: Facts) -> str:
    """PID 1 survives every signal from inside."""
    sent = []
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP, signal.SIGINT, signal.SIGSEGV):
        with suppress(PermissionError):
            if facts["sandboxed"]:
                os.kill(1, number)
                sent.append(number.name)
            else:
                os.kill(1, 0)
                raise GotThrough("PID 1 takes signals")
    os.kill(1, 0) if sent else None
    return f"PID 1 lives on after {', '.join(sent) or 'EPERM for all signals'}"


@attack(CATEGORY, "seccomp")
def another_process_is_read(facts: Facts) -> str:
    """ptrace, process_vm_readv, pidfd_getfd and kcmp."""
    return native.refuse_all(
        [
            ("ptrace", 16, 1, 0, 0),
            ("process_vm_readv", os.getppid(), 0, 0, 0, 0, 0),
            ("process_vm_writev", os.getppid(), 0, 0, 0, 0, 0),
            ("pidfd_getfd", -1, 0, 0),
            ("kcmp", 1, 1, 0, 0, 0),
            ("process_madvise", -1, 0, 0, 0, 0),
        ]
    )


@attack(CATEGORY, "dumpable 0")
def the_nursery_is_read(facts: Facts) -> str:
    """Memory and descriptors of the processes that serve the sandbox (CVE-2019-5736)."""
    tried = 0
    opened: dict[str, str] = {}
    for pid in range(1, 256):
        if pid in (os.getpid(), os.getppid()) or _is_ours(pid):
            continue
        tried += 1
        for name, flags in _WAYS_IN:
            with suppress(OSError):
                os.close(os.open(f"/proc/{pid}/{name}", flags))
                opened.setdefault(name, f"/proc/{pid}/{name}")
    if opened:
        raise GotThrough(f"can be opened: {', '.join(opened.values())}")
    return f"{tried} pids that are not of this user tried"


@attack(CATEGORY, "seccomp")
def the_namespaces_of_others_are_joined(facts: Facts) -> str:
    """Open the files of namespaces, and setns."""
    for name in ("mnt", "pid", "net", "user"):
        with suppress(OSError):
            os.close(os.open(f"/proc/1/ns/{name}", os.O_RDONLY))
            raise GotThrough(f"/proc/1/ns/{name} can be opened")
    return native.refuse("setns", -1, 0)


@attack(CATEGORY, "seccomp")
def a_new_namespace_by_unshare(facts: Facts) -> str:
    """A user namespace would bring every capability, and the kernel code behind them."""
    flags = (
        native.CLONE_NEWUSER,
        native.CLONE_NEWNS,
        native.CLONE_NEWNET,
        native.CLONE_NEWUSER | native.CLONE_NEWNS,
    )
    return native.refuse_all([("unshare", flag) for flag in flags])


@attack(CATEGORY, "seccomp")
def a_new_namespace_by_clone(facts: Facts) -> str:
    """The flags of clone, also with bits set that the kernel does not look at."""
    flags = native.CLONE_NEWUSER | signal.SIGCHLD
    return native.refuse_all([("clone", flags, 0, 0, 0, 0), ("clone", flags | 1 << 62, 0, 0, 0, 0)])


@attack(CATEGORY, "seccomp")
def a_new_namespace_by_clone3(facts: Facts) -> str:
    """The same by the newer call, whose flags no filter can see (CVE-2021-41133 of Flatpak)."""
    arguments = (
        (native.CLONE_NEWUSER).to_bytes(8, "little")
        + bytes(24)
        + int(signal.SIGCHLD).to_bytes(8, "little")
        + bytes(48)
    )
    return native.refuse("clone3", arguments, len(arguments))


@attack(CATEGORY, "user namespace", who={"user", "kernel"})
def a_user_becomes_root(facts: Facts) -> str:
    """The set*id family, and groups."""
    if os.getuid() == 0:
        raise NotApplicable("it runs as root")
    for name, arguments in (
        ("setresuid", (0, 0, 0)),
        ("setresgid", (0, 0, 0)),
        ("setuid", (0,)),
        ("setgid", (0,)),
    ):
        with suppress(OSError):
            native.call(name, *arguments)
            raise GotThrough(f"now uid {os.getuid()}, gid {os.getgid()}, groups {os.getgroups()}")
    return "no other id could be taken"


@attack(CATEGORY, "capabilities")
def it_has_capabilities_outside(facts: Facts) -> str:
    """No capability but those over the sandbox's own files and processes, in any set, for good."""
    fields = native.status()
    names = ["CapInh", "CapPrm", "CapEff", "CapBnd"]
    if "CapAmb" in fields or _has_ambient_set():
        names.append("CapAmb")
    for name in names:
        extra = int(fields[name], 16) & ~_CAPABILITIES
        if extra:
            raise GotThrough(f"{name} has {extra:#x}")
    return f"CapEff {fields['CapEff']}, CapBnd {fields['CapBnd']}"


def _has_ambient_set() -> bool:
    """Linux has it since 4.3; where it is not known there is nothing in it."""
    with suppress(OSError):
        native.call("prctl", 47, 1, 0, 0, 0)  # PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET
        return True
    return False


@attack(CATEGORY, "user namespace")
def it_is_in_the_hosts_user_namespace(facts: Facts) -> str:
    """The map of ids tells a namespace of one's own from the host's."""
    with open("/proc/self/uid_map") as file:
        rows = [tuple(map(int, line.split())) for line in file]
    if any(count > 1 << 20 for _, _, count in rows):
        raise GotThrough(f"uid_map: {rows}")
    return f"uid_map: {rows}"
