"""What JavaScript cells need besides Node: Sucrase, which npm installs into a layer over the host's ``/usr``.

As with wheels, no code of a package runs on the host: npm only unpacks archives with known hashes. Where they
come from is for npm's own configuration to say; the lock names no registry.
"""

import os
import shutil
from importlib import resources
from pathlib import Path

from ringfence.core.errors import TemplateError
from ringfence.engine.templates.cache import LayerCache, Progress, digest
from ringfence.engine.templates.children import run
from ringfence.engine.templates.plan import Plan
from ringfence.guest.config import NODE_MODULES

# Part of the key: raise it when this module makes another layer from the same lock.
_LAYOUT = 1
_LOCK = "package-lock.json"
_REASON_LINES = 4
# --ignore-scripts: no code of a package runs. The times: nobody should wait minutes for a machine without a
# network to start, and npm's own would have them do so.
_OPTIONS = (
    *("--ignore-scripts", "--omit=dev", "--no-audit", "--no-fund", "--no-bin-links"),
    *("--no-progress", "--no-update-notifier", "--loglevel=error"),
    *("--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-timeout=10000"),
)


def ensure_node_modules(cache: LayerCache, progress: Progress) -> tuple[Path, ...]:
    """The root of a tree that has `NODE_MODULES`, installed into `cache` if it is not there yet.

    Nothing when this machine has no Node, or when the packages cannot be had: `progress` is told why, and the
    next call tries again.
    """
    if shutil.which("node") is None and shutil.which("nodejs") is None:
        return ()
    project = requirements()
    try:
        key = digest(_LAYOUT, project[_LOCK])
        layer = cache.ensure("node", key, lambda work, lock: install(work, project, lock, progress), progress)
    except TemplateError as error:
        progress(f"JavaScript cells are not available: {_in_short(error)}")
        return ()
    return (layer / "tree",)


def _in_short(error: TemplateError) -> str:
    """What went wrong on one line: npm says it first, and then where in its own code."""
    what, *lines = str(error).split("\n")
    said = [line.removeprefix("npm error ") for line in lines[:_REASON_LINES]]
    reasons = [line for line in said if not line.startswith("A complete log of this run")]
    return f"{what} {'; '.join(reasons)}".rstrip()


def requirements() -> dict[str, bytes]:
    """The files npm reads, by name: what is wanted, and the lock with the hash of every package."""
    directory = resources.files("ringfence.engine.templates") / "requirements" / "node"
    return {name: (directory / name).read_bytes() for name in ("package.json", _LOCK)}


def install(work: Path, project: dict[str, bytes], lock: int, progress: Progress) -> None:
    """Fill ``work/tree`` with the packages of `project`, npm's files by name.

    Raises `TemplateError`, with the end of npm's output, when there is no npm or a package cannot be had.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise TemplateError("there is no npm on this machine to install Sucrase with, which they need")
    progress("installing Sucrase with npm, for JavaScript cells; this is done once")
    folder = work / "project"
    folder.mkdir()
    for name, content in project.items():
        (folder / name).write_bytes(content)
    run(
        [npm, "ci", "--prefix", str(folder), *_OPTIONS],
        what="installing Sucrase with npm",
        cwd=folder,
        env=os.environ,
        lock=lock,
        on_line=lambda _: None,  # it says little, and an error has it
        on_quiet=lambda seconds: progress(f"still installing Sucrase ({seconds:.0f} s)"),
    )
    installed = folder / "node_modules"
    (installed / ".package-lock.json").unlink(missing_ok=True)  # npm's own; it may name the registry
    plan = Plan()
    plan.directory(str(Path(NODE_MODULES).parent))
    plan.write(work / "tree")
    installed.rename(work / "tree" / NODE_MODULES[1:])
    shutil.rmtree(folder)
