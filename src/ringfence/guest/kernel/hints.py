"""What an exception has to do with the sandbox's limits and rules, as a sentence for whoever wrote the code.

The kernel says only "operation not permitted": that it was a rule, and which, is concluded here from the
error's number and the line that raised it. Native code that swallows the error number cannot be helped.
"""

import errno
import linecache
import re
import resource
from collections.abc import Iterator

_MIB = 1 << 20
_ALWAYS = "the same in all sandboxes, and no setting of the server allows it"
_OPERATOR = "an operator finds the call in the kernel's log when the server runs with --seccomp-log"
_SOCKETS = "only Unix, TCP, UDP, ping and route netlink sockets are for sandboxes"

RULES = {
    "unshare": "namespaces and mounts are made before any code of the sandbox runs",
    "setns": "namespaces and mounts are made before any code of the sandbox runs",
    "chroot": "namespaces and mounts are made before any code of the sandbox runs",
    "mount": "namespaces and mounts are made before any code of the sandbox runs",
    "umount": "namespaces and mounts are made before any code of the sandbox runs",
    "pivot_root": "namespaces and mounts are made before any code of the sandbox runs",
    "ptrace": "it looks into other processes or the kernel",
    "bpf": "it looks into other processes or the kernel",
    "perf_event_open": "it looks into other processes or the kernel",
    "process_vm_readv": "it looks into other processes or the kernel",
    "pidfd_getfd": "it looks into other processes or the kernel",
    "keyctl": "kernel keyrings are shared by all sandboxes",
    "add_key": "kernel keyrings are shared by all sandboxes",
    "userfaultfd": "kernel exploits are built on these ways into memory",
    "io_uring": "io_uring would carry out operations that no filter sees",
    "sethostname": "only the machine's administrator may",
    "clock_settime": "only the machine's administrator may",
    "settimeofday": "only the machine's administrator may",
    "reboot": "only the machine's administrator may",
    "quotactl": "only the machine's administrator may",
    "TIOCSTI": "terminal input may not be forged, nor line disciplines changed",
    "personality": "address space layout randomization stays on",
    "socketpair": "only Unix socket pairs are for sandboxes",
    "socket": _SOCKETS,
}
"""What a line of Python calls, and why the system call policy refuses it. Longer words come first."""

_WORDS = re.compile("|".join(sorted(map(re.escape, RULES), key=len, reverse=True)))
_REFUSALS = (errno.EPERM, errno.ENOSYS, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)
_NO_RIGHTS = (
    (re.compile(r"\bnice\b|setpriority|sched_set"), "priorities may only be lowered in a sandbox"),
    (re.compile(r"\bset(?:res?|fs)?[ug]id|setgroups|initgroups"), "a user cannot become another; use sudo"),
    (re.compile(r"setrlimit|prlimit"), "limits may only be lowered in a sandbox"),
    (re.compile(r"mknod"), "a sandbox has only the devices that are in /dev"),
)


def hint_for(error: BaseException) -> str | None:
    """A sentence about `error` or what caused it; None when limits and rules have nothing to do with it."""
    for one in _chain(error):
        text = _limit(one) or _refusal(one)
        if text:
            return text
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _limit(error: BaseException) -> str | None:
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EMFILE:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return f"limit: a process may have {files} open files here (metadata ringfence.open_files)"
    if number == errno.EFBIG:
        size = resource.getrlimit(resource.RLIMIT_FSIZE)[0] // _MIB
        return (
            f"limit: a file may have {size} MiB here, four times the disk limit (metadata ringfence.disk_mb)"
        )
    if isinstance(error, MemoryError) or number == errno.ENOMEM:
        return f"limit: this sandbox has {_memory()} MiB of memory (metadata ringfence.memory_mb)"
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        count = resource.getrlimit(resource.RLIMIT_NPROC)[0]
        return f"limit: this sandbox may have {count} processes and threads (metadata ringfence.pids)"
    return None


def _memory() -> int:
    # Not sysconf: that asks the kernel for the machine's.
    with open("/proc/meminfo") as file:
        return int(file.readline().split()[1]) >> 10


def _refusal(error: BaseException) -> str | None:
    if not isinstance(error, OSError) or error.errno not in _REFUSALS:
        return None
    line = _raising_line(error)
    code = errno.errorcode[error.errno]
    for pattern, reason in _NO_RIGHTS:
        if error.errno == errno.EPERM and pattern.search(line):
            return f"refused: {reason}"
    if found := _WORDS.search(line):
        call = found[0]
        return f"refused: {call} ({code}), by the system call policy: {RULES[call]} ({_ALWAYS})"
    if error.errno == errno.EPERM and error.filename is None:
        return f"refused: {code}, by the system call policy or for want of a right; {_OPERATOR}"
    return None


def _raising_line(error: BaseException) -> str:
    """The source of the line that raised: names of functions in it tell which system call it was."""
    trace = error.__traceback__
    if trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    return linecache.getline(trace.tb_frame.f_code.co_filename, trace.tb_lineno)
