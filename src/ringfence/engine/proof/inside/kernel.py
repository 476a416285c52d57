"""Attacks on the kernel: its files, its calls, and the architectures a filter may have forgotten."""

import fcntl
import os
import platform
import pty
import socket
from contextlib import suppress

from ringfence.engine.proof.inside import native
from ringfence.engine.proof.inside.harness import Facts, GotThrough, NotApplicable, attack

CATEGORY = "kernel interfaces"
_PROC = "masked /proc"
_SECCOMP = "seccomp"
_WRITTEN = (
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/hostname",
    "/proc/sysrq-trigger",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/vm/drop_caches",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/kernel/pid_max",
    "/proc/sys/user/max_user_namespaces",
    "/proc/sys/fs/binfmt_misc/register",
    "/proc/irq/default_smp_affinity",
    "/sys/kernel/uevent_helper",
    "/sys/power/state",
    "/sys/fs/cgroup/release_agent",
    "/sys/kernel/mm/ksm/run",
    "/proc/1/oom_score_adj",
    "/proc/1/uid_map",
    "/proc/self/uid_map",
    "/proc/1/setgroups",
)
_SECRET = (
    "/proc/kcore",
    "/proc/kmsg",
    "/dev/kmsg",
    "/dev/mem",
    "/proc/kallsyms",
    "/proc/keys",
    "/proc/key-users",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/proc/slabinfo",
    "/proc/vmallocinfo",
    "/proc/iomem",
    "/proc/ioports",
    "/proc/diskstats",
    "/proc/partitions",
    "/proc/config.gz",
    "/proc/cmdline",
    "/proc/interrupts",
    "/proc/pagetypeinfo",
    "/proc/zoneinfo",
    "/proc/bus/pci/devices",
    "/proc/acpi/wakeup",
    "/sys/kernel/debug/sched",
    "/sys/kernel/tracing/trace",
    "/sys/kernel/vmcoreinfo",
    "/sys/firmware/dmi/tables/DMI",
    "/sys/class/dmi/id/product_uuid",
    "/sys/devices/virtual/dmi/id/product_serial",
    "/etc/machine-id",
)


@attack(CATEGORY, _PROC)
def the_hosts_settings_are_written(facts: Facts) -> str:
    """core_pattern, sysrq and their like: opened for writing, never written to."""
    opened = []
    for path in _WRITTEN:
        with suppress(OSError):
            os.close(os.open(path, os.O_WRONLY))
            if path != "/proc/self/uid_map":  # its own: what is written there is checked by the kernel
                opened.append(path)
    if opened:
        raise GotThrough(f"can be written: {', '.join(opened)}")
    return f"none of {len(_WRITTEN)} files can be opened for writing"


@attack(CATEGORY, _PROC)
def the_hosts_secrets_are_read(facts: Facts) -> str:
    """Files that tell about the machine, its memory, its hardware and its other users."""
    told = []
    for path in _SECRET:
        with suppress(OSError), open(path, "rb") as file:
            os.set_blocking(file.fileno(), False)
            if (file.read(64) or b"").strip(b"\0\n "):
                told.append(path)
    if told:
        raise GotThrough(f"can be read: {', '.join(told)}")
    return f"none of {len(_SECRET)} files tells anything"


@attack(CATEGORY, "UTS namespace")
def the_hosts_name_is_told(facts: Facts) -> str:
    """Libraries keep the name that the machine had when they were imported, which was before the fork."""
    names = {platform.node(), socket.gethostname(), os.uname().nodename}
    if facts["host_name"] == "sandbox":
        raise NotApplicable("the host has the name of a sandbox")
    if facts["host_name"] in names:
        raise GotThrough("the host's name is known")
    return f"named {', '.join(sorted(names))}"


@attack(CATEGORY, _PROC)
def an_id_map_is_written_again(facts: Facts) -> str:
    """A second write of the map of ids."""
    for name, text in (("uid_map", b"0 0 1\n"), ("gid_map", b"0 0 1\n")):
        with suppress(OSError):
            descriptor = os.open(f"/proc/self/{name}", os.O_WRONLY)
            os.write(descriptor, text)
            raise GotThrough(f"{name} could be written")
    return "uid_map and gid_map cannot be written"


@attack(CATEGORY, "cgroup namespace")
def a_release_agent_is_set(facts: Facts) -> str:
    """CVE-2022-0492: a cgroup file system of one's own, and a program for the host to run."""
    for directory in ("/sys/fs/cgroup", "/cgroup", "/sys/fs/cgroup/memory"):
        for name in ("release_agent", "cgroup.procs", "notify_on_release"):
            with suppress(OSError):
                os.close(os.open(f"{directory}/{name}", os.O_WRONLY))
                raise GotThrough(f"{directory}/{name} can be written")
    return native.refuse("mount", b"none", b"/tmp", b"no-such-type", 0, 0)


@attack(CATEGORY, _SECCOMP)
def mounts(facts: Facts) -> str:
    """The old calls and the new ones, which a list of forbidden calls may have missed."""
    return native.refuse_all(
        [
            ("mount", 0, 1, 0, -1, 0),
            ("umount2", 1, -1),
            ("fsopen", 1, -1),
            ("fsmount", -1, -1, -1),
            ("fsconfig", -1, -1, 0, 0, 0),
            ("fspick", -1, 1, -1),
            ("open_tree", -1, b"", 0x1000),
            ("move_mount", -1, 0, -1, 0, 0),
            ("mount_setattr", -1, 0, -1, 0, 0),
            ("statmount", 0, 0, 0, -1),
            ("listmount", 0, 0, 0, -1),
        ]
    )


