"""How attacks on a kernel are judged where the sandbox has one of its own.

Inside gVisor a system call that is not refused reached gVisor's kernel, a program without power on the host,
and not the host's. Such an attack proves nothing either way: it does not apply, and the report names it with
what it saw. Only attacks in this table are judged so, each for its reason; all others are judged as ever.
"""

from collections.abc import Collection
from dataclasses import replace

from ringfence.engine.proof import program
from ringfence.engine.proof.model import Finding

_ANSWERED = "gVisor's own kernel answered, not the host's"
_SHOWN = "it is gVisor's own file, and tells nothing of the host"
_UNTOLD = "this gVisor's /proc does not say"
_REASONS = {
    "a-file-handle-of-the-host": _ANSWERED,
    "the-hosts-devices-are-there": "gVisor makes these devices up; none is the host's",
    "a-setuid-program-gives-power": _UNTOLD,
    "magic-links-of-pid-1": "gVisor shows every environment to all; that of PID 1 holds a PATH and no secret",
    "the-nursery-is-read": "gVisor shows every environment to all; that of the nursery holds no secret",
    "the-namespaces-of-others-are-joined": _SHOWN,
    "a-new-namespace-by-unshare": _ANSWERED,
    "namespaces-of-every-kind": _ANSWERED,
    "it-has-capabilities-outside": _UNTOLD,
    "it-is-in-the-hosts-user-namespace": _SHOWN,
    "the-hosts-secrets-are-read": _SHOWN,
    "io-uring": _ANSWERED,
    "input-for-a-terminal-is-forged": _ANSWERED,
    "address-randomization-is-switched-off": _ANSWERED,
    "the-filter-is-taken-off": "the filter is outside, on gVisor itself; the host looks at it",
    "the-network-is-reconfigured": _ANSWERED,
    "priority-is-raised": "it is a number of gVisor's; to the host all of its threads are alike",
    "tracing-and-bpf": _ANSWERED,
    "exploit-helpers": _ANSWERED,
    "keyrings": _ANSWERED,
    "mounts": _ANSWERED,
    "a-release-agent-is-set": _ANSWERED,
    "modules-and-reboot": _ANSWERED,
    "clocks-and-names": _ANSWERED,
    "the-x32-calls": _ANSWERED,
    "odd-sockets": _ANSWERED,
    "raw-sockets": _ANSWERED,
    "netlink-of-the-firewall": _ANSWERED,
    "tables-of-the-firewall": _ANSWERED,
    "the-console-is-taken": _ANSWERED,
    "a-pidfd-leads-into-others": _ANSWERED,
    "attributes-give-power": _ANSWERED,
    "limits-of-the-host-are-changed": _ANSWERED,
    "the-hosts-settings-are-written": _SHOWN,
    "memory-is-locked": "gVisor locks nothing: its memory is limited as a whole",
    "a-crash-leaves-a-core": "gVisor writes no cores",
}

_ENDS_IT = "the-guest-is-killed"
"""gVisor lets the sandbox's root end PID 1, and with it the sandbox: its own, and nothing else."""


def untried(names: Collection[str], who: str) -> list[Finding]:
    """What is not tried, because the sandbox would be gone for the attacks after it."""
    one = program.ATTACKS[_ENDS_IT]
    if who != "root" or _ENDS_IT not in names or who not in one.who:
        return []
    evidence = "not tried: gVisor lets the sandbox's root end PID 1, which ends its own sandbox"
    return [Finding(one.name, one.category, one.layer, who, "not applicable", evidence)]


def judged(finding: Finding) -> Finding:
    """The finding as it is to be read for a sandbox whose kernel is gVisor."""
    reason = _REASONS.get(finding.attack)
    if finding.verdict != "got through" or reason is None or "gave no answer" in finding.evidence:
        return finding
    return replace(finding, verdict="not applicable", evidence=f"{reason} ({finding.evidence})")
