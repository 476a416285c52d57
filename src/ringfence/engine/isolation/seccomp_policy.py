"""Which system calls a sandbox may make, and what it is told about the others: data only, compiled by
`seccomp`.

The start was the list of the container runtimes (moby's default profile). Taken out of it is what Python, its
packages, shells, compilers and servers do without and what kernel exploits live on. Every call of
`syscalls` is in exactly one of the four tables below; a call that is in none does not exist for a sandbox
(``ENOSYS``), which is what programs expect of an older kernel, so they fall back.
"""

import errno
from dataclasses import dataclass, field

ALLOW = 0x7FFF0000
LOG = 0x7FFC0000
KILL_PROCESS = 0x80000000
_ERRNO = 0x00050000
EPERM = _ERRNO | errno.EPERM
ENOSYS = _ERRNO | errno.ENOSYS
EAFNOSUPPORT = _ERRNO | errno.EAFNOSUPPORT
EPROTONOSUPPORT = _ERRNO | errno.EPROTONOSUPPORT
PRETEND = _ERRNO
"""Not done, and reported as done: errno 0."""


@dataclass(frozen=True)
class Check:
    """A decision on the low 32 bits of argument `argument` (from 0), after `mask`.

    Only the low half is compared, because the kernel truncates these arguments to int: a filter that looked
    at all 64 bits would be passed by setting a high one (CVE-2019-10063). Outcomes are actions or further
    checks.
    """

    argument: int
    cases: dict[int, "int | Check"]
    otherwise: "int | Check"
    mask: int = 0xFFFFFFFF


@dataclass(frozen=True)
class Policy:
    """What to do about each call, by its name; `unknown` is for numbers without a name.

    allowed: calls that need no look at their arguments.
    refused: call to what it gets instead of being made.
    checks: calls that depend on an argument.
    """

    allowed: frozenset[str]
    refused: dict[str, int]
    checks: dict[str, Check]
    unknown: int = ENOSYS
    reasons: dict[str, str] = field(default_factory=dict)


_ALLOWED = {
    "files": """
        access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2
        fadvise64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr
        file_getattr file_setattr flistxattr flock fremovexattr fsetxattr fstat fstatfs fsync ftruncate
        futimesat getcwd getdents getdents64 getxattr getxattrat inotify_add_watch inotify_init
        inotify_init1 inotify_rm_watch lchown lgetxattr link linkat listxattr listxattrat llistxattr
        lremovexattr lseek lsetxattr lstat mkdir mkdirat mknod mknodat newfstatat open openat openat2
        pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv
        removexattr removexattrat rename renameat renameat2 rmdir sendfile setxattr setxattrat splice stat
        statfs statx symlink symlinkat sync_file_range syncfs tee truncate umask unlink unlinkat utime
        utimensat utimes vmsplice write writev cachestat
    """,
    "memory": """
        brk madvise map_shadow_stack membarrier memfd_create mincore mlock mlock2 mlockall mmap mprotect
        mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect
    """,
    "processes": """
        arch_prctl execve execveat exit exit_group fork vfork getpgid getpgrp getpid getppid getsid gettid
        kill pidfd_open pidfd_send_signal prctl set_thread_area get_thread_area set_tid_address setpgid
        setsid tgkill tkill wait4 waitid rseq rseq_slice_yield restart_syscall get_robust_list
        set_robust_list uprobe uretprobe
    """,
    "users": """
        capget capset getegid geteuid getgid getgroups getresgid getresuid getuid setfsgid setfsuid setgid
        setgroups setregid setresgid setresuid setreuid setuid
    """,
    "signals": """
        alarm pause rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
        rt_sigtimedwait rt_tgsigqueueinfo sigaltstack signalfd signalfd4
    """,
    "scheduling": """
        getcpu getpriority ioprio_get ioprio_set sched_get_priority_max sched_get_priority_min
        sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
        sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield setpriority
    """,
    "limits": "getrlimit getrusage prlimit64 setrlimit",
    "time": """
        clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep setitimer time
        timer_create timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create
        timerfd_gettime timerfd_settime times
    """,
    "waiting": """
        epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 futex
        futex_requeue futex_wait futex_waitv futex_wake pipe pipe2 poll ppoll pselect6 select
    """,
    "sockets": """
        accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg
        sendmmsg sendmsg sendto shutdown
    """,
    "System V and POSIX IPC": """
        mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd
        semctl semget semop semtimedop shmat shmctl shmdt shmget
    """,
    "the system": "getrandom sysinfo uname",
    "own confinement": "landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp",
}

_REFUSED = {
    "io_uring would carry out operations that no filter sees": """
        io_uring_enter io_uring_register io_uring_setup
    """,
    "kernel exploits are built on these ways into memory": """
        get_mempolicy mbind memfd_secret migrate_pages move_pages process_madvise process_mrelease
        remap_file_pages set_mempolicy set_mempolicy_home_node userfaultfd
    """,
    "it looks into other processes or the kernel": """
        bpf kcmp lookup_dcookie perf_event_open pidfd_getfd process_vm_readv process_vm_writev ptrace
    """,
    "kernel keyrings are shared by all sandboxes": "add_key keyctl request_key",
    "namespaces and mounts are made before any code of the sandbox runs": """
        chroot fsconfig fsmount fsopen fspick listmount listns mount mount_setattr move_mount open_tree
        open_tree_attr pivot_root setns statmount umount2 unshare
    """,
    "file handles reach files outside of the root directory": """
        fanotify_init fanotify_mark name_to_handle_at open_by_handle_at
    """,
    "only the machine's administrator may": """
        acct adjtimex clock_adjtime clock_settime delete_module finit_module init_module ioperm iopl
        kexec_file_load kexec_load lsm_get_self_attr lsm_list_modules lsm_set_self_attr modify_ldt quotactl
        quotactl_fd reboot setdomainname sethostname settimeofday swapoff swapon syslog vhangup
    """,
}

