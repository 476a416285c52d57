"""The attacks themselves: without a sandbox they get through, so that "contained" means something.

Run here are those that do no harm to the machine when they succeed.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ringfence.engine.proof import program
from ringfence.engine.proof.inside import harness
from ringfence.engine.proof.inside.harness import Facts, GotThrough, NotApplicable, Registered

TOKEN = "0123456789abcdef0123456789abcdef"
SECCOMP_FIRST = """
from ringfence.engine.isolation import capabilities, seccomp
capabilities.no_new_privs()
seccomp.install(seccomp.build())
"""
BY_SECCOMP = (
    "a-chroot-escape",
    "a-file-handle-of-the-host",
    "another-process-is-read",
    "a-new-namespace-by-unshare",
    "a-new-namespace-by-clone",
    "a-new-namespace-by-clone3",
    "mounts",
    "tracing-and-bpf",
    "exploit-helpers",
    "keyrings",
    "modules-and-reboot",
    "clocks-and-names",
    "address-randomization-is-switched-off",
    "the-filter-is-taken-off",
    "a-pidfd-leads-into-others",
    "namespaces-of-every-kind",
    "netlink-of-the-firewall",
    "raw-sockets",
)
BY_OTHER_LAYERS = (
    "a-host-file-is-out-of-reach",
    "host-directories-are-not-there",
    "a-device-is-made",
    "the-hosts-devices-are-there",
    "mounts-name-the-hosts-paths",
    "magic-links-of-pid-1",
    "a-host-process-is-seen",
    "the-guest-is-killed",
    "it-has-capabilities-outside",
    "it-is-in-the-hosts-user-namespace",
    "the-hosts-settings-are-written",
    "the-hosts-secrets-are-read",
    "the-hosts-loopback",
    "an-abstract-socket-of-the-host",
    "a-unix-socket-of-the-host",
    "priority-is-raised",
    "a-setuid-program-gives-power",
    "it-sees-the-hosts-size",
    "the-environment-has-secrets",
    "a-lock-of-a-neighbour",
    "what-a-neighbour-opens",
    "descriptors-are-inherited",
    "limits-of-the-host-are-changed",
    "attributes-give-power",
    "the-console-is-taken",
    "a-neighbours-file",
    "the-template-is-written-to",
    "a-leaked-descriptor-leads-outside",
    "the-hosts-name-is-told",
    "a-lock-on-a-device",
    "who-opens-a-device",
)
needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="what an ordinary user may not do, no sandbox can refuse"
)


def run(
    names: tuple[str, ...], facts: dict[str, Any], before: str = "", **env: str
) -> dict[str, tuple[str, str]]:
    text = before + program.attacks("root", names, facts)
    descriptor = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        done = subprocess.run(
            [sys.executable, "-c", text],
            capture_output=True,
            text=True,
            env={**os.environ, **env},
            pass_fds=[descriptor],
        )
    finally:
        os.close(descriptor)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return {answer["attack"]: (answer["verdict"], answer["evidence"]) for answer in answers}


@pytest.fixture
def facts(tmp_path: Path) -> Iterator[dict[str, Any]]:
    marker = tmp_path / "marker"
    marker.write_text(TOKEN)
    template_file = tmp_path / "template"
    template_file.write_text("original")
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as abstract,
        socket.socket(socket.AF_UNIX) as named,
        subprocess.Popen(["/bin/cat", "-", TOKEN], stdin=subprocess.PIPE) as victim,
    ):
        abstract.bind(f"\0{TOKEN}")
        abstract.listen()
        named.bind(str(tmp_path / "s"))
        named.listen()
        yield {
            "sandboxed": False,
            "token": TOKEN,
            "marker": str(marker),
            "victim": victim.pid,
            "own_devices": True,
            "host_name": os.uname().nodename,
            "abstract": TOKEN,
            "tcp_port": tcp.getsockname()[1],
            "sockets": [str(tmp_path / "s")],
            "host_directories": [str(tmp_path)],
            "private_paths": ["/proc"],
            "template_files": [str(template_file)],
            "memory": 1 << 20,
            "shared_file": str(template_file),
        }
        victim.kill()


@needs_root
@pytest.mark.parametrize("name", BY_SECCOMP)
def test_without_a_filter_it_gets_through_and_with_it_alone_it_does_not(
    name: str, facts: dict[str, Any]
) -> None:
    assert run((name,), facts)[name][0] == "got through"
    assert run((name,), facts, before=SECCOMP_FIRST)[name][0] == "contained"


@needs_root
def test_foreign_system_calls_are_refused_by_the_filter(facts: dict[str, Any]) -> None:
    answers = run(("the-32-bit-calls", "the-x32-calls", "odd-sockets"), facts, before=SECCOMP_FIRST)
    assert {verdict for verdict, _ in answers.values()} <= {"contained", "not applicable"}


@needs_root
def test_forged_terminal_input_is_refused_by_the_filter(facts: dict[str, Any]) -> None:
    name = "input-for-a-terminal-is-forged"
    assert run((name,), facts, before=SECCOMP_FIRST)[name][0] == "contained"
    legacy = Path("/proc/sys/dev/tty/legacy_tiocsti")
    if not legacy.exists() or legacy.read_text().strip() == "1":
        assert run((name,), facts)[name][0] == "got through"


@needs_root
def test_what_the_other_layers_hold_gets_through_without_them(facts: dict[str, Any]) -> None:
    Path("/tmp/ringfence-neighbour").write_text(TOKEN)
    import fcntl

    try:
        with open(facts["shared_file"], "rb") as held, open("/dev/full", "rb") as device:
            fcntl.flock(held, fcntl.LOCK_EX)
            fcntl.flock(device, fcntl.LOCK_EX)
            opener = (
                "import sys, time\nprint(flush=True)\n"
                "while True: open(sys.argv[1]).close(); open('/dev/full').close(); time.sleep(0.01)"
            )
            command = [sys.executable, "-c", opener, facts["shared_file"]]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as neighbour:
                assert neighbour.stdout is not None
                assert neighbour.stdout.readline()
                answers = run(BY_OTHER_LAYERS, facts, A_SECRET_KEY_TOKEN="x")
                neighbour.kill()
    finally:
        Path("/tmp/ringfence-neighbour").unlink()
    through = {name for name, (verdict, _) in answers.items() if verdict == "got through"}
    assert set(BY_OTHER_LAYERS) - through == {"the-template-is-written-to"}  # the host looks at that one
    assert Path(facts["template_files"][0]).read_text() != "original"


def test_a_thread_of_the_first_process_is_found(facts: dict[str, Any]) -> None:
    name = "threads-of-pid-1-have-a-directory"
    text = "import threading; threading.Thread(target=input).start(); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as threaded:
        assert threaded.stdout is not None
        assert threaded.stdout.readline()
        assert run((name,), facts | {"first_process": threaded.pid})[name][0] == "got through"
        threaded.communicate(b"\n\n")


def _die(facts: Facts) -> str:
    os.kill(os.getpid(), signal.SIGTERM)
    return "unreachable"


def _hang(facts: Facts) -> str:
    signal.pause()
    return "unreachable"


def _fail(facts: Facts) -> str:
    raise OSError(2, "a mistake")


def _succeed(facts: Facts) -> str:
    raise GotThrough("done")


def _skip(facts: Facts) -> str:
    raise NotApplicable("nothing")


def _syscall_killed(facts: Facts) -> str:
    os.kill(os.getpid(), signal.SIGSYS)
    return "unreachable"


@pytest.mark.parametrize(
    ("attack", "verdict"),
    [
        (_die, "got through"), (_hang, "got through"), (_fail, "got through"), (_succeed, "got through"),
        (_skip, "not applicable"), (_syscall_killed, "contained"), (lambda facts: "fine", "contained"),
    ],
)  # fmt: skip
def test_only_a_proof_counts_as_contained(attack: harness.Attack, verdict: str) -> None:
    def one(function: harness.Attack) -> Registered:
        return Registered("x", "c", "l", function, True, harness.EVERYONE, 0.5, False)

    after = one(lambda facts: "next")
    answers = [answer[1] for answer in harness.run([one(attack), after], {})]
    assert answers == [verdict, "contained"]
