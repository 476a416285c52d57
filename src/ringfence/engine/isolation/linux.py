"""The Linux calls that Python's `os` does not have, as thin functions over ctypes.

Each function raises `OSError` (or the subclass for its errno) with a message that names the call and what it
was aimed at: ``[Errno 1] mount overlay on /usr: Operation not permitted``. Nothing is imported lazily and no
thread is started: all of it is meant for single-threaded processes just after a fork.

Constants have the kernel's names and values (``include/uapi/linux``), so that a reader can look them up.
"""

import ctypes
import errno
import os
import platform
import struct

Path = str | bytes | os.PathLike[str]
Arg = int | bytes | ctypes.Array[ctypes.c_char] | None

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000

# mount(2) and umount2(2)
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 0x2

# the new mount API
OPEN_TREE_CLONE = 0x1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
FSOPEN_CLOEXEC = 0x1
FSMOUNT_CLOEXEC = 0x1
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_IDMAP = 0x100000

# openat2(2)
RESOLVE_NO_XDEV = 0x1
RESOLVE_NO_MAGICLINKS = 0x2
RESOLVE_IN_ROOT = 0x10

# namespaces
CLONE_NEWNS = 0x20000
CLONE_NEWCGROUP = 0x2000000
CLONE_NEWUTS = 0x4000000
CLONE_NEWIPC = 0x8000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# prctl(2)
PR_SET_PDEATHSIG = 1
PR_GET_DUMPABLE = 3
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_GET_SECCOMP = 21
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

SECCOMP_SET_MODE_FILTER = 1
CLOSE_RANGE_CLOEXEC = 0x4
_CAPABILITY_VERSION_3 = 0x20080522

# Numbers from 424 on are the same on every architecture; these four are older.
_OLD_NUMBERS = {
    "x86_64": {"pivot_root": 155, "capget": 125, "capset": 126, "seccomp": 317},
    "aarch64": {"pivot_root": 41, "capget": 90, "capset": 91, "seccomp": 277},
}
_NEW_NUMBERS = {
    "pidfd_send_signal": 424,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "pidfd_open": 434,
    "close_range": 436,
    "openat2": 437,
    "mount_setattr": 442,
    "landlock_create_ruleset": 444,
    "landlock_add_rule": 445,
    "landlock_restrict_self": 446,
}

ARCH = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
_NUMBERS = {**_NEW_NUMBERS, **_OLD_NUMBERS.get(ARCH, {})}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.prctl.restype = ctypes.c_int
_libc.unshare.argtypes = [ctypes.c_int]
_libc.setns.argtypes = [ctypes.c_int, ctypes.c_int]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]


def _show(target: object) -> str:
    if isinstance(target, bytes):
        return os.fsdecode(target)
    return str(target)


def check(result: int, call: str, target: object = "") -> int:
    """Return `result`; when it is negative, raise ctypes' errno as `OSError` naming `call` and `target`."""
    if result >= 0:
        return result
    number = ctypes.get_errno()
    what = f"{call} {_show(target)}" if target != "" else call
    raise OSError(number, f"{what}: {os.strerror(number)}")


def _argument(value: Arg) -> object:
    # Every variadic argument must be a full register wide: ctypes would pass a Python int as a 32-bit C int.
    if isinstance(value, int):
        return ctypes.c_ulong(value & 0xFFFFFFFFFFFFFFFF)
    if value is None:
        return ctypes.c_void_p(None)
    return value


def raw_syscall(number: int, *args: Arg) -> int:
    """Make system call `number` and return its result, -1 with ctypes' errno set when it fails."""
    result: int = _libc.syscall(ctypes.c_long(number), *[_argument(arg) for arg in args])
    return result


def syscall(name: str, *args: Arg, target: object = "") -> int:
    """Make the system call `name` (this module must know its number); `target` is for the error message."""
    number = _NUMBERS.get(name)
    if number is None:
        raise OSError(errno.ENOSYS, f"{name}: no number known for {ARCH}")
    return check(raw_syscall(number, *args), name, target)


def mount(
    source: Path | None, target: Path, fstype: str | None = None, flags: int = 0, data: str | None = None
) -> None:
    """Mount; `source` and `fstype` may be None where the kernel ignores them (bind, remount, propagation)."""
    result = _libc.mount(
        os.fsencode(source) if source is not None else b"none",
        os.fsencode(target),
        fstype.encode() if fstype else None,
        flags,
        os.fsencode(data) if data else None,
    )
    what = fstype or ("remount" if flags & MS_REMOUNT else _show(source))
    check(result, "mount", f"{what} on {_show(target)}")


def umount(target: Path, flags: int = 0) -> None:
    """umount2(2); `MNT_DETACH` for a tree that may be busy."""
    check(_libc.umount2(os.fsencode(target), flags), "umount", target)


def pivot_root(new: Path, old: Path) -> None:
    """Make `new` the root of the mount namespace and hang the old one on `old` (may be the same)."""
    syscall("pivot_root", os.fsencode(new), os.fsencode(old), target=new)


def unshare(flags: int) -> None:
    """Move into new namespaces, given as `CLONE_NEW*` flags."""
    check(_libc.unshare(flags), "unshare", hex(flags))


def setns(fd: int, flags: int = 0) -> None:
    """Join the namespace behind `fd`, or with a pidfd those of the process that `flags` name."""
    check(_libc.setns(fd, flags), "setns", f"fd {fd} {flags:#x}")


