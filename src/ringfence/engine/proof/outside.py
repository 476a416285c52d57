"""What the host sees of a sandbox: its processes' ids, powers and groups, and what is left at its end."""

import os
from collections.abc import Callable
from pathlib import Path

from ringfence.engine.gvisor import runsc
from ringfence.engine.isolation import capabilities, userns
from ringfence.engine.model import Sandbox
from ringfence.engine.proof import own_kernel
from ringfence.engine.proof.model import Finding, Verdict

_KEPT = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP")
_REAL_TIME = (os.SCHED_FIFO, os.SCHED_RR, 6)  # 6: SCHED_DEADLINE
_CGROUPS = Path("/sys/fs/cgroup")
_ALLOWED = sum(1 << capabilities.NUMBERS[name] for name in _KEPT)
Status = dict[str, str]


class _NothingToSeeError(Exception):
    """The check does not apply to this host."""


def family(pid: int) -> dict[int, Status]:
    """The processes of the sandbox whose PID 1 is `pid`, each with the fields of its status.

    Those in its PID namespace, as far as the caller may look, and those that descend from it: the nursery,
    which came in from outside, does not.
    """
    everyone = _everyone()
    namespace = _pid_namespace(pid)
    found: dict[int, Status] = {}
    queue = [pid, *(one for one in everyone if namespace and _pid_namespace(one) == namespace)]
    while queue:
        current = queue.pop()
        if current in everyone and current not in found:
            found[current] = everyone[current]
            queue += [child for child, status in everyone.items() if status.get("PPid") == str(current)]
    return found


def _pid_namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")  # noqa: PTH115 - no path, a name
    except OSError:
        return ""


def _everyone() -> dict[int, Status]:
    statuses: dict[int, Status] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208 - names only
        if entry.isdigit():
            try:
                lines = Path(f"/proc/{entry}/status").read_text().splitlines()
            except OSError:
                continue  # it has just ended
            statuses[int(entry)] = {
                name: value.strip() for name, _, value in (line.partition(":") for line in lines)
            }
    return statuses


def examine(sandbox: Sandbox, privileged: bool, limited: bool) -> list[Finding]:
    """Look at every process of a running sandbox. privileged: the engine is root; limited: it has cgroups."""
    processes = family(sandbox.pid)
    checks: tuple[tuple[str, str, str, Callable[[dict[int, Status]], str]], ...] = (
        (
            "a process has an id of the host's",
            "processes",
            "private host ids",
            lambda all_: _ids(all_, privileged),
        ),
        (
            "a process has power outside",
            "processes",
            "capabilities",
            _own_powers if sandbox.isolation == "gvisor" else _powers,
        ),
        ("a process has no filter", "kernel interfaces", "seccomp", _filters),
        ("a process is outside of the cgroup", "limits", "cgroup", lambda all_: _groups(all_, limited)),
        ("a process is in a namespace of the host's", "processes", "namespaces", _namespaces),
        ("a process goes before others", "limits", "capabilities", _priorities),
    )
    if sandbox.isolation == "gvisor":
        checks += (
            (own_kernel.OWN, "kernel interfaces", "gVisor", lambda all_: _programs(all_, sandbox.pid)),
        )
    return [_judged(name, category, layer, check, processes) for name, category, layer, check in checks]


def _judged(
    name: str,
    category: str,
    layer: str,
    check: Callable[[dict[int, Status]], str],
    processes: dict[int, Status],
) -> Finding:
    verdict: Verdict
    try:
        evidence = check(processes)
        verdict = "contained"
    except AssertionError as proof:
        verdict, evidence = "got through", str(proof)
    except _NothingToSeeError as why:
        verdict, evidence = "not applicable", str(why)
    return Finding(name.replace(" ", "-"), category, layer, "host", verdict, evidence)


def _fail(text: str) -> None:
    raise AssertionError(text)


def _ids(processes: dict[int, Status], privileged: bool) -> str:
    ids = {
        int(part) for status in processes.values() for part in status["Uid"].split() + status["Gid"].split()
    }
    if 0 in ids:
        _fail("a process of the sandbox is the host's root")
    if not privileged:
        raise _NothingToSeeError("one id: the sandbox's processes have the id of the engine's user")
    if min(ids) < userns.FIRST_HOST_ID:
        _fail(f"host ids {sorted(ids)}")
    return f"host ids {', '.join(f'{one:#x}' for one in sorted(ids))}"


def _powers(processes: dict[int, Status]) -> str:
    for pid, status in processes.items():
        if int(status["CapBnd"], 16) & ~_ALLOWED or int(status["CapEff"], 16) & ~_ALLOWED:
            _fail(f"process {pid}: CapEff {status['CapEff']}, CapBnd {status['CapBnd']}")
    return f"{len(processes)} processes"


def _user_namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/user")  # noqa: PTH115 - no path, a name
    except OSError:
        return f"that of {pid}, which has ended"


