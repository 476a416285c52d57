"""Two checks of the filter: every number through an interpreter of BPF, and real calls in a forked child."""

import ctypes
import errno
import mmap
import os
import platform
import signal
import socket
import struct
import subprocess
import threading

import pytest

from ringfence.engine.isolation import linux, seccomp, seccomp_policy
from ringfence.engine.isolation.seccomp_policy import (
    ALLOW,
    EAFNOSUPPORT,
    ENOSYS,
    EPERM,
    EPROTONOSUPPORT,
    KILL_PROCESS,
    LOG,
    PRETEND,
    Check,
)
from ringfence.engine.isolation.syscalls import NUMBERS

ARCHES = ("x86_64", "aarch64")
PROGRAMS = {
    (arch, kind): list(struct.iter_unpack("=HBBI", seccomp.build(arch, policy)))
    for arch in ARCHES
    for kind, policy in (("default", seccomp.DEFAULT), ("audit", seccomp.AUDIT))
}
HIGH = 1 << 32


def evaluate(program, arch, number, args=(0, 0, 0, 0, 0, 0)):
    """Run a filter as the kernel would; also check that it only reads what is there and always ends."""
    arguments = [arg & 0xFFFFFFFFFFFFFFFF for arg in (*args, 0, 0, 0, 0, 0, 0)[:6]]
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, arch, 0, *arguments)
    accumulator = position = 0
    while True:
        operation, hit, miss, operand = program[position]
        position += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, operand)
            case 0x54:
                accumulator &= operand
            case 0x05:
                position += operand
            case 0x15:
                position += hit if accumulator == operand else miss
            case 0x35:
                position += hit if accumulator >= operand else miss
            case 0x06:
                return operand
            case _:
                raise AssertionError(f"unexpected operation {operation:#x}")


def verdict(arch, name_or_number, *args, kind="default"):
    number = NUMBERS[arch][name_or_number] if isinstance(name_or_number, str) else name_or_number
    return evaluate(PROGRAMS[arch, kind], seccomp.AUDIT_ARCH[arch], number, args)


def expected(check, args):
    """What a check of the policy says, computed from the table instead of from the program."""
    while isinstance(check, Check):
        check = check.cases.get(args[check.argument] & 0xFFFFFFFF & check.mask, check.otherwise)
    return check


# --- the program, for every number of both architectures


@pytest.mark.parametrize("arch", ARCHES)
def test_every_number_gets_what_the_policy_says(arch):
    names = {number: name for name, number in NUMBERS[arch].items()}
    policy = seccomp.DEFAULT
    for number in range(1024):
        name = names.get(number)
        if name in policy.checks:
            continue
        wanted = ALLOW if name in policy.allowed else policy.refused.get(name, ENOSYS)
        assert verdict(arch, number) == wanted, name or number


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("name", seccomp_policy.DEFAULT.checks)
def test_every_check_gets_what_the_policy_says_for_all_interesting_arguments(arch, name):
    values = {0, 1, 2, 3, 6, 10, 16, 17, 40, 44, 58, 132, 262, 0x5401, 0x5412, 0x541C, 0x5423, 0xFFFFFFFF}
    values |= {1 << bit for bit in range(64)} | {HIGH | value for value in (0, 1, 2, 16, 0x5412, 0xFFFFFFFF)}
    check = seccomp.DEFAULT.checks[name]
    for first in values:
        for second in (1, 2, 3, 5, 0x5412, 0x80001, HIGH | 3, HIGH | 0x5412):
            for third in (0, 1, 6, 12, 17, HIGH, HIGH | 12):
                args = (first, second, third)
                assert verdict(arch, name, *args) == expected(check, args), args


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("foreign", [0x40000003, 0x40000028, 0xC000003E, 0xC00000B7, 0, 0x800000B7])
def test_a_foreign_abi_is_killed_whatever_it_calls(arch, foreign):
    if foreign == seccomp.AUDIT_ARCH[arch]:
        pytest.skip("the native one")
    for kind in ("default", "audit"):
        verdicts = {evaluate(PROGRAMS[arch, kind], foreign, number) for number in (0, 1, 59, 221, 435, 2**31)}
        assert verdicts == {KILL_PROCESS}


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("number", [0x40000000, 0x40000001, 0x4000003B, 0x400001FF, 2**31, 2**32 - 1, -1])
def test_x32_and_negative_numbers_do_not_exist(arch, number):
    assert verdict(arch, number) == ENOSYS


@pytest.mark.parametrize("arch", ARCHES)
def test_the_call_after_the_newest_does_not_exist(arch):
    assert verdict(arch, max(NUMBERS[arch].values()) + 1) == ENOSYS


