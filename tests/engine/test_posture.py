"""What a running sandbox may have, seen from the host: the whole picture, compared at once.

The idea is gVisor's `sandboxposture`: whoever loosens a layer has to change this file.
"""

import os
from pathlib import Path

import pytest

from ringfence.engine.engine import Engine
from ringfence.engine.isolation import capabilities, userns
from ringfence.engine.model import Sandbox

_COUNTERS_V1 = ("memory.max_usage_in_bytes", "memory.oom_control", "pids.events")
_COUNTERS_V2 = ("memory.peak", "memory.events", "pids.events")
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_pid_1_has_no_power_outside(engine: Engine, sandbox: Sandbox) -> None:
    status = status_of(sandbox.pid)
    kept = {"CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP"}
    mask = sum(1 << capabilities.NUMBERS[name] for name in kept)
    picture = {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    assert picture == {"CapInh": 0, "CapPrm": mask, "CapEff": mask, "CapBnd": mask, "CapAmb": 0}
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert status["Threads"] == "1"


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user has one id to give")
def test_pid_1_runs_as_a_private_host_id(sandbox: Sandbox) -> None:
    status = status_of(sandbox.pid)
    ids = {int(value) for value in (status["Uid"] + " " + status["Gid"]).split()}
    assert len(ids) == 1
    assert ids.pop() > userns.FIRST_HOST_ID
    assert status["Groups"] == ""


def test_every_namespace_is_its_own(sandbox: Sandbox) -> None:
    def inodes(pid: int | str) -> dict[str, str]:
        return {name: os.readlink(f"/proc/{pid}/ns/{name}") for name in NAMESPACES}

    ours, theirs = inodes("self"), inodes(sandbox.pid)
    assert [name for name in NAMESPACES if ours[name] == theirs[name]] == []


def test_no_descriptor_of_the_host_is_inherited(sandbox: Sandbox) -> None:
    counters = set()
    for fd in Path(f"/proc/{sandbox.pid}/fd").iterdir():
        target = os.readlink(fd)
        if target.startswith("/sys/fs/cgroup/"):
            counters.add(Path(target).name)
            # PID 1 alone reads them, to tell which limit was met, and nobody can write to them.
            assert Path(target).parent.name == sandbox.sandbox_id
            assert _access_mode(sandbox.pid, fd.name) == os.O_RDONLY
        else:
            assert target.split(":")[0] in {"/dev/null", "socket", "anon_inode", "pipe"}
    assert counters <= {*_COUNTERS_V1, *_COUNTERS_V2}


def _access_mode(pid: int, fd: str) -> int:
    info = Path(f"/proc/{pid}/fdinfo/{fd}").read_text()
    flags = next(line.split()[1] for line in info.splitlines() if line.startswith("flags:"))
    return int(flags, 8) & os.O_ACCMODE


def test_rlimits(sandbox: Sandbox) -> None:
    lines = Path(f"/proc/{sandbox.pid}/limits").read_text().splitlines()[1:]
    hard = {line[:26].strip(): line[26:].split()[1] for line in lines}
    assert hard["Max core file size"] == "0"
    assert int(hard["Max open files"]) <= 4096
    assert int(hard["Max processes"]) <= sandbox.limits.pids
    assert hard["Max realtime priority"] == "0"


def test_its_mounts_show_nothing_of_the_host(sandbox: Sandbox) -> None:
    mounts = [line.split() for line in Path(f"/proc/{sandbox.pid}/mounts").read_text().splitlines()]
    points = {fields[1] for fields in mounts if not fields[1].startswith("/proc/")}
    devices = {f"/dev/{name}" for name in ("full", "null", "pts", "random", "shm", "tty", "urandom", "zero")}
    assert points == {"/", "/dev", "/proc", "/usr", "/usr/local"} | devices
    writable = {fields[1] for fields in mounts if fields[3].startswith("rw")}
    assert "/proc" not in writable
    for fields in mounts:
        if fields[1] in ("/", "/usr", "/usr/local", "/dev/shm"):
            assert {"nosuid", "nodev"} <= set(fields[3].split(","))


def test_the_kernel_zygote_has_no_power_outside(engine: Engine, sandbox: Sandbox) -> None:
    zygotes = [pid for pid in _descendants(os.getpid()) if b"/run/ringfence" in _command_of(pid)]
    status = status_of(zygotes[0])
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    held = set(capabilities.names(int(status["CapEff"], 16)))
    assert held == {"KILL", "SETGID", "SETUID", "SETPCAP", "SYS_ADMIN", "SYS_CHROOT"}
    for name in ("user", "mnt", "net", "ipc", "uts", "cgroup"):
        assert os.readlink(f"/proc/{zygotes[0]}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")


def _command_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def _descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *_descendants(int(child))]
    return sorted(found)
