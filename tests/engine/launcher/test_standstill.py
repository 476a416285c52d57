"""Holding a PID namespace still by signals, as is done where there is no freezer."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ringfence.engine.isolation import linux
from ringfence.engine.launcher import standstill
from ringfence.engine.launcher.records import SandboxRecord

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes a PID namespace")

PROGRAM = "sleep 1000 & kill -STOP $!; sleep 1000 & sh -c 'while :; do sleep 0.001; done' & wait"


def states(namespace: str) -> dict[int, str]:
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(path / "ns/pid") == namespace:
                found[int(path.name)] = (path / "stat").read_text().rpartition(") ")[2][0]
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


@pytest.fixture
def record() -> Iterator[Any]:
    process = subprocess.Popen(["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", PROGRAM])
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not children.read_text():
        time.sleep(0.005)
    pid = int(children.read_text())
    while len(states(os.readlink(f"/proc/{pid}/ns/pid"))) < 4:
        time.sleep(0.005)
    pidfd = linux.pidfd_open(pid)
    yield SimpleNamespace(
        sandbox_id="x", pid=pid, pidfd=pidfd, frozen=False, stopped_before=set(), gvisor=False
    )
    linux.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.close(pidfd)
    process.wait()


def test_every_process_stops_and_goes_on(record: SandboxRecord) -> None:
    namespace = os.readlink(f"/proc/{record.pid}/ns/pid")
    while "T" not in states(namespace).values():
        time.sleep(0.005)
    (stopped,) = [pid for pid, state in states(namespace).items() if state == "T"]
    for _ in range(5):
        standstill.hold(record, freezer=False)
        assert record.frozen
        before = states(namespace)
        assert set(before.values()) <= {"T", "Z", "D"}
        time.sleep(0.02)
        assert states(namespace) == before
        standstill.release(record, freezer=False)
        assert not record.frozen
        assert [pid for pid, state in states(namespace).items() if state == "T"] == [stopped]


def test_what_has_ended_cannot_be_held(record: SandboxRecord) -> None:
    gone = cast(SandboxRecord, SimpleNamespace(**{**vars(record), "pid": 2**22 + 1}))
    with pytest.raises(OSError, match="No such file"):
        standstill.hold(gone, freezer=False)
