"""What an engine is started with."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from platformdirs import user_cache_path

from ringfence.core.places import of_the_user
from ringfence.engine.egress.settings import NetworkSettings
from ringfence.engine.model import Isolation, Limits


def default_cache_dir() -> Path:
    """Where built templates are kept: ``$RINGFENCE_CACHE_DIR``, else the user's cache directory."""
    named = os.environ.get("RINGFENCE_CACHE_DIR")
    return Path(named) if named else of_the_user(user_cache_path, "RINGFENCE_CACHE_DIR")


_CEILING = Limits(memory_mb=16384, cpus=64, pids=4096, disk_mb=8192, inodes=1_000_000, open_files=65536)


@dataclass(frozen=True)
class EngineSettings:
    """Settings of an engine.

    templates: names of the templates to warm at the start.
    cache_dir: where built templates are kept, between engines too.
    runtime_dir: for sockets, removed at the end; None: a fresh directory in a short place.
    snapshot_dir: where snapshots are kept; None: none can be made.
    volume_dir: where volumes are kept; None: there are none.
    unbounded_volumes: allow volumes that nothing limits where none can have a limit of size.
    ceiling: the most any one sandbox may ask for.
    max_sandboxes: how many may live at once.
    total_memory_mb: what all sandboxes together may use; None: nine tenths of the machine's memory. Over it
        the kernel ends processes of sandboxes, never of the engine. Needs cgroups.
    total_cpus: processors that all sandboxes together may use; None: all, but the engine comes first.
    total_pids: processes and threads of all sandboxes together; None: half of what the machine can have.
    rotate_after: sandboxes after which the warmed interpreters that they are forked from are replaced, so
        that what code has learnt of their memory's layout is of no use for long; 0: never.
    rotate_minutes: minutes after which they are replaced too, if anything was forked meanwhile; 0: never.
    zygote_patience: seconds after which one of them that reads nothing of what it is asked is replaced.
    log_refusals: have the kernel write each refused system call to its log (audit, dmesg).
    fresh_kernels: start each kernel as a new program, so that not even its hash seed and memory layout are
        those of another; costs what the imports cost.
    network: what the operator allows sandboxes to reach.
    authority_dir: where the egress's certificate authority is kept; None: it is made anew each time.
    gradual: serve as soon as a template's first module is imported, and go on warming between requests.
    isolation: the tier that every sandbox has at least.
    gvisor_platform: how gVisor catches system calls: ``auto``, ``systrap``, ``ptrace`` or ``kvm``.
    debug: let guests and zygotes write their trouble to standard error.
    """

    templates: tuple[str, ...] = ("base", "code-interpreter-v1")
    cache_dir: Path = field(default_factory=default_cache_dir)
    runtime_dir: Path | None = None
    snapshot_dir: Path | None = None
    volume_dir: Path | None = None
    unbounded_volumes: bool = False
    ceiling: Limits = _CEILING
    max_sandboxes: int = 200
    total_memory_mb: int | None = None
    total_cpus: float | None = None
    total_pids: int | None = None
    rotate_after: int = 1000
    rotate_minutes: float = 720
    zygote_patience: float = 30
    log_refusals: bool = False
    fresh_kernels: bool = False
    network: NetworkSettings = field(default_factory=NetworkSettings)
    authority_dir: Path | None = None
    gradual: bool = False
    isolation: Isolation = "process"
    gvisor_platform: str = "auto"
    debug: bool = False
