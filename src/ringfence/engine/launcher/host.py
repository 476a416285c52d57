"""What the machine gives the launcher: privilege, ids, cgroups; and the account of it that users see."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ringfence.core.errors import LimitError, UnsupportedHostError
from ringfence.engine.isolation import cgroups, devices, landlock, linux, probe, seccomp, userns

_IDMAPPED = "id-mapped mounts"
_OPTIONAL = frozenset({"Landlock", "cgroups", probe.TRANSPARENT_NETWORK})
"""Features whose absence only weakens a layer; the report tells of it."""


@dataclass
class Host:
    """The launcher's view of the machine after it has put itself in place.

    privileged: whether the engine was started by root; then every sandbox gets host ids of its own.
    totals: what all sandboxes together may use. log_refusals: whether the kernel logs refused calls.
    idmap: whether template files are shown through id-mapped mounts (as root always, otherwise never needed).
    """

    privileged: bool
    ids: userns.IdPlan
    cgroups: cgroups.CgroupDriver
    debug: bool
    totals: dict[str, float]
    log_refusals: bool = False
    own_devices: bool = False

    @property
    def idmap(self) -> bool:
        """Whether lower directories are id-mapped."""
        return self.privileged

    def group_limits(self, limits: Mapping[str, float]) -> dict[str, float]:
        """A sandbox's limits as its cgroup gets them: version 1 refuses more processors than all have."""
        most = self.totals.get("cpus")
        return {**limits, "cpus": min(limits["cpus"], most)} if most else dict(limits)

    @property
    def filter_flags(self) -> int:
        """With which flags sandboxes install their filters."""
        return seccomp.FILTER_FLAG_LOG if self.log_refusals else 0

    @classmethod
    def prepare(cls, debug: bool, totals: Mapping[str, float], log_refusals: bool = False) -> "Host":
        """Detect cgroups, limit all sandboxes together, then leave the host's mount namespace.

        An ordinary user leaves its user namespace too.
        """
        privileged = os.geteuid() == 0
        _require_features(privileged)
        driver = cgroups.detect()
        driver.sweep()
        together = {"memory_mb": _most_of_the_memory(), "pids": _half_of_the_processes(), **totals}
        driver.limit_total(together)
        own_devices = privileged and devices.available()
        if not privileged:
            userns.become_namespace_root()
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
        ids = userns.IdPlan(single=not privileged)
        return cls(privileged, ids, driver, debug, together, log_refusals, own_devices)

    def create_template_namespace(self, index: int) -> int:
        """The user namespace of the `index`-th template."""
        if index >= userns.MAX_TEMPLATES:
            raise LimitError(f"{userns.MAX_TEMPLATES} templates are in service, the most there can be")
        return userns.create(self.ids.template_maps(index))

    def report(self) -> list[dict[str, Any]]:
        """The layers of isolation, each with whether it is in force, its evidence and its remedy."""
        ids = (
            f"each sandbox has {userns.SLOT_RANGE} host ids of its own, from {userns.FIRST_HOST_ID:#x}"
            if self.privileged
            else "one id: sandboxes share the host id of the user who started the engine"
        )
        return [
            _layer("user namespace", True, "one per sandbox, below one per template"),
            _layer(
                "private host ids",
                self.privileged,
                ids,
                "" if self.privileged else "start the engine as root",
            ),
            _layer("mount, PID, network, IPC, UTS, cgroup namespaces", True, "new for every sandbox"),
            _layer("read-only template, size-limited writable layer", True, "overlay on tmpfs"),
            _layer("masked /proc, generated /sys, minimal /dev", True, "no PID 1, generated files"),
            _layer(
                devices.LAYER,
                self.own_devices,
                "locks and watches on them are felt by nobody else"
                if self.own_devices
                else "the host's are shown: locks and watches on them are shared with all of the machine",
                "" if self.own_devices else "start the engine as root, with CAP_MKNOD",
            ),
            *self._network(),
            _layer("no capability outside, no_new_privs", True, "bounding set dropped"),
            _layer("seccomp", True, f"allow-list for {linux.ARCH}"),
            *self._landlock(),
            *self._cgroups(),
            _layer("rlimits", True, "no core dumps, open files, processes, locked memory, message queues"),
        ]

    def _network(self) -> list[dict[str, Any]]:
        feature = probe.transparent_network()
        return [
            _layer("no network but through the egress", True, "no interface but loopback; judged by name"),
            _layer("plain connections led to the egress", feature.available, feature.detail, feature.remedy),
        ]

    def _landlock(self) -> list[dict[str, Any]]:
        version = landlock.abi()
        remedy = "" if version else "boot a kernel with Landlock (Linux 5.13, lsm=landlock,...)"
        return [_layer("Landlock", version > 0, f"ABI {version}: nothing but the sandbox's own root", remedy)]

    def _cgroups(self) -> list[dict[str, Any]]:
        driver = self.cgroups
        if driver.available:
            more = "; all sandboxes together: " + self._together()
        else:
            more = "; instead: rlimits of each process, and memory looked at ten times a second"
        return [
            _layer(
                "cgroup limits: memory, processes, CPU",
                driver.available,
                driver.detail + more,
                driver.remedy,
            )
        ]

    def _together(self) -> str:
        totals = self.totals
        cpus = f", {totals['cpus']:g} processors" if "cpus" in totals else ""
        return f"{totals['memory_mb']:.0f} MiB{cpus}, {totals['pids']:.0f} processes"


def _half_of_the_processes() -> int:
    """Half of the processes and threads that the machine can have; the rest is for the host."""
    files = ("/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max")
    return min(int(Path(file).read_text()) for file in files) // 2


def _most_of_the_memory() -> int:
    """Nine tenths of the machine's memory, in MiB: the rest is for the engine and the host."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 9 // 10 >> 20


def _layer(name: str, in_force: bool, detail: str, remedy: str = "") -> dict[str, Any]:
    return {"name": name, "in_force": in_force, "detail": detail, "remedy": remedy}


def _require_features(privileged: bool) -> None:
    """Refuse a machine that lacks something the sandboxes are made of, naming it and its remedy."""
    optional = _OPTIONAL if privileged else _OPTIONAL | {_IDMAPPED}
    missing = [feature for feature in probe.detect_features() if not feature.available]
    essential = [feature for feature in missing if feature.name not in optional]
    if essential:
        lines = [f"- {feature.name}: {feature.detail}. Remedy: {feature.remedy}" for feature in essential]
        raise UnsupportedHostError("this machine cannot isolate sandboxes:\n" + "\n".join(lines))
