"""The OCI bundle of a sandbox (https://github.com/opencontainers/runtime-spec): what runsc is told.

Limits are not in it: the cgroup that runsc is started in has them, and so counts runsc itself.
"""

import json
from typing import Any

from ringfence.engine.gvisor.python import HostPython

SANDBOX = "/sandbox"
"""Where the template's files are in the container's root; see `ringfence.guest.gvisor.boot`."""
_CAPABILITIES = [
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_SYS_ADMIN", "CAP_SYS_CHROOT",  # given away before anything but our own code has run
]  # fmt: skip
BOOT = "/boot.py"
"""The program in the container's root; a file, so that a list of processes is readable."""


def boot_program(python: HostPython, order: dict[str, Any]) -> str:
    """The text of `BOOT`. order: see `ringfence.guest.gvisor.boot.main`."""
    return (
        f"import json, sys\nsys.path[:] = {list(python.search)!r}\n"
        "from ringfence.guest.gvisor.boot import main\n"
        f"main(json.loads({json.dumps(order)!r}))\n"
    )


def config(python: HostPython, hostname: str, shm_size: int) -> dict[str, Any]:
    """``config.json``. shm_size: of ``/dev/shm``, in bytes."""
    process = {
        "user": {"uid": 0, "gid": 0},
        "args": [python.executable, "-I", "-S", BOOT],
        "env": ["PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG=C.UTF-8", "HOME=/root",
                *(f"{name}={value}" for name, value in python.env.items())],
        "cwd": "/",
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), _CAPABILITIES),
        "noNewPrivileges": True,
    }  # fmt: skip
    return {
        "ociVersion": "1.0.0",
        "process": process,
        "root": {"path": "root"},
        "hostname": hostname,
        "mounts": _mounts(shm_size),
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]},
    }


def _mounts(shm_size: int) -> list[dict[str, Any]]:
    device = ["nosuid", "noexec"]
    guarded = ["nosuid", "noexec", "nodev"]
    return [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": guarded},
        {"destination": f"{SANDBOX}/proc", "type": "proc", "source": "proc", "options": guarded},
        # One kind, which was renamed in 2023; a runsc skips the name that it does not know.
        {"destination": f"{SANDBOX}/dev", "type": "devtmpfs", "source": "dev", "options": device},
        {"destination": f"{SANDBOX}/dev", "type": "dev", "source": "dev", "options": device},
        {"destination": f"{SANDBOX}/dev/pts", "type": "devpts", "source": "devpts",
         "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
        {"destination": f"{SANDBOX}/dev" "/shm", "type": "tmpfs", "source": "shm",
         "options": [*guarded, "mode=1777", f"size={shm_size}"]},
    ]  # fmt: skip