@pytest.mark.parametrize("arch", ARCHES)
def test_every_known_call_is_classified_once(arch):
    policy = seccomp.DEFAULT
    groups = [policy.allowed, set(policy.refused), set(policy.checks)]
    for name in NUMBERS[arch]:
        assert sum(name in group for group in groups) == 1, name
    known = {name for numbers in NUMBERS.values() for name in numbers}
    assert set().union(*groups) <= known


@pytest.mark.parametrize("arch", ARCHES)
def test_the_program_fits_the_kernel_and_a_plain_answer_reads_only_number_and_architecture(arch):
    program = PROGRAMS[arch, "default"]
    assert len(program) <= 4096
    # The kernel's bitmap takes a call that is allowed without a look at its arguments.
    plain = [verdict(arch, name) for name in seccomp.DEFAULT.allowed if name in NUMBERS[arch]]
    assert set(plain) == {ALLOW}


@pytest.mark.parametrize("arch", ARCHES)
def test_the_search_is_short(arch):
    # Count instructions to the answer for every allowed call: logarithmic, not linear.
    program = PROGRAMS[arch, "default"]

    class Counting(list):
        steps = 0

        def __getitem__(self, index):
            self.steps += 1
            return super().__getitem__(index)

    worst = 0
    for name in seccomp.DEFAULT.allowed & set(NUMBERS[arch]):
        counting = Counting(program)
        evaluate(counting, seccomp.AUDIT_ARCH[arch], NUMBERS[arch][name])
        worst = max(worst, counting.steps)
    assert worst <= 14


@pytest.mark.parametrize("arch", ARCHES)
def test_arguments_are_compared_by_their_low_half(arch):
    assert verdict(arch, "ioctl", 0, HIGH | 0x5412) == EPERM
    assert verdict(arch, "socket", HIGH | 40, 1, 0) == EAFNOSUPPORT
    assert verdict(arch, "socket", HIGH | 2, HIGH | 1, 0) == ALLOW
    assert verdict(arch, "personality", HIGH | 0x40000) == EPERM


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize(
    ("family", "kind", "protocol", "wanted"),
    [
        (socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, ALLOW),
        (socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC, 0, ALLOW),
        (socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 17, ALLOW),
        (socket.AF_INET, socket.SOCK_DGRAM, 1, ALLOW),  # unprivileged ping
        (socket.AF_INET, socket.SOCK_RAW, 255, EPERM),
        (socket.AF_INET, socket.SOCK_SEQPACKET, 132, EPERM),
        (socket.AF_INET, socket.SOCK_STREAM, 132, EPROTONOSUPPORT),  # SCTP
        (socket.AF_INET, socket.SOCK_STREAM, 262, EPROTONOSUPPORT),  # MPTCP
        (socket.AF_NETLINK, socket.SOCK_RAW, 0, ALLOW),
        (socket.AF_NETLINK, socket.SOCK_RAW, 12, EAFNOSUPPORT),  # netfilter
        (socket.AF_PACKET, socket.SOCK_RAW, 0, EAFNOSUPPORT),
        (38, socket.SOCK_SEQPACKET, 0, EAFNOSUPPORT),  # AF_ALG
        (40, socket.SOCK_STREAM, 0, EAFNOSUPPORT),  # AF_VSOCK
        (44, socket.SOCK_RAW, 0, EAFNOSUPPORT),  # AF_XDP
    ],
)
def test_sockets(arch, family, kind, protocol, wanted):
    assert verdict(arch, "socket", family, kind, protocol) == wanted


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize(
    "flag",
    [
        linux.CLONE_NEWNS,
        linux.CLONE_NEWCGROUP,
        linux.CLONE_NEWUTS,
        linux.CLONE_NEWIPC,
        linux.CLONE_NEWUSER,
        linux.CLONE_NEWPID,
        linux.CLONE_NEWNET,
    ],
)
def test_no_clone_into_a_new_namespace(arch, flag):
    assert verdict(arch, "clone", flag | signal.SIGCHLD) == EPERM
    assert verdict(arch, "clone", 0x3D0F00) == ALLOW  # a thread, with glibc's flags
    assert verdict(arch, "clone", signal.SIGCHLD | 0x1200000) == ALLOW  # a fork
    assert verdict(arch, "clone3") == ENOSYS


def test_the_audit_policy_logs_where_the_default_refuses():
    for arch in ARCHES:
        for name, action in seccomp.DEFAULT.refused.items():
            if name in NUMBERS[arch]:
                assert verdict(arch, name, kind="audit") == (action if name == "clone3" else LOG)
        assert verdict(arch, 999, kind="audit") == LOG
        assert verdict(arch, "clone", linux.CLONE_NEWUSER, kind="audit") == EPERM


