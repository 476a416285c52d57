"""The nursery inside gVisor: no zygote of the host can fork into a sandbox there, so the guest starts the
template's Python itself, once, and has it import what the template preloads.

Its code travels in memory, as that of a kernel that is started afresh does.
"""

import json
import os
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ringfence.guest.kernel import fresh

_PACKAGE = "ringfence_kernel"
_MOST_REPORT = 1 << 20

_START = "import os, sys; exec(os.fdopen(int(sys.argv.pop(1))).read())"
# Arguments: the descriptors of this text, of the sources, of the nursery's socket and of the report, then the
# modules. In memory, so that a list of processes is readable: kernels are forks, and are listed by it too.
_BOOTSTRAP = f"""{fresh.FINDER}
import socket

def start():
    finder, sock, report = load(), int(sys.argv[2]), int(sys.argv[3])
    modules = json.loads(sys.argv[4])
    sys.argv[:] = [""]
    sys.meta_path.insert(0, finder)
    nursery, preload, fresh = (
        importlib.import_module(finder.package + name) for name in (".nursery", ".preload", ".fresh")
    )
    sys.meta_path.remove(finder)
    fresh.adopt(finder.sources, finder.data)
    os.write(report, json.dumps(preload.preload(modules)).encode())
    os.close(report)
    nursery.serve(socket.socket(fileno=sock))

start()
"""


@dataclass
class NurseryProcess:
    """A nursery that is warm. report: what `preload` said, e.g. which modules could not be imported."""

    pid: int
    socket: socket.socket
    report: dict[str, object]


def read_sources() -> bytes:
    """The kernel's package as `fresh.FINDER` loads it; to be read while its files are in sight."""
    modules, data = fresh.sources_of(Path(fresh.__file__).parent)
    return json.dumps([_PACKAGE, modules, data]).encode()


def _in_memory(data: bytes) -> int:
    memory = os.memfd_create("nursery", 0)
    with open(memory, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(memory, 0, os.SEEK_SET)
    return memory


@dataclass(frozen=True)
class Plan:
    """What a nursery is started with: the template's Python, what it imports, its variables, and the sources
    of `read_sources`.
    """

    python: str
    modules: list[str]
    env: dict[str, str]
    sources: bytes


def start(plan: Plan) -> NurseryProcess:
    """Start the nursery and wait until it is warm. Raises OSError, ValueError when it ends before."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    report, report_end = os.pipe()
    with theirs:
        pid = spawn(plan, theirs, report_end)
    os.close(report_end)
    with open(report, "rb") as file:
        text = file.read(_MOST_REPORT)
    if not text:
        raise ValueError(f"{plan.python} ended while it was importing {', '.join(plan.modules) or 'nothing'}")
    return NurseryProcess(pid, ours, json.loads(text))


def renew(plan: Plan, end: socket.socket) -> None:
    """Start another nursery, on the socket `end`, and do not wait for it. Raises OSError."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        spawn(plan, end, null)
    finally:
        os.close(null)


def spawn(plan: Plan, end: socket.socket, report: int) -> int:
    """Start the program; its pid. `end` and `report` stay the caller's. Raises OSError."""
    texts = [_in_memory(_BOOTSTRAP.encode()), _in_memory(plan.sources)]
    numbers = (*texts, end.fileno(), report)
    command = [plan.python, "-I", "-c", _START, *map(str, numbers), json.dumps(plan.modules)]
    try:
        process = subprocess.Popen(
            command, pass_fds=numbers, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=plan.env,
            cwd="/", start_new_session=True,
        )  # fmt: skip
    finally:
        for memory in texts:
            os.close(memory)
    process.returncode = 0  # the guest's reaper waits for it
    return process.pid