_ABSENT = {
    "its flags are in memory, where a filter cannot look; libraries use clone instead": "clone3",
    "kernel AIO is an old attack surface; libraries use threads instead": """
        io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit
    """,
    "obsolete": """
        _sysctl afs_syscall create_module epoll_ctl_old epoll_wait_old get_kernel_syms getpmsg nfsservctl
        putpmsg query_module security sysfs tuxcall uselib ustat vserver
    """,
}

# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET. NEWTIME is no flag of clone: 0x80 is
# part of the signal number there.
_CLONE_NEW = 0x7E020000
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_SOCK_STREAM, _SOCK_DGRAM, _SOCK_RAW = 1, 2, 3
_TCP, _UDP, _ICMP, _ICMPV6 = 6, 17, 1, 58
_TIOCSTI, _TIOCLINUX, _TIOCSETD = 0x5412, 0x541C, 0x5423
_SOL_SOCKET, _SO_LINGER = 1, 13

# Rare protocols (SCTP, DCCP, MPTCP, UDP-Lite) are the least tested of the kernel's network code.
_STREAM = Check(2, {0: ALLOW, _TCP: ALLOW}, EPROTONOSUPPORT)
_DATAGRAM = Check(2, {0: ALLOW, _UDP: ALLOW, _ICMP: ALLOW, _ICMPV6: ALLOW}, EPROTONOSUPPORT)
_INTERNET = Check(1, {_SOCK_STREAM: _STREAM, _SOCK_DGRAM: _DATAGRAM}, EPERM, mask=0xF)
# NETLINK_ROUTE only (interfaces and addresses, for getaddrinfo): netfilter's netlink is an exploit classic.
_NETLINK = Check(2, {0: ALLOW}, EAFNOSUPPORT)

_CHECKS = {
    "clone": Check(0, {0: ALLOW}, EPERM, mask=_CLONE_NEW),
    # Typing into a terminal that is not one's own, and loading line disciplines (CVE-2017-5226,
    # CVE-2023-28100).
    "ioctl": Check(1, {_TIOCSTI: EPERM, _TIOCLINUX: EPERM, _TIOCSETD: EPERM}, ALLOW),
    # Only PER_LINUX and the question: other personalities switch off address space layout randomization.
    "personality": Check(0, {0: ALLOW, 0xFFFFFFFF: ALLOW}, EPERM),
    # The last to close a socket that lingers has to wait, and that could be a process of the host which was
    # sent it.
    "setsockopt": Check(1, {_SOL_SOCKET: Check(2, {_SO_LINGER: PRETEND}, ALLOW)}, ALLOW),
    "socket": Check(
        0, {_AF_UNIX: ALLOW, _AF_INET: _INTERNET, _AF_INET6: _INTERNET, _AF_NETLINK: _NETLINK}, EAFNOSUPPORT
    ),
    "socketpair": Check(0, {_AF_UNIX: ALLOW}, EAFNOSUPPORT),
}
_CHECK_REASONS = {
    "clone": "new namespaces are not for sandboxes",
    "ioctl": "terminal input may not be forged, nor line disciplines changed",
    "personality": "address space layout randomization stays on",
    "setsockopt": "no socket keeps who closes it waiting: SO_LINGER has no effect",
    "socket": "only Unix, TCP, UDP, ping and route netlink sockets are for sandboxes",
    "socketpair": "only Unix socket pairs are for sandboxes",
}


def _names(groups: dict[str, str]) -> dict[str, str]:
    return {name: group for group, names in groups.items() for name in names.split()}


_SYNC_REASON = "it would flush the whole host's disks, and a sandbox's own files are in memory"

DEFAULT = Policy(
    allowed=frozenset(_names(_ALLOWED)),
    refused={
        **dict.fromkeys(_names(_REFUSED), EPERM),
        **dict.fromkeys(_names(_ABSENT), ENOSYS),
        "sync": PRETEND,
    },
    checks=_CHECKS,
    reasons={**_names(_REFUSED), **_names(_ABSENT), **_CHECK_REASONS, "sync": _SYNC_REASON},
)
"""The policy of every sandbox."""

ZYGOTE = Policy(
    allowed=DEFAULT.allowed | {"setns"},
    refused={name: action for name, action in DEFAULT.refused.items() if name != "setns"},
    checks=DEFAULT.checks,
    reasons=DEFAULT.reasons,
)
"""A kernel zygote's: it joins the namespaces of its sandboxes before their own policy holds."""

AUDIT = Policy(
    allowed=DEFAULT.allowed,
    refused={name: action if name == "clone3" else LOG for name, action in DEFAULT.refused.items()},
    checks=DEFAULT.checks,
    unknown=LOG,
    reasons=DEFAULT.reasons,
)
"""Lets refused calls through and has the kernel log them, to find out what a program needs.

Architecture and arguments are still checked, but it is no protection: not for code that is not trusted.
"""
