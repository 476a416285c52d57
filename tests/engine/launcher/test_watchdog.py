"""Memory limits without cgroups: whole families are measured, shared pages count once, the largest goes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ringfence.engine.launcher import watchdog

MIB = 1 << 20
# PID 1 of a new PID namespace, with two children of 40 and 20 MiB, which report when they have touched it.
FAMILY = """
import ctypes, mmap, os, signal, sys
ctypes.CDLL(None).unshare(0x20000000 | (0x10000000 if os.getuid() else 0))
if os.fork():
    os.wait()
    sys.exit()
shared = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for offset in range(0, 64 << 20, 4096):
    shared[offset] = 1
for size in (40, 20):
    if os.fork() == 0:
        mine = b"x" * (size << 20)
        os.write(1, b"ready\\n")
        signal.pause()
while True:
    signal.pause()
"""


@pytest.fixture
def first() -> Iterator[int]:
    outer = subprocess.Popen([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE)
    assert outer.stdout is not None
    for _ in range(2):
        assert outer.stdout.readline() == b"ready\n"
    (pid,) = children(outer.pid)
    yield pid
    os.kill(pid, signal.SIGKILL)  # and with it all of its namespace; then the outer one ends, too
    outer.wait()
    outer.stdout.close()


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def test_shared_pages_count_once(first: int) -> None:
    # Resident are 3 x 64 + 60 MiB and the interpreters; the shares are 64 + 60 and the interpreters.
    assert watchdog.enforce({first: 180 * MIB}) == []


def test_the_largest_is_killed_and_enough_is_enough(first: int) -> None:
    large = max(children(first), key=watchdog._share)
    told = []
    assert watchdog.enforce({first: 110 * MIB}, lambda *account: told.append(account)) == [large]
    ((owner, used),) = told
    assert owner == first
    assert used > 110 * MIB


def test_nobody_else_is_looked_at(first: int) -> None:
    assert watchdog.enforce({}) == []
    assert watchdog.Watchdog().tick({}) is None
    assert (watchdog.Watchdog().tick({first: 1 << 40}) or 0) <= watchdog.INTERVAL_SECONDS
