"""A nursery spoken to directly: what the process of a kernel looks like, and what the nursery tells."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_PYTHON = os.environ.get("RINGFENCE_TEST_PYTHON", sys.executable)
_PACKAGE = Path(__file__).parents[3] / "src/ringfence/guest/kernel"
_NURSERY = """
import socket, sys
sys.path.insert(0, sys.argv[1])
from ringfence_kernel import nursery, preload
preload.preload([])
nursery.serve(socket.socket(fileno=int(sys.argv[2])))
"""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a kernel another id")


def _others_can_run(python: str) -> bool:
    try:
        command = [python, "-c", "import IPython"]
        return subprocess.run(command, user=54321, capture_output=True, env={"HOME": "/"}).returncode == 0
    except PermissionError:
        return False


@dataclass
class Nursery:
    """The guest's end of a nursery's socket."""

    socket: socket.socket
    kernels: list["Kernel"] = field(default_factory=list)

    def receive(self) -> dict[str, Any]:
        return json.loads(self.socket.recv(65536))

    def fork(self, **fields: Any) -> "Kernel":
        ours, theirs = socket.socketpair()
        output, given = os.pipe()
        null = os.open(os.devnull, os.O_RDONLY)
        request = {
            "op": "fork", "id": "1", "uid": os.geteuid(), "gid": os.getegid(), "groups": os.getgroups(),
            "cwd": "/", "env": {"PATH": os.environ["PATH"], "HOME": "/"}, **fields,
        }  # fmt: skip
        descriptors = [theirs.fileno(), null, given, given]
        socket.send_fds(self.socket, [json.dumps(request).encode()], descriptors)
        theirs.close()
        for fd in (null, given):
            os.close(fd)
        ours.settimeout(60)
        kernel = Kernel(ours, ours.makefile("rw"), output)
        self.kernels.append(kernel)
        return kernel


@dataclass
class Kernel:
    """The guest's end of a kernel's channel."""

    socket: socket.socket
    file: Any
    output: int

    def send(self, message: dict[str, Any]) -> None:
        self.file.write(json.dumps(message) + "\n")
        self.file.flush()

    def receive(self) -> Any:
        try:
            return json.loads(self.file.readline() or "null")
        except ConnectionResetError:
            return None

    def start(self) -> None:
        self.send({"op": "init", "language": "python"})
        assert (self.receive() or {}).get("event") == "ready", os.read(self.output, 4096).decode()

    def value(self, code: str) -> str:
        """The text of the cell's value, acknowledging what comes on the way."""
        self.send({"op": "execute", "id": "c", "code": code})
        text = ""
        while (message := self.receive())["event"] != "done":
            if message["event"] == "display":
                text = message["data"]["text/plain"]
            assert message["event"] != "error", message
            self.send({"op": "ack"})
        return text

    def close(self) -> None:
        self.file.close()
        self.socket.close()
        os.close(self.output)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("nursery")
    (directory / "ringfence_kernel").symlink_to(_PACKAGE)
    return directory


@pytest.fixture
def nursery(path: Path) -> Iterator[Nursery]:
    if subprocess.run([_PYTHON, "-c", "import IPython"], capture_output=True).returncode:
        pytest.skip(f"{_PYTHON} has no IPython; set RINGFENCE_TEST_PYTHON")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [_PYTHON, "-B", "-c", _NURSERY, str(path), str(theirs.fileno())], pass_fds=(theirs.fileno(),)
    )
    theirs.close()
    ours.settimeout(60)
    nursery = Nursery(ours)
    yield nursery
    ours.close()
    process.wait(30)
    for kernel in nursery.kernels:
        kernel.close()


def test_fork_run_exit(nursery):
    kernel = nursery.fork()
    forked = nursery.receive()
    assert (forked["op"], forked["id"], forked["fresh"]) == ("forked", "1", False)
    kernel.start()
    assert kernel.value("import os; os.getpid(), os.getsid(0)") == f"({forked['pid']}, {forked['pid']})"
    kernel.send({"op": "execute", "id": "c", "code": "os._exit(7)"})
    kernel.send({"op": "ack"})
    exited = nursery.receive()
    assert (exited["op"], exited["pid"]) == ("exited", forked["pid"])
    assert os.waitstatus_to_exitcode(exited["status"]) == 7


@pytest.mark.parametrize("fresh", [False, True])
def test_the_kernel_inherits_nothing(nursery, fresh):
    kernel = nursery.fork(env={"ONLY": "this", "PATH": os.environ["PATH"]}, fresh=fresh)
    assert nursery.receive()["fresh"] is fresh
    kernel.start()
    assert kernel.value("import os; sorted(set(os.environ) - {'LC_CTYPE'})") == "['ONLY', 'PATH']"
    listing = "[link for fd in range(3, 2000) if (link := read(fd)).startswith(('socket:', 'pipe:', '/'))]"
    code = "def read(fd):\n try: return os.readlink(f'/proc/self/fd/{fd}')\n except OSError: return ''\n"
    links = eval(kernel.value(code + listing))
    assert len(links) == 3, "the control channel, and the two ends of what wakes the loop"
    assert all(link.startswith("socket:") for link in links)
    assert kernel.value("import sys; '__main__' in sys.modules and sys.path[0]") == "''"


@needs_root
@pytest.mark.parametrize("fresh", [False, True])
def test_another_id_has_no_privilege(nursery, fresh):
    if not _others_can_run(_PYTHON):
        pytest.skip("the test's Python cannot be run by another user")
    kernel = nursery.fork(uid=54321, gid=54322, groups=[54322, 54323], fresh=fresh)
    nursery.receive()
    kernel.start()
    status = kernel.value(
        "[l.split() for l in open('/proc/self/status') if l[:3] in ('Cap','NoN','Uid','Gid','Gro')]"
    )
    fields = {line[0]: line[1:] for line in eval(status)}
    assert fields["Uid:"] == ["54321"] * 4
    assert fields["Gid:"] == ["54322"] * 4
    assert fields["Groups:"] == ["54322", "54323"]
    assert {int(fields[f"Cap{name}:"][0], 16) for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
    assert fields["NoNewPrivs:"] == ["1"]
    assert kernel.value("import os; os.stat('/proc/self').st_uid") == "54321"


def test_a_kernel_that_cannot_start_says_why(nursery):
    kernel = nursery.fork(cwd="/missing")
    nursery.receive()
    assert os.waitstatus_to_exitcode(nursery.receive()["status"]) == 70
    assert b"No such file or directory" in os.read(kernel.output, 4096)


def test_requests_that_make_no_sense(nursery):
    nursery.socket.send(b'{"op": "dance", "id": "x"}')
    assert nursery.receive() == {"op": "error", "id": "x", "message": "not a request"}


def test_kernels_end_with_the_nursery(nursery):
    kernel = nursery.fork()
    nursery.receive()
    kernel.start()
    nursery.socket.shutdown(socket.SHUT_RDWR)
    assert kernel.receive() is None
