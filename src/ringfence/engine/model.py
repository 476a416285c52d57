"""The engine's vocabulary: what a sandbox is asked to be and what it is."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ringfence.engine.egress.transforms import Transform

Isolation = Literal["process", "gvisor"]
"""A tier. process: the host's kernel, behind namespaces, seccomp and the rest. gvisor: a kernel of its own,
which is a program, inside of that.
"""
TIERS: tuple[Isolation, ...] = ("process", "gvisor")
"""From the least isolation to the most."""


@dataclass(frozen=True)
class Limits:
    """What one sandbox may use. The kernel enforces these; see `isolation/cgroups.py` and
    `isolation/rlimits.py`.

    memory_mb: memory in MiB, anonymous, page tables, tmpfs and socket buffers together; there is no swap.
    cpus: processor time, in processors (1.5 is one and a half).
    pids: processes and threads together.
    disk_mb: everything the sandbox writes, in MiB. The layer lives in memory and counts there too.
    inodes: files, directories and links the sandbox may create.
    open_files: open descriptors of one process.
    """

    memory_mb: int = 2048
    cpus: float = 2.0
    pids: int = 256
    disk_mb: int = 1024
    inodes: int = 200_000
    open_files: int = 4096


@dataclass(frozen=True)
class Layer:
    """One overlay of a template: `lowers` (host directories, topmost first) shown at `target` inside."""

    target: str
    lowers: tuple[Path, ...]


@dataclass(frozen=True)
class Template:
    """A root filesystem and the Python that is warmed on it. `layers[0].target` is always ``/``.

    python: path inside the sandbox of the interpreter that runs kernels, e.g. ``/usr/local/bin/python3``.
    preload: modules the kernel zygote imports once, before it forks.
    env: variables every process of the sandbox gets (below the request's own).
    packages: name to version of the Python distributions, for tool descriptions.
    root, snapshots: for one that was built: the template it stands on and the snapshots on top of that,
        topmost first; its `layers` are empty.
    build_id: tells the builds of one template apart; empty for a built-in one.
    isolation: the tier that its sandboxes have at least; see `Isolation`.
    start_cmd, ready_cmd: a service that runs in each sandbox, and how to tell that it is up.
    build_env: variables of these two. shell: runs them.
    """

    template_id: str
    name: str
    layers: tuple[Layer, ...]
    python: str
    preload: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    python_version: str = ""
    limits: Limits = Limits()
    default_user: str = "user"
    default_workdir: str | None = None
    root: str = ""
    snapshots: tuple[str, ...] = ()
    build_id: str = ""
    start_cmd: str = ""
    ready_cmd: str = ""
    build_env: dict[str, str] = field(default_factory=dict)
    shell: str = "/bin/bash"
    isolation: "Isolation" = "process"

    @property
    def key(self) -> str:
        """What the engine knows it by: its name, or its build for one that was built."""
        return self.build_id or self.name


@dataclass(frozen=True)
class NetworkRules:
    """What a sandbox may reach, in E2B's terms; all empty: what the operator's default says.

    allow: names, addresses and blocks (``allow_out``). deny: addresses and blocks (``deny_out``).
    internet: ``allow_internet_access``; False is the same as denying ``0.0.0.0/0``.
    transforms: what is changed in requests to some hosts (``rules``), with secrets filled in.
    """

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    internet: bool | None = None
    transforms: tuple[Transform, ...] = ()


@dataclass(frozen=True)
class VolumeMount:
    """A volume, by its id, and the absolute path inside at which it is mounted."""

    volume: str
    path: str


@dataclass(frozen=True)
class SandboxSpec:
    """A request for one sandbox.

    `access_token` guards envd inside; None leaves it open to whoever can reach it. `snapshots` are names of
    snapshots of the template whose files it starts with, topmost first. `volumes` are mounted for its life.
    `isolation`: the tier asked for, at least; the template's or the engine's may be more.
    """

    sandbox_id: str
    template: str
    env: dict[str, str] = field(default_factory=dict)
    access_token: str | None = None
    limits: Limits | None = None
    snapshots: tuple[str, ...] = ()
    network: NetworkRules = NetworkRules()
    volumes: tuple[VolumeMount, ...] = ()
    isolation: Isolation = "process"


@dataclass(frozen=True)
class Sandbox:
    """A running sandbox, as the engine knows it. All paths are the host's.

    http_socket: Unix socket on which the guest serves envd and the code interpreter.
    tunnel_socket: Unix socket that reaches any TCP port on the sandbox's loopback (see
        `ringfence.guest.tunnel`).
    started_at: seconds since the epoch.
    pid: the host's pid of the sandbox's PID 1. isolation: the tier it has. restored: whether it was
        started from an image of a warmed one, under gVisor.
    """

    sandbox_id: str
    template: Template
    limits: Limits
    http_socket: Path
    tunnel_socket: Path
    started_at: float
    pid: int
    isolation: Isolation = "process"
    restored: bool = False


@dataclass(frozen=True)
class Exit:
    """How a sandbox ended.

    `reason` is ``killed`` (asked for), ``oom``, ``exited`` or ``signal``; `detail` is a sentence.
    """

    sandbox_id: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Stats:
    """Use of one sandbox at one moment. Memory and disk in bytes, CPU in seconds since the start.

    memory_cache: file pages that the kernel would give back at once; not part of `memory_used`.
    disk_used: what the sandbox itself has written; `disk_limit` bounds it.
    """

    memory_used: int
    memory_cache: int
    memory_peak: int
    memory_limit: int
    cpu_seconds: float
    cpus: float
    pids: int
    oom_kills: int
    disk_used: int = 0
    disk_limit: int = 0