def test_sync_is_reported_as_done():
    assert verdict("x86_64", "sync") == PRETEND


def test_an_architecture_without_a_table_is_an_error():
    with pytest.raises(OSError, match="no system call table for riscv64"):
        seccomp.build("riscv64")


def test_a_refusal_can_be_explained():
    assert seccomp.explain("ptrace") == (
        "ptrace is refused (EPERM) by the system call policy: it looks into other processes or the kernel"
    )
    assert "libraries use clone instead" in seccomp.explain("clone3", errno.ENOSYS)
    assert seccomp.explain("read") is None
    refusable = set(seccomp.DEFAULT.refused) | set(seccomp.DEFAULT.checks)
    assert all(seccomp.explain(name) for name in refusable)


# --- the filter in force

NATIVE = NUMBERS.get(linux.ARCH, {})
BAD_FD = 1 << 20

# Calls that a refusal must stop, with arguments that fail harmlessly where it does not.
_PROBES = {
    "ptrace": (99, 0, 0, 0),
    "process_vm_readv": (0, 1, 0, 0, 0, 99),
    "bpf": (99, 0, 0),
    "perf_event_open": (1, 0, 0, 0, 99),
    "userfaultfd": (0x7FFFFFFF,),
    "io_uring_setup": (0, 0),
    "keyctl": (99, 0),
    "unshare": (0x1,),
    "setns": (BAD_FD, 0),
    "mount": (1, 1, 1, 0, 0),
    "umount2": (1, 0),
    "pivot_root": (1, 1),
    "chroot": (1,),
    "open_by_handle_at": (BAD_FD, 1, 0),
    "name_to_handle_at": (BAD_FD, 1, 1, 1, 0x7FFFFFFF),
    "fanotify_init": (0x7FFFFFFF, 0),
    "fsopen": (1, 0),
    "open_tree": (BAD_FD, 1, 0),
    "move_mount": (BAD_FD, 1, BAD_FD, 1, 0),
    "pidfd_getfd": (BAD_FD, 0, 0),
    "kcmp": (1, 1, 99, 0, 0),
    "init_module": (1, 0, 1),
    "memfd_secret": (0x7FFFFFFF,),
    "quotactl": (0, 1, 0, 1),
    "swapon": (1, 0),
    "acct": (1,),
}


def _errno(name, *args):
    ctypes.set_errno(0)
    result = linux.raw_syscall(NATIVE[name], *args)
    return ctypes.get_errno() if result < 0 else 0


def _install():
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    seccomp.install(seccomp.build())


def _probe_all(filtered):
    if filtered:
        _install()
    return {name: _errno(name, *args) for name, args in _PROBES.items()}


def test_refused_calls_are_reachable_without_the_filter_and_refused_with_it(in_child):
    open_errnos = in_child(_probe_all, False)
    shut_errnos = in_child(_probe_all, True)
    assert set(shut_errnos.values()) == {errno.EPERM}
    # Not every kernel has every call, and what needs no privilege is refused even to root by nobody else.
    reachable = {name for name, code in open_errnos.items() if code not in (errno.EPERM, errno.ENOSYS)}
    privileged = {"move_mount"} if os.geteuid() == 0 else set()
    assert reachable >= {"ptrace", "setns", "pidfd_getfd", "keyctl", "process_vm_readv"} | privileged


def test_allowed_calls_reach_the_kernel(in_child):
    probes = {
        "read": (BAD_FD, 0, 0),
        "close_range": (2, 1, 0),
        "openat2": (BAD_FD, 1, 1, 0),
        "faccessat2": (BAD_FD, 1, 0, 0),
        "statx": (BAD_FD, 1, 0, 0, 0),
        "pidfd_send_signal": (BAD_FD, 0, 0, 0),
        "epoll_pwait2": (BAD_FD, 1, 1, 0, 0, 0),
        "copy_file_range": (BAD_FD, 0, BAD_FD, 0, 1, 0),
        "landlock_restrict_self": (BAD_FD, 0),
        "getrandom": (1, 16, 0),
    }

    def work():
        _install()
        return {name: _errno(name, *args) for name, args in probes.items()}

    answers = in_child(work)
    assert {name for name, code in answers.items() if code in (errno.EPERM, errno.ENOSYS, 0)} == set()


def test_unknown_numbers_are_absent_and_sync_is_a_no_op(in_child):
    def work():
        _install()
        codes = []
        for number in (NATIVE["clone3"], 500, 1023, 0x40000000 + NATIVE["getpid"]):
            ctypes.set_errno(0)
            codes.append((linux.raw_syscall(number, 0, 0), ctypes.get_errno()))
        return codes, linux.raw_syscall(NATIVE["sync"])

    assert in_child(work) == ([(-1, errno.ENOSYS)] * 4, 0)


