"""Under gVisor only what is known of gVisor's own kernel is passed over."""

import shutil
import subprocess
from dataclasses import replace

import pytest

from ringfence.engine.proof import outside, own_kernel
from ringfence.engine.proof.model import Finding


def verdict(attack: str, evidence: str, who: str = "user", before: str = "got through") -> str:
    finding = Finding(attack, "kernel interfaces", "seccomp", who, before, evidence)  # type: ignore[arg-type]
    return own_kernel.judged(finding).verdict


@pytest.mark.parametrize(
    ("attack", "evidence"),
    [
        ("io-uring", "io_uring_setup reached the kernel: EINVAL"),
        ("a-new-namespace-by-unshare", "unshare was done: 0"),
        ("the-hosts-settings-are-written", "can be written: /proc/sys/kernel/hostname, /proc/1/uid_map"),
        ("magic-links-of-pid-1", "can be read: environ, fd, maps"),
    ],
)
def test_what_is_known_of_gvisor_does_not_apply(attack: str, evidence: str) -> None:
    assert verdict(attack, evidence) == "not applicable"


@pytest.mark.parametrize(
    ("attack", "evidence"),
    [
        ("io-uring", "io_uring_setup was done: 5"),
        ("io-uring", "not proven: it gave no answer: "),
        ("a-file-handle-of-the-host", "open_by_handle_at was done: 3"),
        ("the-hosts-settings-are-written", "can be written: /proc/sys/kernel/core_pattern"),
        ("the-hosts-settings-are-written", "can be written: /proc/1/uid_map, /proc/sysrq-trigger"),
        ("the-hosts-secrets-are-read", "can be read: /proc/cmdline, /proc/kallsyms"),
        ("the-hosts-devices-are-there", "/dev has fuse, kvm, net"),
        ("the-nursery-is-read", "can be opened: /proc/1/mem, /proc/1/environ"),
        ("it-has-capabilities-outside", "CapEff has 0x200000"),
        ("it-has-capabilities-outside", "not proven: KeyError: 'CapAmb'"),
        ("terminals", "not proven: it hung"),
        ("priority-is-raised", "SCHED_FIFO"),
        ("magic-links-of-pid-1", "can be read: environ, fd, maps, fd/16 (pipe:[3])"),
        ("mounts", "mount was done: 0"),
        ("a-host-file-is-out-of-reach", "read it"),
    ],
)
def test_everything_else_got_through(attack: str, evidence: str) -> None:
    assert verdict(attack, evidence) == "got through"


def test_pipes_of_pid_1_are_for_the_sandboxs_root_alone() -> None:
    known = "can be read: environ, fd, maps, fd/16 (pipe:[3]), fd/18 (pipe:[4])"
    assert verdict("magic-links-of-pid-1", known, "root") == "not applicable"
    assert verdict("magic-links-of-pid-1", f"{known}, fd/3 (socket:[1])", "root") == "got through"


def test_other_verdicts_stay() -> None:
    assert verdict("io-uring", "io_uring_setup reached the kernel: EINVAL", before="contained") == "contained"


def test_nothing_is_passed_over_unless_the_host_saw_gvisor_alone() -> None:
    name = own_kernel.OWN.replace(" ", "-")
    seen = Finding(name, "kernel interfaces", "gVisor", "host", "contained", "7 processes")
    assert own_kernel.proven([seen])
    assert not own_kernel.proven([replace(seen, verdict="got through")])
    assert not own_kernel.proven([replace(seen, attack="another")])
    assert not own_kernel.proven([])


@pytest.mark.skipif(shutil.which("runsc") is None, reason="runsc is not installed")
def test_the_host_sees_a_program_that_is_not_gvisors() -> None:
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as program:
        with pytest.raises(AssertionError, match="cat"):
            outside._programs({program.pid: outside.family(program.pid)[program.pid]}, warden=0)
        program.kill()
    with pytest.raises(AssertionError, match="no process"):
        outside._programs({}, warden=0)
