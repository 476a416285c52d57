"""Whoever meets a limit or a rule of the sandbox is told which, by name and number, and who may change it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from e2b import CommandExitException, RateLimitException
from e2b_code_interpreter import Sandbox

from ringfence.engine.isolation import linux, syscalls
from ringfence.engine.isolation.seccomp_policy import ALLOW, DEFAULT, Check
from ringfence.guest.kernel import hints

if TYPE_CHECKING:
    from conftest import RunningServer

LIMITS = {"memory_mb": 900, "pids": 64, "disk_mb": 48, "inodes": 3000, "open_files": 128}
METADATA = {f"ringfence.{name}": str(value) for name, value in LIMITS.items()}
HUNGRY = "x = b'x' * (1800 << 20)"
EATER = "import time; x = bytearray(400 << 20); x[::4096] = bytes(102400); time.sleep(30)"
TOGETHER = (
    "import subprocess, time\n"
    f"children = [subprocess.Popen(['python3', '-c', '{EATER}']) for _ in range(3)]\n"
    "while all(child.poll() is None for child in children): time.sleep(0.05)\n"
    "_ = [child.kill() for child in children]"
)
PRIVATE_IDS = pytest.mark.skipif(os.geteuid() != 0, reason="there is one id: both are somebody's own then")
SLEEPERS = "import subprocess; [subprocess.Popen(['sleep', '9']) for _ in range(200)]"
FILES = "import os; os.makedirs('/tmp/d')\nfor i in range(5000): open(f'/tmp/d/{i}', 'w').close()"


@pytest.fixture(scope="module")
def sandbox(server: RunningServer) -> Iterator[Sandbox]:
    with Sandbox.create("code-interpreter-v1", metadata=METADATA, **server.options) as sandbox:
        yield sandbox


def told(sandbox: Sandbox, code: str) -> str:
    return "".join(sandbox.run_code(code).logs.stderr)


def told_to_a_command(sandbox: Sandbox, command: str) -> str:
    with pytest.raises(CommandExitException) as caught:
        sandbox.commands.run(command)
    return caught.value.stderr


@pytest.fixture
def counted(server: RunningServer) -> None:
    layers = server.isolation["layers"]
    if not any(layer["in_force"] for layer in layers if layer["name"].startswith("cgroup")):
        pytest.skip("without cgroups nobody counts")


@pytest.mark.usefixtures("counted")
def test_memory(sandbox: Sandbox) -> None:
    error = sandbox.run_code(HUNGRY).error
    assert error is not None
    assert "the memory limit of 900 MiB was reached (peak " in error.value
    for text in (
        told(sandbox, f'!python3 -c "{HUNGRY}"'),
        told_to_a_command(sandbox, f'python3 -c "{HUNGRY}"'),
    ):
        assert "[limit: the memory limit of 900 MiB was reached (peak " in text
        assert "ringfence.memory_mb" in text


@pytest.mark.not_under_gvisor("its memory is counted with that of its kernel")
def test_memory_of_all_processes_together(sandbox: Sandbox) -> None:
    """By cgroups or, without them, by the launcher's own watch."""
    for text in (told(sandbox, TOGETHER), told_to_a_command(sandbox, f'python3 -c "{TOGETHER}; exit(1)"')):
        assert "[limit: the memory limit of 900 MiB was reached (peak " in text
        assert "; a process was ended. " in text


@pytest.mark.not_under_gvisor("too large a request for memory is refused by gVisor, which says less")
def test_what_can_never_be_had(sandbox: Sandbox) -> None:
    code = "import numpy; numpy.ones((1 << 20, 1 << 20))"
    assert "[limit: this sandbox has 900 MiB of memory" in told(sandbox, code)


