"""What the machine gives the launcher: privilege, ids, cgroups; and the account of it that users see."""

import os
from dataclasses import dataclass
from typing import Any

from ringfence.core.errors import LimitError, UnsupportedHostError
from ringfence.engine.isolation import cgroups, landlock, linux, userns


@dataclass
class Host:
    """The launcher's view of the machine after it has put itself in place.

    privileged: whether the engine was started by root; then every sandbox gets host ids of its own.
    idmap: whether template files are shown through id-mapped mounts (as root always, otherwise never needed).
    """

    privileged: bool
    ids: userns.IdPlan
    cgroups: cgroups.CgroupDriver
    debug: bool

    @property
    def idmap(self) -> bool:
        """Whether lower directories are id-mapped."""
        return self.privileged

    @classmethod
    def prepare(cls, debug: bool) -> "Host":
        """Detect cgroups, then leave the host's mount namespace; an ordinary user its user namespace too."""
        privileged = os.geteuid() == 0
        driver = cgroups.detect()
        driver.sweep()
        try:
            if not privileged:
                userns.become_namespace_root()
            linux.unshare(linux.CLONE_NEWNS)
            linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
        except OSError as error:
            raise UnsupportedHostError(_namespace_remedy(error, privileged)) from error
        return cls(privileged, userns.IdPlan(single=not privileged), driver, debug)

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
            _layer("masked /proc, no /sys, minimal /dev", True, "hidepid, generated files"),
            _layer("no network but loopback", True, "no interface in the network namespace"),
            _layer("no capability outside, no_new_privs", True, "bounding set dropped"),
            _layer("seccomp", True, f"allow-list for {linux.ARCH}"),
            *self._landlock(),
            *self._cgroups(),
            _layer("rlimits", True, "no core dumps, open files, processes, locked memory, message queues"),
        ]

    def _landlock(self) -> list[dict[str, Any]]:
        version = landlock.abi()
        remedy = "" if version else "boot a kernel with Landlock (Linux 5.13, lsm=landlock,...)"
        return [_layer("Landlock", version > 0, f"ABI {version}: nothing but the sandbox's own root", remedy)]

    def _cgroups(self) -> list[dict[str, Any]]:
        driver = self.cgroups
        return [
            _layer("cgroup limits: memory, processes, CPU", driver.available, driver.detail, driver.remedy)
        ]


def _layer(name: str, in_force: bool, detail: str, remedy: str = "") -> dict[str, Any]:
    return {"name": name, "in_force": in_force, "detail": detail, "remedy": remedy}


def _namespace_remedy(error: OSError, privileged: bool) -> str:
    if privileged:
        return (
            f"cannot create namespaces: {error}. Ringfence needs CAP_SYS_ADMIN: run it outside of a container"
        )
    hints = [
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"),
        ("/proc/sys/kernel/unprivileged_userns_clone", "0"),
        ("/proc/sys/user/max_user_namespaces", "0"),
    ]
    for path, value in hints:
        try:
            with open(path) as file:
                found = file.read().strip()
        except OSError:
            continue
        if found == value:
            name = path.removeprefix("/proc/sys/").replace("/", ".")
            return f"user namespaces are refused ({error}): {name} = {value}; allow them, or start as root"
    return (
        f"user namespaces are refused ({error}); allow them for ordinary users, or start the engine as root"
    )
