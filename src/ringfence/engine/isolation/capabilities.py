"""Capabilities: what a sandbox's processes keep, and that they can never get more.

Inside its user namespace a sandbox's PID 1 starts with every capability over that namespace. It keeps the
few that it needs over its own files and processes; everything else leaves all five sets, so that nothing it
starts, not even a program owned by root, can have it again.
"""

import contextlib

from . import linux

_ORDER = (  # in the kernel's order
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
    "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT "
    "SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE "
    "AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ "
    "PERFMON BPF CHECKPOINT_RESTORE"
)
_NAMES = _ORDER.split()
NUMBERS: dict[str, int] = {name: number for number, name in enumerate(_NAMES)}
"""Each capability's number by its name without ``CAP_`` (``include/uapi/linux/capability.h``)."""

_MOST = 64  # the sets are 64 bits wide


def names(mask: int) -> list[str]:
    """The names in a set; a capability newer than this table is shown by its number."""
    held = [number for number in range(_MOST) if mask >> number & 1]
    return [_NAMES[number] if number < len(_NAMES) else str(number) for number in held]


def bounding() -> int:
    """The bounding set of this thread, as a mask."""
    mask = 0
    for number in range(_MOST):
        try:
            mask |= linux.prctl(linux.PR_CAPBSET_READ, number) << number
        except OSError:  # one past the newest that the kernel knows
            break
    return mask


def drop(keep: frozenset[int] = frozenset()) -> None:
    """Give up every capability but those in `keep`, from the bounding set too; call it before seccomp.

    What is kept stays effective and permitted if it was permitted before, and is never inheritable or
    ambient. Can be called again, with the same or less to keep.

    Raises `OSError` when the bounding set would have to shrink and CAP_SETPCAP is not effective.
    """
    wanted = sum(1 << number for number in keep)
    # In this order: shrinking the bounding set takes CAP_SETPCAP, which capset may take away.
    for number in range(_MOST):
        if not wanted >> number & 1 and not _drop_from_bounding(number):
            break
    with contextlib.suppress(OSError):  # Linux before 4.3 has no ambient set
        linux.prctl(linux.PR_CAP_AMBIENT, linux.PR_CAP_AMBIENT_CLEAR_ALL)
    _, permitted, _ = linux.capget()
    linux.capset(permitted & wanted, permitted & wanted, 0)


def _drop_from_bounding(number: int) -> bool:
    """Drop one; whether the kernel knows it."""
    try:
        linux.prctl(linux.PR_CAPBSET_DROP, number)
    except PermissionError:
        if bounding() >> number & 1:
            raise
    except OSError:  # one past the newest
        return False
    return True


def no_new_privs() -> None:
    """Make set-user-ID bits and file capabilities inert, for this thread and all it starts, for good."""
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