def _own_powers(processes: dict[int, Status]) -> str:
    """GVisor sets its own walls up with powers over namespaces that it made, which are no powers outside."""
    for pid, status in processes.items():
        powers = int(status["CapEff"], 16) | int(status["CapPrm"], 16)
        if powers and _user_namespace(pid) == _user_namespace(os.getpid()):
            _fail(f"process {pid}: CapEff {status['CapEff']} in the host's user namespace")
    return f"{len(processes)} processes, whose powers are over namespaces of their own"


def _filters(processes: dict[int, Status]) -> str:
    for pid, status in processes.items():
        if status.get("Seccomp") != "2" or status.get("NoNewPrivs") != "1":
            _fail(f"process {pid}: Seccomp {status.get('Seccomp')}, NoNewPrivs {status.get('NoNewPrivs')}")
    return f"{len(processes)} processes with seccomp and no_new_privs"


def _groups(processes: dict[int, Status], limited: bool) -> str:
    if not limited:
        raise _NothingToSeeError("there are no cgroups for this engine")
    memberships = set()
    for pid in processes:
        try:
            memberships.add(Path(f"/proc/{pid}/cgroup").read_text())
        except OSError:
            continue
    ours = Path("/proc/self/cgroup").read_text()
    if len(memberships) != 1 or ours in memberships:
        _fail(f"{len(memberships)} different memberships among {len(processes)} processes")
    return f"{len(processes)} processes in one group"


def _namespaces(processes: dict[int, Status]) -> str:
    names = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
    looked = 0
    for pid in processes:
        for name in names:
            try:
                theirs = os.readlink(f"/proc/{pid}/ns/{name}")  # noqa: PTH115 - no path, a name
            except OSError:
                continue
            if theirs == os.readlink(f"/proc/self/ns/{name}"):  # noqa: PTH115
                _fail(f"process {pid} shares the host's {name} namespace")
            looked += 1
    if not looked:
        raise _NothingToSeeError("the host's user may not look at the sandbox's namespaces")
    return f"{looked} namespaces of {len(processes)} processes are others than the host's"


def _priorities(processes: dict[int, Status]) -> str:
    """Niceness, scheduling and safety from the out-of-memory killer, against the engine's own."""
    ours = _priority(os.getpid())
    assert ours is not None
    looked = [found for found in map(_priority, processes) if found is not None]
    for nice, policy, spared in looked:
        if nice < ours[0] or policy in _REAL_TIME or spared < ours[2]:
            _fail(f"nice {nice}, policy {policy}, oom_score_adj {spared}; the engine's: {ours}")
    return f"{len(looked)} processes go after the engine"


def _priority(pid: int) -> tuple[int, int, int] | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[16]), int(fields[38]), int(Path(f"/proc/{pid}/oom_score_adj").read_text())
    except (OSError, IndexError):
        return None  # it has just ended


def _programs(processes: dict[int, Status], warden: int) -> str:
    """But for PID 1, which is the engine's own, the host's kernel runs runsc and nothing else."""
    allowed = os.stat(runsc.find())  # noqa: PTH116 - compared by device and inode
    looked = 0
    for pid, status in processes.items():
        if pid == warden:
            continue
        try:
            found = os.stat(f"/proc/{pid}/exe")  # noqa: PTH116
        except FileNotFoundError:
            continue  # it has just ended
        if not os.path.samestat(found, allowed):
            _fail(f"the host's kernel runs process {pid} ({status['Name']})")
        looked += 1
    if not looked:
        _fail("no process of gVisor was seen")
    return f"{len(processes)} processes, of gVisor but for the first"


def _cgroups_of(sandbox: Sandbox) -> list[str]:
    # Not by rglob, which fails when a group of another engine goes while it looks.
    return [path for path, _, _ in os.walk(_CGROUPS) if path.endswith(f"/{sandbox.sandbox_id}")]


def leftovers(sandbox: Sandbox, processes: dict[int, Status]) -> Finding:
    """What is left of a sandbox that was killed, which had these processes."""
    alive = _everyone()
    left = [
        pid
        for pid, status in processes.items()
        if pid in alive
        and alive[pid].get("Uid") == status.get("Uid")
        and alive[pid]["State"][0] != "Z"
        and alive[pid].get("NSpid") == status.get("NSpid")
    ]
    name, category, layer = "something-outlives-the-sandbox", "processes", "PID namespace"
    if left:
        return Finding(name, category, layer, "host", "got through", f"processes {left}")
    if sandbox.http_socket.parent.exists():
        return Finding(name, category, layer, "host", "got through", f"{sandbox.http_socket.parent}")
    groups = _cgroups_of(sandbox)
    if groups or sandbox.sandbox_id in Path("/proc/self/mountinfo").read_text():
        return Finding(name, category, layer, "host", "got through", f"cgroups {groups}, or a mount")
    evidence = f"{len(processes)} processes, the sockets, cgroups and mounts are gone"
    return Finding(name, category, layer, "host", "contained", evidence)
