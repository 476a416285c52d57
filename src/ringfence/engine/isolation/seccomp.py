"""System call filters, compiled from the tables of `seccomp_policy` to the kernel's classic BPF.

libseccomp would have to be installed, knows only the calls of its own time, and takes 100 ms to import.
The program made here takes a millisecond to make and is bytes, so the engine makes it once and every
sandbox installs it.

The program checks the architecture, loads the number and does a binary search over the ranges of
consecutive numbers that get the same answer (about eight comparisons), with the argument checks as
leaves. On the way to a plain answer it reads nothing but architecture and number, so Linux 5.11 and newer
answer those from a bitmap without running it at all.
"""

import ctypes
import errno
import struct
from dataclasses import dataclass

from . import linux, syscalls
from .seccomp_policy import ALLOW, AUDIT, DEFAULT, KILL_PROCESS, ZYGOTE, Check, Policy

__all__ = ["AUDIT", "DEFAULT", "FILTER_FLAG_LOG", "ZYGOTE", "build", "explain", "install"]

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""`seccomp_data.arch` of 64-bit calls on each architecture (``include/uapi/linux/audit.h``)."""
FILTER_FLAG_LOG = 0x2
"""Have the kernel log each refusal; it stays one."""

# BPF: load a word of seccomp_data, mask the accumulator, jump, return.
_LD_ABS, _AND, _JA, _JEQ, _JGE, _RET = 0x20, 0x54, 0x05, 0x15, 0x35, 0x06
_OFFSET_NUMBER, _OFFSET_ARCH, _OFFSET_ARGUMENTS = 0, 4, 16
_FAR = 255

_Code = list[tuple[int, int, int, int]]
"""Instructions: operation, jump if true, jump if false (in instructions after the next one), operand."""
_Outcome = int | Check


@dataclass(frozen=True)
class _Range:
    first: int
    outcome: _Outcome


def _branch(operation: int, operand: int, hit: _Code, miss: _Code) -> _Code:
    """`hit` when the comparison holds, else `miss`; both end in returns."""
    if len(miss) <= _FAR:
        return [(operation, len(miss), 0, operand), *miss, *hit]
    return [(operation, 0, 1, operand), (_JA, 0, 0, len(miss)), *miss, *hit]


def _answer(outcome: _Outcome) -> _Code:
    if isinstance(outcome, int):
        return [(_RET, 0, 0, outcome)]
    code = _answer(outcome.otherwise)
    for value, then in reversed(outcome.cases.items()):
        code = _branch(_JEQ, value, _answer(then), code)
    mask: _Code = [(_AND, 0, 0, outcome.mask)] if outcome.mask != 0xFFFFFFFF else []
    # Little endian: the low half comes first.
    return [(_LD_ABS, 0, 0, _OFFSET_ARGUMENTS + 8 * outcome.argument), *mask, *code]


def _search(ranges: list[_Range]) -> _Code:
    if len(ranges) == 1:
        return _answer(ranges[0].outcome)
    middle = len(ranges) // 2
    return _branch(_JGE, ranges[middle].first, _search(ranges[middle:]), _search(ranges[:middle]))


def _outcome(name: str | None, policy: Policy) -> _Outcome:
    if name is None:
        return policy.unknown
    if name in policy.checks:
        return policy.checks[name]
    if name in policy.allowed:
        return ALLOW
    return policy.refused.get(name, policy.unknown)


def _ranges(numbers: dict[str, int], policy: Policy) -> list[_Range]:
    names = {number: name for name, number in numbers.items()}
    ranges: list[_Range] = []
    # One past the newest call: that range reaches to 2**32, and so takes in the x32 calls of x86_64.
    for number in range(max(names) + 2):
        outcome = _outcome(names.get(number), policy)
        if not ranges or ranges[-1].outcome != outcome:
            ranges.append(_Range(number, outcome))
    return ranges


def build(arch: str | None = None, policy: Policy = DEFAULT) -> bytes:
    """The filter program for `arch` (default: this machine's) that enforces `policy`.

    Calls made through a foreign ABI, such as 32-bit ones on x86_64, kill the process: their numbers mean
    other calls.

    Raises `OSError` (ENOSYS) for an architecture without a table: there is no safe default.
    """
    name = arch or linux.ARCH
    if name not in AUDIT_ARCH:
        known = " and ".join(AUDIT_ARCH)
        raise OSError(errno.ENOSYS, f"no system call table for {name}; seccomp is known for {known}")
    native: _Code = [
        (_LD_ABS, 0, 0, _OFFSET_NUMBER),
        *_search(_ranges(syscalls.NUMBERS[name], policy)),
    ]
    foreign: _Code = [(_RET, 0, 0, KILL_PROCESS)]
    code: _Code = [(_LD_ABS, 0, 0, _OFFSET_ARCH), (_JEQ, 1, 0, AUDIT_ARCH[name]), *foreign, *native]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def install(program: bytes, flags: int = 0) -> None:
    """Put a filter in force for this thread and everything it starts, for good.

    Needs no_new_privs (or CAP_SYS_ADMIN). Every filter that is in force already stays so.
    """
    instructions = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions))
    linux.seccomp(linux.SECCOMP_SET_MODE_FILTER, flags, header)


def explain(name: str, error: int = errno.EPERM, policy: Policy = DEFAULT) -> str | None:
    """Why the policy refuses call `name` with `error`, as a sentence for its user; None when it does not."""
    if name in policy.allowed or name not in policy.reasons:
        return None
    code = errno.errorcode.get(error, str(error))
    return f"{name} is refused ({code}) by the system call policy: {policy.reasons[name]}"