@attack(CATEGORY, _SECCOMP)
def tracing_and_bpf(facts: Facts) -> str:
    """bpf and perf_event_open, the source of many exploits."""
    return native.refuse_all(
        [("bpf", -1, 0, 0), ("perf_event_open", 0, 0, -1, -1, -1), ("lookup_dcookie", 0, 0, 0)]
    )


@attack(CATEGORY, _SECCOMP)
def io_uring(facts: Facts) -> str:
    """Its operations are seen by no filter."""
    return native.refuse_all(
        [("io_uring_setup", 0, 0), ("io_uring_enter", -1, 0, 0, 0, 0, 0), ("io_uring_register", -1, 0, 0, 0)]
    )


@attack(CATEGORY, _SECCOMP)
def exploit_helpers(facts: Facts) -> str:
    """userfaultfd and others that make races in the kernel easy to win."""
    return native.refuse_all(
        [
            ("userfaultfd", 1 << 20),
            ("memfd_secret", -1),
            ("move_pages", 0, -1, 0, 0, 0, -1),
            ("remap_file_pages", 1, 1, 1, 1, 1),
            ("migrate_pages", 0, 0, 1, 1),
            ("modify_ldt", 99, 0, 0),
        ]
    )


@attack(CATEGORY, _SECCOMP)
def keyrings(facts: Facts) -> str:
    """They are shared by all processes with the same id."""
    return native.refuse_all(
        [("keyctl", -1, 0, 0, 0, 0), ("add_key", 0, 0, 0, 0, 0), ("request_key", 0, 0, 0, 0)]
    )


@attack(CATEGORY, _SECCOMP)
def modules_and_reboot(facts: Facts) -> str:
    """What only an administrator may, with arguments that make it fail where it is let through."""
    return native.refuse_all(
        [
            ("init_module", 0, 0, 0),
            ("finit_module", -1, 0, 0),
            ("delete_module", 1, 0),
            ("kexec_load", 0, 0, 0, -1),
            ("kexec_file_load", -1, -1, 0, 0, -1),
            ("reboot", 0, 0, 0, 0),
            ("swapon", 1, 0),
            ("swapoff", 1),
            ("acct", 1),
            ("iopl", 4),
            ("ioperm", -1, 1, 1),
            ("quotactl", -1, 0, 0, 0),
            ("syslog", 99, 0, 0),
        ]
    )


@attack(CATEGORY, _SECCOMP)
def clocks_and_names(facts: Facts) -> str:
    """The host's clock, and the machine's name."""
    return native.refuse_all(
        [
            ("settimeofday", 1, 1),
            ("clock_settime", -1, 1),
            ("adjtimex", 1),
            ("clock_adjtime", -1, 1),
            ("sethostname", 1, -1),
            ("setdomainname", 1, -1),
        ]
    )


@attack(CATEGORY, _SECCOMP)
def the_32_bit_calls(facts: Facts) -> str:
    """int 0x80: a filter that does not look at the architecture is passed by it."""
    if native.MACHINE != "x86_64":
        raise NotApplicable(f"{native.MACHINE} has no int 0x80")
    result = native.run_code(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20 (getpid); int 0x80; ret
    if result > 0:
        raise GotThrough(f"getpid by int 0x80 gave {result}")
    return f"int 0x80 gave {result}"


@attack(CATEGORY, _SECCOMP)
def the_x32_calls(facts: Facts) -> str:
    """The third table of calls of x86_64."""
    if native.MACHINE != "x86_64":
        raise NotApplicable(f"{native.MACHINE} has no x32")
    return native.refuse(0x40000000 + native.number("getpid"))


@attack(CATEGORY, _SECCOMP)
def input_for_a_terminal_is_forged(facts: Facts) -> str:
    """TIOCSTI and TIOCLINUX, also with high bits (CVE-2017-5226, CVE-2019-10063, CVE-2023-28100)."""
    _, terminal = pty.openpty()
    command = [
        ("ioctl", terminal, request, b"x") for request in (0x5412, 0x5412 | 1 << 32, 0x541C, 0x541C | 1 << 40)
    ]
    with suppress(OSError):
        fcntl.ioctl(terminal, 0x540E, 0)  # make it the controlling terminal: without one even root gets EPERM
    return native.refuse_all(command)


@attack(CATEGORY, _SECCOMP)
def address_randomization_is_switched_off(facts: Facts) -> str:
    """personality(ADDR_NO_RANDOMIZE), plainly and with high bits."""
    return native.refuse_all([("personality", 0x40000), ("personality", 0x40000 | 1 << 40)])


@attack(CATEGORY, _SECCOMP)
def the_filter_is_taken_off(facts: Facts) -> str:
    """A filter is in force, and no call takes it away."""
    if native.status().get("Seccomp") != "2":
        raise GotThrough(f"Seccomp: {native.status().get('Seccomp')}")
    with suppress(OSError):
        native.call("prctl", 22, 0, 0, 0, 0)
        raise GotThrough("seccomp could be switched off")
    return "Seccomp: 2, and it stays"
