"""The harder tier through the official SDK: the same guest and the same API under gVisor's kernel."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from e2b import PtySize, SandboxException
from e2b_code_interpreter import Sandbox

if TYPE_CHECKING:
    from conftest import RunningServer

GVISOR = {"ringfence.isolation": "gvisor"}
_SECONDS = 60


@pytest.fixture(scope="module")
def available(server: RunningServer) -> None:
    gvisor = server.isolation["gvisor"]
    if not gvisor["available"]:
        pytest.skip(gvisor["detail"])


@pytest.fixture(scope="module")
def hard(server: RunningServer, available: None) -> Iterator[Sandbox]:
    """One sandbox for all tests that leave it as it was: a start takes seconds."""
    made = Sandbox.create("base", metadata=GVISOR, timeout=600, **server.options)
    yield made
    made.kill()


def _wait_for(condition: Callable[[], object]) -> object:
    deadline = time.monotonic() + _SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def warm(server: RunningServer, hard: Sandbox) -> None:
    """From here on sandboxes of the template are restored: the first has had an image made."""
    _wait_for(lambda: not _gvisor(server)["starts"]["images_in_the_making"])


def _gvisor(server: RunningServer) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{server.url}/health", headers={"X-API-KEY": server.key}).json()[
        "isolation"
    ]["gvisor"]
    return found


def _detail(server: RunningServer, sandbox: Sandbox) -> dict[str, Any]:
    headers = {"X-API-KEY": server.key}
    found: dict[str, Any] = httpx.get(f"{server.url}/sandboxes/{sandbox.sandbox_id}", headers=headers).json()
    return found


def test_the_kernel_is_gvisors(hard: Sandbox) -> None:
    assert "gVisor" in hard.commands.run("dmesg").stdout
    inside = hard.files.read("/proc/version")
    assert inside != Path("/proc/version").read_text()
    assert inside.startswith("Linux version 4.4.0")


def test_the_tier_is_named(server: RunningServer, hard: Sandbox) -> None:
    assert _detail(server, hard)["isolation"] == "gvisor"
    health = httpx.get(f"{server.url}/health", headers={"X-API-KEY": server.key}).json()["isolation"]
    assert health["tier"] == "process"
    assert health["gvisor"]["available"] is True
    assert "runsc" in health["gvisor"]["detail"]


def test_code(hard: Sandbox) -> None:
    word = secrets.token_hex(4)
    assert hard.run_code(f"word = {word!r}; word").text == word
    assert hard.run_code("word").text == word
    failed = hard.run_code("1 / 0")
    assert failed.error is not None
    assert failed.error.name == "ZeroDivisionError"
    assert hard.run_code("echo $((40 + 2))", language="bash").logs.stdout == ["42\n"]
    assert hard.run_code("import uuid; str(uuid.uuid4())").text != hard.run_code("str(uuid.uuid4())").text


def test_a_chart(hard: Sandbox) -> None:
    shown = hard.run_code("import matplotlib.pyplot as plt; plt.plot([1, 2, 4]); plt.show()").results[0]
    assert shown.png
    assert shown.chart is not None


def test_user_code_sees_neither_the_guest_nor_its_modules(hard: Sandbox) -> None:
    found = hard.run_code(
        "import os, sys\n"
        "[n for n in sys.modules if n.startswith(('ringfence.', 'uvicorn', 'starlette'))], "
        "[p for p in ('/python', '/boot.py', '/code/0', '/sandbox') if os.path.exists(p)], os.getuid()"
    )
    assert found.text == "([], [], 1000)"


def test_commands(hard: Sandbox) -> None:
    with pytest.raises(SandboxException, match="exited with code 3"):
        hard.commands.run("echo trouble >&2; exit 3")
    assert hard.commands.run("id -u").stdout == "1000\n"
    assert hard.commands.run("id -u", user="root").stdout == "0\n"
    assert hard.commands.run("sudo id -u").stdout == "0\n"
    running = hard.commands.run("cat", background=True, stdin=True)
    hard.commands.send_stdin(running.pid, "word\n")
    hard.commands.close_stdin(running.pid)
    assert running.wait().stdout == "word\n"


def test_files_and_their_watch(hard: Sandbox) -> None:
    watch = hard.files.watch_dir("/home/user")
    hard.files.write("/home/user/data.bin", os.urandom(1 << 20))
    assert len(hard.files.read("/home/user/data.bin", format="bytes")) == 1 << 20
    assert "data.bin" in [entry.name for entry in hard.files.list("/home/user")]
    seen: set[str] = set()

    def noticed() -> bool:
        seen.update(event.name for event in watch.get_new_events())
        return "data.bin" in seen

    _wait_for(noticed)
    watch.stop()
    hard.files.remove("/home/user/data.bin")
    assert not hard.files.exists("/home/user/data.bin")


def test_a_terminal(hard: Sandbox) -> None:
    said: list[bytes] = []
    terminal = hard.pty.create(PtySize(rows=24, cols=80))
    hard.pty.send_stdin(terminal.pid, b"echo $((40 + 2)); tty; exit\n")
    terminal.wait(on_pty=said.append)
    assert b"42\r\n" in b"".join(said)
    assert b"/dev/pts/" in b"".join(said)


def test_a_port(server: RunningServer, hard: Sandbox) -> None:
    hard.commands.run("mkdir -p /tmp/www && echo found > /tmp/www/index.html")
    web = hard.commands.run("python3 -m http.server 8123 -d /tmp/www", background=True)
    headers = {"E2b-Sandbox-Id": hard.sandbox_id, "E2b-Sandbox-Port": "8123"}
    answer = _wait_for(lambda: (r := httpx.get(server.url, headers=headers)).status_code == 200 and r)
    assert isinstance(answer, httpx.Response)
    assert answer.text == "found\n"
    web.kill()


def test_too_long_a_run_keeps_the_state(hard: Sandbox) -> None:
    hard.run_code("kept = 7")
    with pytest.raises(SandboxException):
        hard.run_code("import time; time.sleep(600)", timeout=1)
    assert hard.run_code("kept").text == "7"


def test_it_stands_still_and_goes_on(hard: Sandbox) -> None:
    hard.run_code("kept = 5")
    hard.pause()
    hard.connect(timeout=600)
    assert hard.run_code("kept").text == "5"


def test_a_snapshot_has_its_files_and_variables(server: RunningServer, hard: Sandbox) -> None:
    word = secrets.token_hex(4)
    hard.files.write("/home/user/word", word)
    hard.run_code(f"word = [{word!r}]; same = word; large = bytearray(b'xyz' * 1_000_000)")
    snapshot = hard.create_snapshot()
    hard.run_code("word.append(1)")
    try:
        with Sandbox.create(snapshot.snapshot_id, timeout=60, **server.options) as other:
            assert other.files.read("/home/user/word") == word
            copied = "same.append(2); large[:3] = b'abc'; word, len(large), bytes(large[:6])"
            assert other.run_code(copied).text == f"(['{word}', 2], 3000000, b'abcxyz')"
            assert hard.run_code("word, bytes(large[:3])").text == f"(['{word}', 1], b'xyz')"
            assert "gVisor" in other.commands.run("dmesg").stdout
        less = {"ringfence.isolation": "process"}
        with pytest.raises(SandboxException, match=r"400.*asks for process, but gvisor is the least here"):
            Sandbox.create(snapshot.snapshot_id, metadata=less, timeout=60, **server.options)
    finally:
        Sandbox.delete_snapshot(snapshot.snapshot_id, **server.options)


def test_variables_that_cannot_be_copied_are_told(hard: Sandbox) -> None:
    hard.run_code(
        "import sys; sys.modules['cloudpickle'] = None\n"
        "sys.modules['ringfence_kernel.pickling'].pickler_class.cache_clear()"
    )
    with pytest.raises(SandboxException, match=r"409.*cloudpickle.*not installed"):
        hard.create_snapshot()
    assert hard.run_code("del sys.modules['cloudpickle']; 1 + 1").text == "2"


def test_the_way_out_is_the_egress(hard: Sandbox) -> None:
    refused = hard.commands.run("curl -sS -o /dev/null -w '%{http_code}' http://169.254.169.254/")
    assert refused.stdout == "403"
    straight = "curl -sS --noproxy '*' -m 20 http://169.254.169.254/ || echo none"
    assert hard.commands.run(straight).stdout == "none\n"


_TELL = """
import json, os, random, resource, socket, ssl, time, uuid, numpy
def told(path): return open(path).read()
json.dumps({
    "random": [random.random(), float(numpy.random.rand()), str(uuid.uuid1()), str(uuid.uuid4()),
               ssl.RAND_bytes(16).hex(), os.urandom(16).hex()],
    "host": socket.gethostname(), "memory": told("/proc/meminfo").split()[1],
    "files": resource.getrlimit(resource.RLIMIT_NOFILE), "pids": resource.getrlimit(resource.RLIMIT_NPROC),
    "name": os.environ.get("NAME"), "id": os.environ["E2B_SANDBOX_ID"],
    "home": sorted(os.listdir("/home/user")), "tmp": os.listdir("/tmp"), "time": time.time(),
    "disk": os.statvfs("/").f_blocks * os.statvfs("/").f_frsize, "inodes": os.statvfs("/").f_files,
})
"""


def test_restored_sandboxes_are_like_their_template_and_apart(
    server: RunningServer, hard: Sandbox, warm: None
) -> None:
    hard.files.write("/home/user/of-the-first", "x")
    found = []
    for number in (1, 2):
        limits = {"ringfence.memory_mb": str(700 + number), "ringfence.open_files": str(1000 + number),
                  "ringfence.inodes": str(50_000 + number), "ringfence.pids": str(90 + number)}  # fmt: skip
        sandbox = Sandbox.create(
            "base",
            metadata={**GVISOR, **limits},
            envs={"NAME": f"name-{number}"},
            timeout=60,
            **server.options,
        )
        try:
            assert _detail(server, sandbox)["restored"] is True
            answer = sandbox.run_code(_TELL).text
            assert answer is not None
            told = json.loads(answer.strip("'"))
            assert told["id"] == sandbox.sandbox_id
            assert told["host"] == "sandbox"
            assert told["memory"] == str((700 + number) * 1024)
            assert told["files"] == [1000 + number] * 2
            assert told["pids"] == [90 + number] * 2
            assert told["inodes"] == 50_000 + number
            assert told["disk"] == 1024 << 20
            assert told["name"] == f"name-{number}"
            assert abs(told["time"] - time.time()) < _SECONDS
            assert told["tmp"] == []
            assert told["home"] == [".bashrc", ".profile"]
            sandbox.files.write("/home/user/mine", str(number))
            assert sandbox.commands.run("cat mine; echo $NAME").stdout == f"{number}name-{number}\n"
            refused = sandbox.commands.run("curl -sS -o /dev/null -w '%{http_code}' http://169.254.169.254/")
            assert refused.stdout == "403"
            found.append(told["random"])
        finally:
            sandbox.kill()
    assert not set(found[0]) & set(found[1])


def test_a_restored_one_stands_still_goes_on_and_is_copied(server: RunningServer, warm: None) -> None:
    sandbox = Sandbox.create("base", metadata=GVISOR, timeout=300, **server.options)
    try:
        assert _detail(server, sandbox)["restored"] is True
        sandbox.run_code("kept = 5; open('/home/user/word', 'w').write('copied')")
        sandbox.pause()
        sandbox.connect(timeout=300)
        assert sandbox.run_code("kept").text == "5"
        snapshot = sandbox.create_snapshot(mode="filesystem")
    finally:
        sandbox.kill()
    other = Sandbox.create(snapshot.snapshot_id, metadata=GVISOR, timeout=60, **server.options)
    try:
        assert _detail(server, other)["restored"] is False  # it has files that an image knows nothing of
        assert other.files.read("/home/user/word") == "copied"
    finally:
        other.kill()
        Sandbox.delete_snapshot(snapshot.snapshot_id, **server.options)


def test_limits_are_met_by_the_program_and_not_by_the_sandbox(server: RunningServer, warm: None) -> None:
    metadata = {**GVISOR, "ringfence.memory_mb": "768", "ringfence.pids": "32"}
    sandbox = Sandbox.create("base", metadata=metadata, timeout=300, **server.options)
    try:
        greedy = "blocks = []\nwhile True: blocks.append(b'x' * 4_000_000); __import__('time').sleep(0.02)"
        ended = sandbox.run_code(greedy, timeout=120)
        assert ended.error is not None
        assert "memory limit" in ended.error.value
        bomb = "import subprocess; [subprocess.Popen(['sleep', '600']) for _ in range(40)]"
        refused = sandbox.run_code(bomb, timeout=120)
        assert refused.error is not None
        assert refused.error.name == "BlockingIOError"
        assert "the limit of 32 processes and threads was reached" in "".join(refused.logs.stderr)
        assert sandbox.run_code("6 * 7").text == "42"
    finally:
        sandbox.kill()


def test_nothing_is_left_of_it(server: RunningServer, warm: None) -> None:
    sandbox = Sandbox.create("base", metadata=GVISOR, timeout=300, **server.options)
    sandbox.commands.run("sleep 1000", background=True)
    assert _processes_of(server)
    sandbox.kill()
    directory = server.runtime_dir
    assert sandbox.sandbox_id not in {path.name for path in directory.rglob("*")}
    assert sandbox.sandbox_id not in Path("/proc/self/mountinfo").read_text()
    assert not [path for path, _, _ in os.walk("/sys/fs/cgroup") if sandbox.sandbox_id in path]


def _processes_of(server: RunningServer) -> list[str]:
    """Programs called runsc below the server."""
    return [
        entry.name
        for entry in Path("/proc").glob("[0-9]*")
        if (entry / "comm").exists() and "runsc" in (entry / "cmdline").read_text().partition("\0")[0]
    ]


def test_an_unknown_tier_is_refused(server: RunningServer) -> None:
    with pytest.raises(SandboxException, match=r"400.*ringfence\.isolation must be one of process, gvisor"):
        Sandbox.create("base", metadata={"ringfence.isolation": "vm"}, **server.options)


def test_a_server_with_a_floor_does_not_start_without_runsc(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ringfence", "serve", "--port", "0", "--isolation", "gvisor"]
    environment = {**os.environ, "RINGFENCE_RUNSC": "/no/runsc", "RINGFENCE_TEMPLATES": "base"}
    ended = subprocess.run(
        [*command, "--data-dir", str(tmp_path)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode != 0
    assert "apt install runsc" in ended.stderr
