"""System calls as an attacker makes them: by number, without the C library's manners."""

import ctypes
import errno
import mmap
import os
import platform
from collections.abc import Sequence
from typing import Any

from ringfence.engine.isolation import syscalls
from ringfence.engine.proof.inside.harness import GotThrough

MACHINE = platform.machine()
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x20000, 0x10000000, 0x20000000, 0x40000000
CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x2000000, 0x4000000, 0x8000000


def number(name: str) -> int:
    """The number of a system call on this machine."""
    return syscalls.NUMBERS[MACHINE][name]


def call(name: str | int, *arguments: Any) -> int:
    """Make a system call, by name or number; its result. Raises OSError as the kernel answers."""
    words = [
        ctypes.c_void_p(value)
        if isinstance(value, int)
        else ctypes.c_char_p(value)
        if isinstance(value, bytes)
        else value
        for value in arguments
    ]
    result = int(_LIBC.syscall(ctypes.c_long(name if isinstance(name, int) else number(name)), *words))
    if result == -1:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), str(name))
    return result


def run_code(code: bytes) -> int:
    """Execute machine code, as an exploit does; what it leaves in the accumulator (32 bits, signed)."""
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return int(ctypes.CFUNCTYPE(ctypes.c_int)(address)())


REFUSALS = frozenset(
    {errno.EPERM, errno.ENOSYS, errno.EACCES, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ENODEV}
)
"""Answers that say no. EFAULT, EINVAL or EBADF mean that the kernel looked at the arguments."""


def refuse(name: str | int, *arguments: Any) -> str:
    """Make a call that must be refused; the evidence. Raises GotThrough when it was done or reached.

    Callers pass arguments that do no harm where the call is let through.
    """
    try:
        result = call(name, *arguments)
    except OSError as error:
        code = errno.errorcode.get(error.errno or 0, str(error.errno))
        if error.errno in REFUSALS:
            return f"{name} {code}"
        raise GotThrough(f"{name} reached the kernel: {code}") from None
    raise GotThrough(f"{name} was done: {result}")


def refuse_all(calls: Sequence[tuple[Any, ...]]) -> str:
    """`refuse` each of several calls: (name, arguments…). Calls this machine does not have are skipped."""
    known = syscalls.NUMBERS[MACHINE]
    return ", ".join(refuse(*one) for one in calls if not isinstance(one[0], str) or one[0] in known)


def status(pid: int | str = "self") -> dict[str, str]:
    """The fields of /proc/<pid>/status."""
    with open(f"/proc/{pid}/status") as file:
        return {name: value.strip() for name, _, value in (line.partition(":") for line in file)}
