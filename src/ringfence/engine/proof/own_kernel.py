"""How attacks on a kernel are judged where the sandbox has one of its own.

Inside gVisor a system call that is not refused reached gVisor's kernel, a program without power on the host,
and not the host's. Such an attack proves nothing either way: it does not apply, and the report names it with
what it saw. Only attacks in this table are judged so, each for its reason and only for the evidence that is
known of gVisor: with any other evidence, and all other attacks, are judged as ever. And only where the host
has seen that gVisor's programs, and none of the sandbox's, are what its own kernel runs.
"""

import re
from collections.abc import Collection
from dataclasses import replace

from ringfence.engine.proof.model import Finding

_REACHED = r"\w+ reached the kernel: E\w+"
"""A call that failed, in gVisor's kernel, for another reason than being forbidden: nothing was done."""
_OWN_NAMESPACE = rf"unshare was done: 0|{_REACHED}"
_ANSWERED = "gVisor's own kernel answered, not the host's"
_SHOWN = "it is gVisor's own file, and tells nothing of the host"
_SETTINGS = (
    "/proc/sys/kernel/hostname", "/proc/sys/vm/overcommit_memory", "/proc/sys/net/ipv4/ip_forward",
    "/proc/1/oom_score_adj", "/proc/1/uid_map",
)  # fmt: skip
"""Of gVisor's own kernel, and of PID 1, which is the sandbox's."""


def _some_of(*names: str) -> str:
    one = "|".join(map(re.escape, names))
    return f"(?:{one})(?:, (?:{one}))*"


_KNOWN = {
    "a-file-handle-of-the-host": (_REACHED, _ANSWERED),
    "the-hosts-devices-are-there": (
        f"/dev has {_some_of('fuse', 'net')}",
        "gVisor makes these devices up; none is the host's",
    ),
    "magic-links-of-pid-1": (
        "can be read: environ, fd, maps",
        "gVisor shows names of descriptors and every environment to all; that of PID 1 holds a PATH and no "
        "secret",
    ),
    "the-nursery-is-read": (
        r"can be opened: /proc/\d+/environ",
        "gVisor shows every environment to all; those of PID 1 and the nursery hold no secret",
    ),
    "the-namespaces-of-others-are-joined": (r"/proc/1/ns/\w+ can be opened", _SHOWN),
    "a-new-namespace-by-unshare": (_OWN_NAMESPACE, _ANSWERED),
    "namespaces-of-every-kind": (_OWN_NAMESPACE, _ANSWERED),
    "it-is-in-the-hosts-user-namespace": (r"uid_map: \[\(0, 0, 4294967295\)\]", _SHOWN),
    "the-hosts-settings-are-written": (f"can be written: {_some_of(*_SETTINGS)}", _SHOWN),
    "the-hosts-secrets-are-read": (r"can be read: /proc/cmdline", _SHOWN),
    "io-uring": (_REACHED, _ANSWERED),
    "input-for-a-terminal-is-forged": (_REACHED, _ANSWERED),
    "address-randomization-is-switched-off": (_REACHED, _ANSWERED),
    "the-filter-is-taken-off": (
        "Seccomp: 0",
        "the filter is outside, on gVisor itself; the host looks at it",
    ),
    "priority-is-raised": (
        "nice -5",
        "it is a number of gVisor's; the host looks at the priorities of its threads",
    ),
    "terminals": ("300 terminals", "they are gVisor's own, in its memory: the host's supply is as before"),
}
"""Of each attack: all that its evidence may say (a regular expression), and the reason."""
_KNOWN_OF_ROOT = {
    "magic-links-of-pid-1": (
        r"can be read: environ, fd, maps(, fd/\d+ \(pipe:\[\d+\]\))*",
        "gVisor gives the sandbox's root, who may end PID 1, the pipes on which it reads the output of the "
        "sandbox's processes; its sockets cannot be opened",
    ),
}
"""What is known of the sandbox's root alone."""

OWN = "gVisor's kernel alone runs programs of the sandbox"
"""The check on the host, without which nothing is passed over."""


def proven(seen: Collection[Finding]) -> bool:
    """Whether the host has seen that no program of the sandbox runs on its own kernel."""
    return any(finding.attack == OWN.replace(" ", "-") and finding.verdict == "contained" for finding in seen)


def judged(finding: Finding) -> Finding:
    """The finding as it is to be read for a sandbox whose kernel is gVisor."""
    table = {**_KNOWN, **_KNOWN_OF_ROOT} if finding.who == "root" else _KNOWN
    known, reason = table.get(finding.attack, ("", ""))
    if finding.verdict != "got through" or not known or not re.fullmatch(known, finding.evidence):
        return finding
    return replace(finding, verdict="not applicable", evidence=f"{reason} ({finding.evidence})")
