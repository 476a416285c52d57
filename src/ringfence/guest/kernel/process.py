"""Turning a freshly forked child into a kernel's process: descriptors, session, identity, capabilities."""

import ctypes
import fcntl
import os
import resource
import signal
import site
import sys
import time
from dataclasses import dataclass

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_LINUX_CAPABILITY_VERSION_3 = 0x20080522
_HIGHEST_CAPABILITY = 63
_CONTROL_FD = 900

TITLE = "ipykernel"
"""What kernels and the nursery are called."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Identity:
    """Who a kernel runs as. Ids are those inside the sandbox."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def prctl(option: int, *values: int) -> int:
    """Linux ``prctl(2)``; returns its result, -1 for an error."""
    arguments = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
    return int(_libc.prctl(ctypes.c_int(option), *arguments))


def set_dumpable(dumpable: bool) -> None:
    """Whether processes of the same id may look into this one through ``/proc`` and ``ptrace``."""
    prctl(_PR_SET_DUMPABLE, int(dumpable))


def set_title(title: str) -> None:
    """Call this process `title` in the lists of ``ps``, instead of by the command line it was started with.

    That line is the host's business; and ``pkill python`` is meant for one's own programs. It is overwritten
    where the kernel shows it from, if it is found there (with glibc), else it stays.
    """
    _libc.prctl(ctypes.c_int(_PR_SET_NAME), ctypes.c_char_p(title.encode()), *[ctypes.c_ulong(0)] * 3)
    line = b"".join(os.fsencode(argument) + b"\0" for argument in sys.orig_argv)
    try:
        place = ctypes.c_void_p.in_dll(_libc, "program_invocation_name").value
    except ValueError:
        return
    if place and ctypes.string_at(place, len(line)) == line:
        ctypes.memmove(place, title.encode()[: len(line) - 1].ljust(len(line), b"\0"), len(line))


def take_descriptors(control: int, stdin: int, stdout: int, stderr: int) -> int:
    """Make the given descriptors the only ones of this process; returns where `control` is now.

    It goes to a high number, out of the way of code that closes "all" of the low ones.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    keep = fcntl.fcntl(control, fcntl.F_DUPFD_CLOEXEC, min(_CONTROL_FD, soft - 1))
    moved = [os.dup(fd) for fd in (stdin, stdout, stderr)]
    for target, fd in enumerate(moved):
        os.dup2(fd, target, inheritable=True)
    os.closerange(3, keep)
    os.closerange(keep + 1, 1 << 20)
    return keep


def become(identity: Identity, cwd: str, parent: int) -> None:
    """Take on `identity` and `cwd` in a session of its own, with no capability left unless it is root.

    Raises OSError: the directory is missing, or the ids cannot be taken. The directory is entered as whoever
    may: root, so that ``/root`` works as on E2B, or else the user.
    """
    os.setsid()
    os.umask(0o022)
    inside = _enter(cwd)
    if os.geteuid() == 0 and (identity.uid != 0 or os.getgroups() != list(identity.groups)):
        _switch(identity)
    elif identity.uid != os.geteuid():
        raise PermissionError(f"cannot become uid {identity.uid}: this process is uid {os.geteuid()}")
    if not inside:
        os.chdir(cwd)
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    set_dumpable(True)


def _enter(cwd: str) -> bool:
    try:
        os.chdir(cwd)
    except PermissionError:
        return False
    return True


def _switch(identity: Identity) -> None:
    if identity.uid != 0:
        for capability in range(_HIGHEST_CAPABILITY + 1):
            prctl(_PR_CAPBSET_DROP, capability)  # EINVAL past the last one, EPERM without CAP_SETPCAP
        prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    try:
        os.setgroups(identity.groups)
    except PermissionError:
        if os.getgroups():
            raise  # a user namespace that denies setgroups has none to get rid of
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
    if identity.uid != 0:
        _clear_capabilities()


def _clear_capabilities() -> None:
    """Empty the effective, permitted and inheritable sets; setresuid clears only the first two."""
    header = (ctypes.c_uint32 * 2)(_LINUX_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()
    if _libc.capset(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def reset_signals() -> None:
    """Default handlers and an empty mask: the parent's loop must not show in the kernel."""
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def set_environment(env: dict[str, str]) -> None:
    """Replace the environment, and what Python derived from the old one."""
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    site.USER_BASE = site.USER_SITE = None
    if sys.prefix == sys.base_prefix and not sys.flags.no_user_site:
        site.ENABLE_USER_SITE = True
        site.addusersitepackages(set())
