"""What the launcher adds to a request for a sandbox under gVisor."""

from typing import Any

from ringfence.engine.launcher.records import TemplateRecord
from ringfence.engine.launcher.zygotes import zygote_environment

_OWN_TASKS = 96
"""Threads of runsc, its gofer and the sandbox's kernel themselves."""
_TASKS_EACH = 8
"""Tasks of the host for each one inside. The platform ptrace has about six that stand for an idle process;
for those that are all busy at once it has many more, up to the number of gVisor's own threads for each."""


def gvisor_birth(asked: dict[str, Any] | None, template: TemplateRecord) -> dict[str, Any] | None:
    """The request to the guest zygote; None for one of the process tier."""
    if asked is None:
        return None
    description = template.description
    order = {
        "python": description["python"],
        "modules": description["preload"],
        "env": zygote_environment(description["env"]),
    }
    return {**asked, "order": order}


def gvisor_cgroup(limits: dict[str, Any], room: int) -> dict[str, Any]:
    """The limits of the cgroup, for which gVisor's own tasks count: see `ringfence.guest.gvisor.tasks`.

    room: bytes for an image, which lies in memory until it is stored.
    """
    tasks = int(limits["pids"]) * _TASKS_EACH + _OWN_TASKS
    return {**limits, "pids": tasks, "memory_mb": int(limits["memory_mb"]) + (room >> 20)}
