"""Programs of our own that every template has: they lie over the host's, in a layer of their own."""

from collections.abc import Iterable
from pathlib import Path

import ringfence.guest.sudo
from ringfence.engine.templates.cache import LayerCache, Progress
from ringfence.engine.templates.plan import Plan

_SUDO = Path(ringfence.guest.sudo.__file__).with_name("client.py")
_SHEBANG = b"#!/usr/local/bin/python3 -IS\n"


def plan_tools() -> Plan:
    """The tree at ``/`` of these programs: ``/usr/bin/sudo``."""
    plan = Plan()
    plan.file("/usr/bin/sudo", _SHEBANG + _SUDO.read_bytes(), 0o755)
    return plan


def ensure_tools(cache: LayerCache, progress: Progress) -> Path:
    """The root of that tree, built into `cache` if it is not there yet."""
    plan = plan_tools()
    return cache.ensure("tools", plan.key(), lambda work, _: plan.write(work / "tree"), progress) / "tree"


def own_tools(trees: Iterable[Path], directory: str) -> tuple[Path, ...]:
    """What of the trees belongs over the host's `directory`."""
    own = (tree / directory.lstrip("/") for tree in trees)
    return tuple(path for path in own if path.is_dir())