def test_no_socket_can_be_made_to_linger(in_child):
    linger, none = struct.pack("ii", 1, 3600), struct.pack("ii", 0, 0)

    def work():
        _install()
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            kept = one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            return kept, list(one.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))

    assert in_child(work) == (1, list(none))


def test_socket_families_and_types(in_child):
    def make(family, kind, protocol=0):
        try:
            socket.socket(family, kind, protocol).close()
        except OSError as error:
            return error.errno
        return 0

    def work(filtered):
        if filtered:
            _install()
        wanted = [
            make(socket.AF_UNIX, socket.SOCK_STREAM),
            make(socket.AF_INET, socket.SOCK_STREAM),
            make(socket.AF_INET6, socket.SOCK_DGRAM),
            make(socket.AF_NETLINK, socket.SOCK_RAW, 0),
        ]
        unwanted = [
            make(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_NFLOG),
            make(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP),
            make(socket.AF_VSOCK, socket.SOCK_STREAM),
            make(socket.AF_ALG, socket.SOCK_SEQPACKET),
            make(socket.AF_PACKET, socket.SOCK_RAW),
        ]
        return wanted, unwanted

    wanted, unwanted = in_child(work, True)
    assert wanted == [0, 0, 0, 0]
    absent = errno.EAFNOSUPPORT
    assert unwanted == [absent, errno.EPROTONOSUPPORT, absent, absent, absent]


def test_terminal_injection_needs_the_filter_to_be_stopped(in_child):
    def work(filtered):
        if filtered:
            _install()
        # On a descriptor that is no terminal: reachable is ENOTTY, refused is EPERM, high bits or not.
        null = os.open("/dev/null", os.O_RDONLY)
        return [_errno("ioctl", null, request, 0) for request in (0x5412, HIGH | 0x5412, 0x541C, 0x5401)]

    assert in_child(work, False) == [errno.ENOTTY] * 4
    assert in_child(work, True) == [errno.EPERM, errno.EPERM, errno.EPERM, errno.ENOTTY]


def test_user_namespaces_are_open_without_the_filter_and_shut_with_it(as_user):
    def work(filtered):
        if filtered:
            _install()
        try:
            linux.unshare(linux.CLONE_NEWUSER)
        except PermissionError:
            return "refused"
        return "entered"

    assert as_user(work, False) == "entered"
    assert as_user(work, True) == "refused"


def test_threads_subprocesses_and_event_loops_work_under_the_filter(in_child):
    def work():
        _install()
        seen = []
        thread = threading.Thread(target=lambda: seen.append("thread"))
        thread.start()
        thread.join()
        seen.append(subprocess.run(["/bin/echo", "-n", "child"], capture_output=True, check=True).stdout)
        mmap.mmap(-1, 4096).close()
        fd = os.pidfd_open(os.getpid())
        signal.pidfd_send_signal(fd, 0)
        os.setresuid(*os.getresuid())
        return seen

    assert in_child(work) == ["thread", b"child"]


def test_a_filter_cannot_be_loosened_from_inside(in_child):
    def work():
        _install()
        seccomp.install(struct.pack("=HBBI", 0x06, 0, 0, ALLOW))
        return _errno("ptrace", 99, 0, 0, 0)

    assert in_child(work) == errno.EPERM


def test_a_filter_passes_on_to_programs_that_are_executed(in_child):
    def work():
        _install()
        code = "import ctypes, sys; sys.exit(ctypes.CDLL(None, use_errno=True).unshare(0x10000000) + 1)"
        return subprocess.run(["/usr/bin/env", "python3", "-c", code]).returncode

    assert in_child(work) == 0


def test_without_no_new_privs_an_ordinary_user_cannot_install_one(as_user):
    def work():
        try:
            seccomp.install(seccomp.build())
        except PermissionError as error:
            return str(error)
        return "installed"

    assert "seccomp operation 1" in as_user(work)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the 32-bit ABI of x86_64")
def test_a_32_bit_call_kills_the_process(in_child):
    def work(filtered):
        if filtered:
            _install()
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20 (getpid of i386); int 0x80; ret
        address = ctypes.addressof(ctypes.c_char.from_buffer(page))
        return ctypes.CFUNCTYPE(ctypes.c_int)(address)() != 0

    assert in_child(work, False) in (True, -signal.SIGSEGV)  # SIGSEGV: a kernel without the 32-bit ABI
    assert in_child(work, True) in (-signal.SIGSYS, -signal.SIGSEGV)
