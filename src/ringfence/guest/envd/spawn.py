"""Starting a program as a user of the sandbox: fork, give up everything that is the guest's, exec.

A plain fork is used, not `subprocess`: giving up capabilities needs code between fork and exec, and the
guest is a small process, so a fork costs about a millisecond. Everything the child runs is imported and
loaded before (the guest has pivoted away from its own files), and nothing of the guest's is left after the
exec: descriptors are closed, signals are reset, the memory is replaced. Between the change of ids and the
exec the kernel keeps the child undumpable, so the user's other processes cannot look into it.
"""

import ctypes
import errno
import fcntl
import functools
import os
import signal
import struct
import termios
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from ringfence.guest.envd.users import User

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAPABILITY = 63

ROOT_CAPABILITIES = frozenset(
    {
        0,  # CHOWN
        1,  # DAC_OVERRIDE
        3,  # FOWNER
        4,  # FSETID
        5,  # KILL
        6,  # SETGID
        7,  # SETUID
        10,  # NET_BIND_SERVICE
    }
)
"""What the sandbox's root keeps in its processes, as far as the guest has it itself. Others keep nothing."""

_OOM_SCORE = b"100"  # as in E2B: a command goes before the guest when memory runs out
_UMASK = 0o022
# Those that Python, the guest or whoever started it may have ignored or caught; exec resets only the latter.
_RESET_SIGNALS = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGPIPE,
    signal.SIGALRM,
    signal.SIGTERM,
    signal.SIGCHLD,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGXFSZ,
    signal.SIGWINCH,
)
_ALL_SIGNALS = signal.valid_signals()
_FIRST_FREE_FD = 16
_MAX_FD = 1 << 20


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilityData(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


_CapabilitySets = _CapabilityData * 2  # 64 bits in two halves


@dataclass(frozen=True, slots=True)
class Program:
    """What to run. `path` is the file, `terminal` makes descriptor 0 the controlling terminal.

    switch_user: whether ids are changed at all (there may be only one, see `UserDatabase`).
    inherit_cwd: enter `cwd` as the guest may, though the user may not: as a caller's own is inherited.
    """

    path: str
    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    user: User
    switch_user: bool = True
    terminal: bool = False
    inherit_cwd: bool = False


class SpawnError(Exception):
    """The program could not be started: `errno` and `stage` (``fork``, ``chdir``, ``exec``, …) say why."""

    def __init__(self, number: int, stage: str) -> None:
        """Make an error from the child's report."""
        super().__init__(f"{stage}: {os.strerror(number).lower()}")
        self.errno = number
        self.stage = stage


def find_program(command: str, search: str) -> str:
    """The file that `command` means: itself when it has a slash, else the first executable in `search`.

    Raises `FileNotFoundError` with the message E2B's envd gives.
    """
    if "/" in command:
        return command
    for directory in search.split(":"):
        candidate = f"{directory}/{command}"
        if not directory.startswith("/"):
            continue
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):  # noqa: PTH113  # pathlib's may raise
            return candidate
    raise FileNotFoundError(f'exec: "{command}": executable file not found in $PATH')


def set_window_size(fd: int, columns: int, rows: int) -> None:
    """Tell the terminal behind `fd` its size in characters. Raises `OSError`."""
    size = struct.pack("HHHH", min(rows, 0xFFFF), min(columns, 0xFFFF), 0, 0)
    fcntl.ioctl(fd, termios.TIOCSWINSZ, size)


def spawn(program: Program, standard: tuple[int, int, int]) -> tuple[int, int]:
    """Fork and run `program` with `standard` as its descriptors 0, 1 and 2.

    Returns the pid and the read end (non-blocking) of a pipe that gives the child's report: nothing when
    the exec succeeded, otherwise what `read_report` understands. The caller closes it.
    Raises `SpawnError` when there can be no new process.
    """
    _bounding_set()  # read once here, not in every child
    report, report_child = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    # No signal may run one of the guest's handlers in the child: they write to the guest's event loop.
    signals = signal.pthread_sigmask(signal.SIG_BLOCK, _ALL_SIGNALS)
    try:
        pid = os.fork()
        if pid == 0:
            _become(program, standard, report_child)
    except OSError as error:
        os.close(report)
        raise SpawnError(error.errno or errno.EAGAIN, "fork") from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)
        os.close(report_child)
    return pid, report


