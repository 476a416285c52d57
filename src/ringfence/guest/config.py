"""What the host tells a guest when it forks it. Nothing here is a secret of the host's."""

from collections.abc import Sequence
from dataclasses import dataclass, field

NODE_MODULES = "/usr/lib/ringfence/node_modules"
"""Where a template has the packages that the JavaScript kernel needs."""


@dataclass(frozen=True)
class GuestConfig:
    """The guest's whole configuration; it crosses the launcher's socket as JSON.

    access_token: required in ``X-Access-Token`` by both services; None: no token is asked for.
    env: variables of every process started in the sandbox (template's, then the request's).
    single_id: there is only uid 1000 inside, and processes of ``root`` run as it too.
    memory_bytes, disk_bytes, cpus: limits, for metrics. pids: the limit of processes, to tell it.
    node_modules: where the packages of the JavaScript kernel are.
    own_kernel: whether the kernel is gVisor, which calls every file system a network's.
    fresh_kernels: start each kernel as a new program instead of forking a warmed one.
    mirror: whether packages are installed from the host's mirror, which we pass connections on to.
    authority: certificate (PEM) of an authority that programs shall trust, see `trust`; empty: none.
    volumes: where volumes are mounted.
    """

    sandbox_id: str
    template_id: str
    access_token: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    default_user: str = "user"
    default_workdir: str | None = None
    single_id: bool = False
    memory_bytes: int = 0
    disk_bytes: int = 0
    cpus: float = 1.0
    pids: int = 0
    python: str = "/usr/local/bin/python3"
    node_modules: str = NODE_MODULES
    fresh_kernels: bool = False
    mirror: bool = False
    authority: str = ""
    volumes: Sequence[str] = ()
    own_kernel: bool = False

    @property
    def variables(self) -> dict[str, str]:
        """`env`, and over it `marks`: the variables of every process."""
        return {**self.env, **self.marks}

    @property
    def marks(self) -> dict[str, str]:
        """E2B's own variables, which say where a process is."""
        return {
            "E2B_SANDBOX": "true",
            "E2B_SANDBOX_ID": self.sandbox_id,
            "E2B_TEMPLATE_ID": self.template_id,
        }
