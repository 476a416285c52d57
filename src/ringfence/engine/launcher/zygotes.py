"""Starting the zygotes: one of our own Python for guests, one per template for kernels."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from ringfence.core.descriptors import refuse_descriptors
from ringfence.engine.isolation import linux, mounts, oom, userns
from ringfence.engine.zygote import channel
from ringfence.engine.zygote.joining import HOSTNAME
from ringfence.engine.zygote.kernel import CODE_PATH

# What the kernel zygote needs of us, by package below `ringfence`; it has nothing else of ours.
_OUR_MODULES = (
    "__init__",
    "engine/__init__",
    "engine/zygote/__init__",
    "engine/zygote/channel",
    "engine/zygote/kernel",
)
_BOOT = (
    f"import sys; sys.path.insert(0, {CODE_PATH!r}); from ringfence.engine.zygote.kernel import main; main()"
)
_ZYGOTE_MEMORY = 64 << 20


def start_guest_zygote() -> tuple[int, socket.socket]:
    """Start the guest zygote; its pid and the channel to it."""
    ours, theirs = channel.pair()
    _protect(ours)
    command = [sys.executable, "-I", "-m", "ringfence.engine.zygote.guest", str(theirs.fileno())]
    process = subprocess.Popen(
        command,
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=2,
        env=zygote_environment({}),
        close_fds=True,
    )
    theirs.close()
    process.returncode = 0  # the launcher reaps all its children in one place
    return process.pid, ours


def zygote_environment(extra: dict[str, str]) -> dict[str, str]:
    """The variables of a zygote, and of what stands for one in gVisor; `extra` are the template's."""
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": "/home/user",
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        **extra,
    }


def start_kernel_zygote(
    template: dict[str, Any], namespace_fd: int, idmap: bool, program: bytes
) -> tuple[int, socket.socket]:
    """Start a template's kernel zygote in the template's user namespace and a read-only view of its root."""
    ours, theirs = channel.pair()
    _protect(ours)
    code = _code_files()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            _become_kernel_zygote(template, namespace_fd, idmap, program, code, theirs.fileno())
        except BaseException as error:
            os.write(2, f"kernel zygote of {template['name']}: {error}\n".encode())
        finally:
            os._exit(127)
    theirs.close()
    return pid, ours


def _protect(ours: socket.socket) -> None:
    """Let a zygote neither hold us up by not reading, nor by what it sends."""
    ours.setblocking(False)
    refuse_descriptors(ours)


def _code_files() -> dict[str, bytes]:
    """The files of ours that the zygote runs, by path below its code directory."""
    package = Path(__file__).parents[2]
    files = {f"ringfence/{name}.py": (package / f"{name}.py").read_bytes() for name in _OUR_MODULES}
    for path in (package / "engine/isolation").glob("*.py"):
        files[f"ringfence/engine/isolation/{path.name}"] = path.read_bytes()
    programs = (path for kind in ("*.py", "*.js") for path in (package / "guest/kernel").rglob(kind))
    for path in programs:
        files[f"ringfence_kernel/{path.relative_to(package / 'guest/kernel')}"] = path.read_bytes()
    return files


def _become_kernel_zygote(
    template: dict[str, Any],
    namespace_fd: int,
    idmap: bool,
    program: bytes,
    code: dict[str, bytes],
    channel_fd: int,
) -> None:
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.set_wakeup_fd(-1)
    oom.expose()
    layers = tuple(mounts.LayerPaths(layer["target"], tuple(layer["lowers"])) for layer in template["layers"])
    trees = mounts.clone_lowers(layers, namespace_fd if idmap else None)
    if os.getuid() == 0 and idmap:
        os.setgroups([])
    userns.enter(namespace_fd, 0)
    linux.unshare(
        linux.CLONE_NEWNS
        | linux.CLONE_NEWNET
        | linux.CLONE_NEWIPC
        | linux.CLONE_NEWUTS
        | linux.CLONE_NEWCGROUP
    )
    socket.sethostname(HOSTNAME)  # what libraries learn and keep when they are imported
    plan = mounts.RootPlan(
        layers=layers,
        size=_ZYGOTE_MEMORY,
        inodes=4096,
        root_id=0,
        memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        cpus=os.cpu_count() or 1,
        writable=False,
        own_pids=False,
        code={f"{CODE_PATH}/{name}": data for name, data in code.items()},
    )
    mounts.assemble(plan, trees)
    program_fd = os.memfd_create("seccomp", 0)
    os.write(program_fd, program)
    os.lseek(program_fd, 0, os.SEEK_SET)
    _exec(template, channel_fd, program_fd)


def _exec(template: dict[str, Any], channel_fd: int, program_fd: int) -> None:
    os.chdir("/home/user")
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.dup2(channel_fd, 3)
    os.dup2(program_fd, 4)
    linux.close_range(5)
    python = template["python"]
    os.execve(  # noqa: S606 - the zygote is the template's Python, not a command line
        python, [python, "-I", "-c", _BOOT, "3", "4"], zygote_environment(template["env"])
    )
