"""What the launcher adds to a request for a sandbox under gVisor."""

from typing import Any

from ringfence.engine.launcher.records import TemplateRecord
from ringfence.engine.launcher.zygotes import zygote_environment

_OWN_TASKS = 96
"""Threads of runsc, its gofer and the sandbox's kernel themselves."""
_TASKS_EACH = 3
"""Tasks of the host for each thread inside: a stub that stands for it, a thread that serves it, slack."""


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
    return {"image": None, "warm": False, **asked, "order": order}


def gvisor_cgroup(limits: dict[str, Any]) -> dict[str, Any]:
    """The limits of the cgroup: gVisor keeps the number of processes itself, and needs some of its own."""
    return {**limits, "pids": int(limits["pids"]) * _TASKS_EACH + _OWN_TASKS}