def prctl(op: int, *args: int) -> int:
    """Do a process operation; missing arguments are zero, as newer operations demand."""
    padded = [*args, 0, 0, 0, 0][:4]
    result: int = _libc.prctl(ctypes.c_int(op), *[_argument(arg) for arg in padded])
    return check(result, "prctl", op)


def open_tree(dirfd: int, path: Path, flags: int) -> int:
    """A descriptor of the mount at `path`, or with `OPEN_TREE_CLONE` of a detached copy of it (Linux 5.2)."""
    return syscall("open_tree", dirfd, os.fsencode(path), flags | OPEN_TREE_CLOEXEC, target=path)


def move_mount(
    from_fd: int, from_path: Path, to_fd: int, to_path: Path, flags: int = MOVE_MOUNT_F_EMPTY_PATH
) -> None:
    """Attach the mount behind `from_fd` (`from_path` is ``""`` then) at `to_path` (Linux 5.2)."""
    target = to_path or f"fd {to_fd}"
    syscall("move_mount", from_fd, os.fsencode(from_path), to_fd, os.fsencode(to_path), flags, target=target)


def mount_setattr(
    fd: int,
    path: Path = "",
    at_flags: int = AT_EMPTY_PATH,
    attr_set: int = 0,
    attr_clr: int = 0,
    propagation: int = 0,
    userns_fd: int = 0,
) -> None:
    """Change a mount's attributes (Linux 5.12); `MOUNT_ATTR_IDMAP` takes its mapping from `userns_fd`."""
    attributes = struct.pack("=4Q", attr_set, attr_clr, propagation, userns_fd)
    target = path or f"fd {fd}"
    syscall("mount_setattr", fd, os.fsencode(path), at_flags, attributes, len(attributes), target=target)


def fsopen(fstype: str) -> int:
    """Start configuring a new file system of type `fstype`; the descriptor is for `fsconfig` (Linux 5.2)."""
    return syscall("fsopen", fstype.encode(), FSOPEN_CLOEXEC, target=fstype)


def fsconfig(fd: int, command: int, key: str | None = None, value: Path | None = None, aux: int = 0) -> None:
    """Set one option of the file system being configured, or with `FSCONFIG_CMD_CREATE` create it."""
    name = key.encode() if key is not None else None
    setting = os.fsencode(value) if value is not None else None
    syscall("fsconfig", fd, command, name, setting, aux, target=key or command)


def fsmount(fd: int, attributes: int = 0) -> int:
    """A detached mount of a configured file system, for `move_mount`."""
    return syscall("fsmount", fd, FSMOUNT_CLOEXEC, attributes, target=f"fd {fd}")


def openat2(dirfd: int, path: Path, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """Open a file with restrictions on how its path may be resolved (Linux 5.6)."""
    how = struct.pack("=3Q", flags | os.O_CLOEXEC, mode, resolve)
    return syscall("openat2", dirfd, os.fsencode(path), how, len(how), target=path)


def pidfd_open(pid: int) -> int:
    """A descriptor of process `pid` (Linux 5.3), closed on exec."""
    return syscall("pidfd_open", pid, 0, target=f"pid {pid}")


def pidfd_send_signal(fd: int, sig: int) -> None:
    """Signal the process behind a pidfd; `ProcessLookupError` when it has ended (Linux 5.1)."""
    syscall("pidfd_send_signal", fd, sig, None, 0, target=f"fd {fd} signal {sig}")


def close_range(first: int, last: int = 0xFFFFFFFF, flags: int = 0) -> None:
    """Close (or with `CLOSE_RANGE_CLOEXEC` mark) all descriptors from `first` to `last` (Linux 5.9)."""
    syscall("close_range", first, last, flags, target=f"{first}-{last}")


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set this thread's capability sets, given as bit masks by capability number."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    words = [
        (mask >> shift) & 0xFFFFFFFF for shift in (0, 32) for mask in (effective, permitted, inheritable)
    ]
    syscall("capset", header, struct.pack("=6I", *words), target=f"permitted {permitted:#x}")


def capget() -> tuple[int, int, int]:
    """The thread's capability sets as bit masks: effective, permitted, inheritable."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), 8)
    data = ctypes.create_string_buffer(24)
    syscall("capget", header, data)
    words = struct.unpack("=6I", data.raw)
    low, high = words[:3], words[3:]
    effective, permitted, inheritable = (a | b << 32 for a, b in zip(low, high, strict=True))
    return effective, permitted, inheritable


def seccomp(operation: int, flags: int, argument: Arg) -> int:
    """Do a seccomp operation; `argument` is the address or the bytes of what it takes."""
    return syscall("seccomp", operation, flags, argument, target=f"operation {operation}")


def landlock_create_ruleset(attributes: bytes | None, flags: int = 0) -> int:
    """A new Landlock rule set, or with the version flag and no attributes the ABI number (Linux 5.13)."""
    return syscall("landlock_create_ruleset", attributes, len(attributes or b""), flags)


def landlock_add_rule(ruleset_fd: int, rule_type: int, attributes: bytes) -> None:
    """Add one rule (the packed `struct landlock_*_attr`) to a rule set."""
    syscall("landlock_add_rule", ruleset_fd, rule_type, attributes, 0, target=f"type {rule_type}")


def landlock_restrict_self(ruleset_fd: int) -> None:
    """Put a rule set in force for this thread and what it starts; needs no_new_privs or CAP_SYS_ADMIN."""
    syscall("landlock_restrict_self", ruleset_fd, 0)
