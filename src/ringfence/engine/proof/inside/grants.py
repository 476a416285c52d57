"""Attacks by what a process was handed or could hand itself: descriptors, pidfds, attributes of files."""

import errno
import fcntl
import os
import pty
import resource
import socket
from contextlib import ExitStack, suppress

from ringfence.engine.proof.inside import native
from ringfence.engine.proof.inside.harness import Facts, GotThrough, NotApplicable, attack

_ANONYMOUS = (
    "anon_inode:[eventpoll]",
    "anon_inode:[eventfd]",
    "anon_inode:[signalfd]",
    "anon_inode:[timerfd]",
)
_TIOCCONS = 0x541D
_FIFREEZE, _FS_IOC_SETFLAGS, _IMMUTABLE = 0xC0045877, 0x40086602, 0x10
_V3_CAPABILITIES = bytes.fromhex("01000003" + "ff" * 16 + "00000000")
_IPT_GET_INFO, _EBT_GET_INFO = 64, 128


@attack("processes", "close-on-exec", apart=True)
def descriptors_are_inherited(facts: Facts) -> str:
    """What the guest, the nursery or the zygote had open: files, namespaces, seccomp listeners, pidfds."""
    kinds = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            if int(name) <= 2 or target.startswith(("/proc/", "pipe:")):
                continue
            kinds.append(target.partition(":")[0])
            plain = target.startswith("socket:") or target in _ANONYMOUS or target == "/dev/null"
            if not plain:
                raise GotThrough(f"descriptor {name} is {target}")
    return f"inherited beside pipes: {', '.join(sorted(kinds)) or 'nothing'}"


@attack("processes", "seccomp")
def a_pidfd_leads_into_others(facts: Facts) -> str:
    """A descriptor of PID 1 or of the parent: its files taken, its namespaces joined, its memory advised."""
    answers = []
    for pid in (1, os.getppid()):
        try:
            descriptor = native.call("pidfd_open", pid, 0)
        except OSError as error:
            answers.append(f"pidfd_open {errno.errorcode.get(error.errno or 0, '')}")
            continue
        calls: list[tuple[str, int, int, int]] = [
            ("pidfd_getfd", descriptor, number, 0) for number in range(8)
        ]
        calls += [
            ("setns", descriptor, flag, 0) for flag in (native.CLONE_NEWNS, native.CLONE_NEWUSER, 0x7E020000)
        ]
        native.refuse_all(calls)
        os.close(descriptor)
        answers.append("pidfd_getfd and setns EPERM")
    return ", ".join(answers)


@attack("processes", "seccomp")
def namespaces_of_every_kind(facts: Facts) -> str:
    """Each flag of unshare alone, the time namespace too, and with every other bit set."""
    flags = [1 << bit for bit in (7, 17, 25, 26, 27, 28, 29, 30)]
    return native.refuse_all([*(("unshare", flag) for flag in flags), ("unshare", 0x7E020080 | 1 << 40)])


@attack("processes", "user namespace", who={"root", "user"})
def limits_of_the_host_are_changed(facts: Facts) -> str:
    """Limits, scheduling and processors of processes outside, by the pids the host knows them by."""
    pid = facts["victim"]
    if facts["sandboxed"] and os.path.exists(f"/proc/{pid}"):
        raise NotApplicable(f"{pid} is a process of the sandbox's own")
    done = []
    for name, change in (
        ("prlimit", lambda: resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))),
        ("setpriority", lambda: os.setpriority(os.PRIO_PROCESS, pid, 19)),
        ("sched_setaffinity", lambda: os.sched_setaffinity(pid, {0})),
        ("sched_setscheduler", lambda: os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))),
        ("ioprio_set", lambda: native.call("ioprio_set", 1, pid, 3 << 13)),
    ):
        with suppress(OSError):
            change()
            done.append(name)
    if done:
        raise GotThrough(f"{', '.join(done)} of process {pid}")
    return f"process {pid} is not there for any of them"


@attack("files", "capabilities", who={"root", "user"})
def attributes_give_power(facts: Facts) -> str:
    """File capabilities, overlay's own attributes (CVE-2023-0386), immutable and frozen files."""
    path = f"/tmp/ringfence-attributes-{os.getpid()}"
    with open(path, "w") as file, ExitStack() as stack:
        stack.callback(os.unlink, path)
        for name, value in (
            ("security.capability", _V3_CAPABILITIES),
            ("trusted.overlay.opaque", b"y"),
            ("trusted.overlay.redirect", b"/etc"),
        ):
            with suppress(OSError):
                os.setxattr(path, name, value)
                raise GotThrough(f"{name} could be set")
        for name, request, argument in (
            ("FIFREEZE", _FIFREEZE, b"\0" * 8),
            ("FS_IOC_SETFLAGS", _FS_IOC_SETFLAGS, _IMMUTABLE.to_bytes(8, "little")),
        ):
            with suppress(OSError):
                if facts["sandboxed"]:
                    fcntl.ioctl(file, request, argument)
                    raise GotThrough(f"{name} was done")
    return "none of three attributes and two ioctls"


@attack("kernel interfaces", "capabilities")
def the_console_is_taken(facts: Facts) -> str:
    """TIOCCONS: what the host writes to its console comes here instead."""
    _, terminal = pty.openpty()
    try:
        if not facts["sandboxed"]:
            raise GotThrough("it is not tried outside of a sandbox")
        fcntl.ioctl(terminal, _TIOCCONS)
    except OSError as error:
        return f"TIOCCONS {errno.errorcode.get(error.errno or 0, '')}"
    raise GotThrough("TIOCCONS was done")


@attack("kernel interfaces", "capabilities")
def tables_of_the_firewall(facts: Facts) -> str:
    """iptables and its kin by socket options (CVE-2021-22555, CVE-2016-4997)."""
    answers = []
    for family, level in ((socket.AF_INET, socket.IPPROTO_IP), (socket.AF_INET6, socket.IPPROTO_IPV6)):
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            for option in (_IPT_GET_INFO, _EBT_GET_INFO):
                try:
                    probe.getsockopt(level, option, 84)
                except OSError as error:
                    if error.errno not in (errno.EPERM, errno.ENOPROTOOPT):
                        raise GotThrough(f"option {option} reached the tables: {error}") from None
                    answers.append(errno.errorcode[error.errno])
                    continue
                raise GotThrough(f"option {option} was answered")
    return ", ".join(answers)
