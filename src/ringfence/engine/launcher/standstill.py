"""Holding a sandbox still: by the cgroup freezer, else by signals to all of its processes.

SIGSTOP reaches every process of a PID namespace at once with ``kill(-1)`` from inside (and its PID 1 from
outside), forks in flight included: nothing in the sandbox is left that could send SIGCONT. Unlike the freezer
it can be noticed afterwards: a parent that waits for stopped children, as an interactive shell does, may see
that they were. What was stopped before stays stopped when the sandbox goes on.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator

from ringfence.core.errors import LauncherError
from ringfence.engine.isolation import linux
from ringfence.engine.isolation.cgroup_base import wait_until
from ringfence.engine.launcher.records import SandboxRecord

_SECONDS = 5.0
_STANDING = set("TtZX")
"""States of processes that do nothing: stopped, traced, dead."""
_WAITING = {"D"}
_GRACE = 0.1
"""Seconds after which one that waits in the kernel is taken to stand still: it stops before it runs again,
and one that has called vfork(2) waits for as long as its child is stopped."""


def hold(record: SandboxRecord, *, freezer: bool) -> None:
    """Let every process stand still. Raises OSError, after which they go on."""
    if record.gvisor and not freezer:
        raise LauncherError(
            f"sandbox {record.sandbox_id} cannot stand still: under gVisor that needs the cgroup freezer, "
            "because its kernel traces its processes; start the engine with cgroups"
        )
    if freezer:
        record.cgroup.freeze()
    else:
        _stop(record)
    record.frozen = True


def release(record: SandboxRecord, *, freezer: bool) -> None:
    """Let the processes of a held sandbox go on."""
    record.frozen = False
    if freezer:
        record.cgroup.thaw()
    else:
        _go_on(record)


def _stop(record: SandboxRecord) -> None:
    namespace = os.open(f"/proc/{record.pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        inode = os.fstat(namespace).st_ino
        record.stopped_before = {pid for pid, state in _members(inode) if state in _STANDING}

        grace = time.monotonic() + _GRACE

        def still() -> bool:
            linux.pidfd_send_signal(record.pidfd, signal.SIGSTOP)
            _signal_all(namespace, signal.SIGSTOP)
            states = {state for _, state in _members(inode)}
            return states <= _STANDING or (time.monotonic() > grace and states <= _STANDING | _WAITING)

        if not wait_until(still, _SECONDS):
            _go_on(record)
            raise TimeoutError(f"sandbox {record.sandbox_id} did not stop")
    finally:
        os.close(namespace)


def _go_on(record: SandboxRecord) -> None:
    inode = os.stat(f"/proc/{record.pid}/ns/pid").st_ino
    # The youngest first, so that a shell's jobs go on before it can see that they were stopped.
    for pid, _ in sorted(_members(inode), reverse=True):
        if pid not in record.stopped_before:
            with contextlib.suppress(ProcessLookupError):  # it was killed meanwhile
                os.kill(pid, signal.SIGCONT)
    record.stopped_before = set()


def _members(inode: int) -> Iterator[tuple[int, str]]:
    """The host's pids of the processes in the PID namespace with this inode, and their states."""
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            if os.stat(f"/proc/{name}/ns/pid").st_ino == inode:
                with open(f"/proc/{name}/stat", "rb") as file:
                    yield int(name), chr(file.read().rpartition(b") ")[2][0])
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it has ended, or is none of ours


def _signal_all(namespace: int, number: int) -> None:
    """Signal every process of a PID namespace but its first, from a child of a child inside it."""
    child = os.fork()
    if child == 0:
        try:
            signal.set_wakeup_fd(-1)
            linux.setns(namespace, linux.CLONE_NEWPID)
            inside = os.fork()
            if inside == 0:
                os.kill(-1, number)
            else:
                os.waitpid(inside, 0)
        except ProcessLookupError:
            os._exit(0)  # there is only the first
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise OSError("the processes of the sandbox cannot be signalled")