def read_report(report: bytes) -> SpawnError | None:
    """What the child wrote to the pipe of `spawn`, as an error; None for nothing: the program runs."""
    if not report:
        return None
    number, _, stage = report.decode("ascii", "replace").partition(":")
    return SpawnError(int(number), stage)


def _become(program: Program, standard: tuple[int, int, int], report: int) -> NoReturn:
    """The child's part: never returns into the guest's code, whatever happens."""
    stage = "setup"
    try:
        signal.set_wakeup_fd(-1)
        os.setsid()
        report = _arrange_descriptors(standard, report)
        if program.terminal:
            stage = "terminal"
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        stage = "chdir"
        if program.inherit_cwd:
            os.chdir(program.cwd)
        stage = "credentials"
        _raise_oom_score()
        _drop_privileges(program)
        stage = "chdir"
        if not program.inherit_cwd:
            os.chdir(program.cwd)
        stage = "exec"
        os.umask(_UMASK)
        _reset_signals()
        os.execve(program.path, list(program.argv), dict(program.env))  # noqa: S606
    except OSError as error:
        number = error.errno or errno.EIO
    except BaseException:
        number = errno.EINVAL
    with suppress(OSError):
        os.write(report, f"{number}:{stage}".encode())
    os._exit(127)


def _arrange_descriptors(standard: tuple[int, int, int], report: int) -> int:
    """Put `standard` at 0 to 2 and close all others but the report, whose new number is returned."""
    # First out of the way, so that none is overwritten by another's new place.
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE_FD) for fd in (*standard, report)]
    for number, fd in enumerate(moved[:3]):
        os.dup2(fd, number, inheritable=True)
    os.closerange(3, moved[3])
    os.closerange(moved[3] + 1, _MAX_FD)
    return moved[3]


def _raise_oom_score() -> None:
    with suppress(OSError):  # already higher, or no /proc
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        os.write(fd, _OOM_SCORE)
        os.close(fd)


def _drop_privileges(program: Program) -> None:
    keep = ROOT_CAPABILITIES if program.switch_user and program.user.uid == 0 else frozenset()
    _limit_bounding_set(keep, strict=program.switch_user)
    if program.switch_user:
        os.setgroups(program.user.groups)
        os.setresgid(program.user.gid, program.user.gid, program.user.gid)
        os.setresuid(program.user.uid, program.user.uid, program.user.uid)
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    _limit_capabilities(keep)


def _prctl(option: int, argument: int) -> int:
    return int(_LIBC.prctl(option, ctypes.c_ulong(argument), 0, 0, 0))


@functools.cache
def _bounding_set() -> tuple[int, ...]:
    """The capabilities that this process and its children can have at all; they do not change any more."""
    return tuple(number for number in range(_LAST_CAPABILITY + 1) if _prctl(_PR_CAPBSET_READ, number) > 0)


def _limit_bounding_set(keep: frozenset[int], *, strict: bool) -> None:
    for capability in _bounding_set():
        if capability not in keep and _prctl(_PR_CAPBSET_DROP, capability) < 0 and strict:
            raise OSError(ctypes.get_errno(), "cannot drop a capability")


def _limit_capabilities(keep: frozenset[int]) -> None:
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    sets = _CapabilitySets()
    if _LIBC.capget(ctypes.byref(header), sets) < 0:
        raise OSError(ctypes.get_errno(), "capget")
    for half in (0, 1):
        mask = sum(1 << (number - 32 * half) for number in keep if number // 32 == half)
        permitted = sets[half].permitted & mask
        sets[half] = _CapabilityData(permitted, permitted, 0)
    if _LIBC.capset(ctypes.byref(header), sets) < 0:
        raise OSError(ctypes.get_errno(), "capset")


def _reset_signals() -> None:
    for number in _RESET_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