@pytest.mark.usefixtures("counted")
def test_processes(server: RunningServer) -> None:
    with Sandbox.create("code-interpreter-v1", metadata=METADATA, **server.options) as sandbox:
        wanted = "[limit: the limit of 64 processes and threads was reached"
        assert wanted in told_to_a_command(sandbox, f'python3 -c "{SLEEPERS}"')
        assert wanted in told(sandbox, SLEEPERS)
        with pytest.raises(RateLimitException, match="limit is 64 processes and threads"):
            for _ in range(70):
                sandbox.commands.run("sleep 60", background=True)


def test_disk(sandbox: Sandbox) -> None:
    wanted = "[limit: the disk limit of 48 MiB is reached"
    text = told(sandbox, "with open('/tmp/a', 'wb') as f:\n    for _ in range(60): f.write(bytes(1 << 20))")
    assert wanted in text
    assert "ringfence.disk_mb" in text
    assert told(sandbox, "print('still full, but nothing was written')") == ""
    sandbox.commands.run("rm /tmp/a")
    assert wanted in told_to_a_command(sandbox, "head -c 60M /dev/zero > /tmp/a")
    sandbox.commands.run("rm /tmp/a")


def test_inodes(sandbox: Sandbox) -> None:
    assert "[limit: the limit of 3000 files and directories (inodes) is reached" in told(sandbox, FILES)
    sandbox.commands.run("rm -r /tmp/d")


def test_open_files_and_the_size_of_one(sandbox: Sandbox) -> None:
    assert "may have 128 open files" in told(sandbox, "fs = [open('/dev/null') for _ in range(200)]")
    assert "may have 192 MiB here" in told(sandbox, "open('/tmp/s', 'wb').truncate(1 << 40)")


def test_output(sandbox: Sandbox) -> None:
    code = "import sys\nfor _ in range(30): sys.stdout.buffer.write(bytes(range(256)) * 4096)"
    done = sandbox.run_code(code)
    assert sum(map(len, done.logs.stdout)) <= 20 << 20
    assert "".join(done.logs.stderr).splitlines() == [
        "[the output limit of 20971520 bytes is reached; the rest is dropped]",
        f"[{(30 << 20) - (20 << 20)} bytes of output were dropped]",
    ]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        pytest.param(
            "import socket; socket.socket(socket.AF_PACKET)",
            ["refused: socket (EAFNOSUPPORT)", "route netlink"],
            marks=pytest.mark.not_under_gvisor("it says EPERM, and the hint names that"),
        ),
        ("import os; os.chroot('/tmp')", ["refused: chroot (EPERM)", "system call policy", "no setting"]),
        pytest.param(
            "import os; os.nice(-5)",
            ["priorities may only be lowered"],
            marks=pytest.mark.not_under_gvisor("a priority is a number of gVisor's alone"),
        ),
        pytest.param("import os; os.setuid(0)", ["use sudo"], marks=PRIVATE_IDS),
        pytest.param("import os; os.kill(1, 9)", ["refused: EPERM", "--seccomp-log"], marks=PRIVATE_IDS),
    ],
)
def test_refusals(sandbox: Sandbox, code: str, words: list[str]) -> None:
    done = sandbox.run_code(code)
    assert done.error is not None
    assert "[" not in done.error.value[9:], "the error itself is Python's own"
    text = "".join(done.logs.stderr)
    assert not [word for word in words if word not in text], text


def test_what_is_no_refusal_is_left_alone(sandbox: Sandbox) -> None:
    assert told(sandbox, "open('/nowhere')") == ""
    assert told(sandbox, "1 / 0") == ""
    assert told(sandbox, "open('/etc/passwd', 'w')") == ""


def test_the_hints_name_what_the_policy_refuses() -> None:
    other = {"TIOCSTI": "ioctl", "umount": "umount2", "io_uring": "io_uring_setup"}
    for word, reason in hints.RULES.items():
        call = other.get(word, word)
        assert call in syscalls.NUMBERS[linux.ARCH]
        assert DEFAULT.reasons[call] == reason
        decision = DEFAULT.checks.get(call, DEFAULT.refused.get(call, ALLOW))
        assert isinstance(decision, Check) or decision != ALLOW
