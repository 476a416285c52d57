"""Attacks on another sandbox of the same engine. `set_up` is the victim's part, run in the other one."""

import fcntl
import os
import socket
import sys
import time
from contextlib import suppress

from ringfence.engine.proof.inside import native
from ringfence.engine.proof.inside.harness import Facts, GotThrough, NotApplicable, attack

CATEGORY = "neighbours"
_PATH = "/tmp/ringfence-neighbour"
_DEVICE = "/dev/full"
_IPC_CREAT = 0o1000
_IN_ACCESS, _IN_OPEN = 0x1, 0x20


def set_up(facts: Facts) -> None:
    """Offer everything that a neighbour might reach, say so, and wait to be killed."""
    with open(_PATH, "w") as file:
        file.write(facts["token"])
    os.chmod(_PATH, 0o666)  # noqa: S103 - it is bait
    abstract = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    abstract.bind("\0" + facts["neighbour_abstract"])
    abstract.listen()
    tcp = socket.create_server(("0.0.0.0", facts["neighbour_port"]))  # noqa: S104
    native.call("shmget", facts["neighbour_key"], 4096, _IPC_CREAT | 0o666)
    native.call("msgget", facts["neighbour_key"], _IPC_CREAT | 0o666)
    native.call("semget", facts["neighbour_key"], 1, _IPC_CREAT | 0o666)
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("0.0.0.0", facts["neighbour_port"]))  # noqa: S104
    with open(f"/dev/shm{_PATH[4:]}", "w") as file:
        file.write(facts["token"])
    held = open(facts["shared_file"], "rb")
    fcntl.flock(held, fcntl.LOCK_EX)
    device = open(_DEVICE, "rb")
    with suppress(BlockingIOError):  # then somebody else has it, which proves the same
        fcntl.flock(device, fcntl.LOCK_EX | fcntl.LOCK_NB)
    print("ready", flush=True)
    while True:  # for those who watch what is opened
        with open(facts["shared_file"], "rb") as opened:
            opened.read(1)
        with open(_DEVICE, "rb"):
            pass
        time.sleep(0.05)
        if udp.fileno() < 0 or tcp.fileno() < 0 or device.fileno() < 0:
            sys.exit(1)


@attack(CATEGORY, "mount namespace", who={"user", "root"}, essential=False)
def a_neighbours_file(facts: Facts) -> str:
    """At the same path as the neighbour has it."""
    for path in (_PATH, f"/dev/shm{_PATH[4:]}"):
        with suppress(FileNotFoundError), open(path) as file:
            if file.read() == facts["token"]:
                raise GotThrough(f"read the neighbour's {path}")
    return "not there"


@attack(CATEGORY, "read-only overlay", who={"user", "root"}, essential=False)
def what_a_neighbour_opens(facts: Facts) -> str:
    """Watches on files of the template tell nothing about others who open them."""
    watcher = native.call("inotify_init1", os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        path = facts["shared_file"].encode()
        native.call("inotify_add_watch", watcher, path, _IN_ACCESS | _IN_OPEN)
        time.sleep(0.5)
        with suppress(BlockingIOError):
            raise GotThrough(f"{len(os.read(watcher, 4096)) // 16} events on {facts['shared_file']}")
    finally:
        os.close(watcher)
    return "no event in half a second, while the neighbour opened the file"


@attack(CATEGORY, "network namespace", who={"user", "root"}, essential=False)
def a_neighbours_sockets(facts: Facts) -> str:
    """Its abstract Unix socket and its TCP port."""
    for family, address in (
        (socket.AF_UNIX, "\0" + facts["neighbour_abstract"]),
        (socket.AF_INET, ("127.0.0.1", facts["neighbour_port"])),
    ):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.settimeout(0.3)
            with suppress(OSError):
                probe.connect(address)
                raise GotThrough(f"connected to {address!r}")
    return "ECONNREFUSED"


@attack(CATEGORY, "IPC namespace", who={"user", "root"}, essential=False)
def a_neighbours_shared_memory(facts: Facts) -> str:
    """System V memory and queues by their keys."""
    for name, arguments in (
        ("shmget", (facts["neighbour_key"], 4096, 0o666)),
        ("msgget", (facts["neighbour_key"], 0o666)),
        ("semget", (facts["neighbour_key"], 1, 0o666)),
    ):
        with suppress(FileNotFoundError):
            native.call(name, *arguments)
            raise GotThrough(f"{name} found the neighbour's")
    return "ENOENT"


@attack(CATEGORY, "read-only overlay", who={"user", "root"}, essential=False)
def a_lock_of_a_neighbour(facts: Facts) -> str:
    """Files of the template are no shared inodes, so that nobody can block others by locking them."""
    with open(facts["shared_file"], "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise GotThrough(f"the neighbour's lock on {facts['shared_file']} is felt") from None
    return "a lock on the same file of the template is free"


@attack(CATEGORY, "device nodes of its own", who={"user", "root"}, essential=False)
def a_lock_on_a_device(facts: Facts) -> str:
    """Who locks /dev/full, or /dev/null, would stop everybody on the machine who wants to."""
    _require_own_devices(facts)
    with open(_DEVICE, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise GotThrough(f"another's lock on {_DEVICE} is felt") from None
    return f"a lock on {_DEVICE} is free"


@attack(CATEGORY, "device nodes of its own", who={"user", "root"}, essential=False)
def who_opens_a_device(facts: Facts) -> str:
    """Watches on devices tell nothing about the host and others."""
    _require_own_devices(facts)
    watcher = native.call("inotify_init1", os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        native.call("inotify_add_watch", watcher, _DEVICE.encode(), _IN_OPEN)
        time.sleep(0.5)
        with suppress(BlockingIOError):
            raise GotThrough(f"{len(os.read(watcher, 4096)) // 16} events on {_DEVICE}")
    finally:
        os.close(watcher)
    return "no event in half a second, while the neighbour opened it"


def _require_own_devices(facts: Facts) -> None:
    if not facts["own_devices"]:
        raise NotApplicable("the engine cannot make devices here, so the host's are shown, as it says")


@attack(CATEGORY, "PID namespace", who={"user", "root"}, essential=False)
def a_neighbours_process(facts: Facts) -> str:
    """By the pid the host knows it by."""
    pid = facts["neighbour_pid"]
    if os.path.exists(f"/proc/{pid}"):
        return f"{pid} is a process of the sandbox's own"
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        raise GotThrough(f"process {pid} can be killed")
    return f"kill {pid}: ESRCH"
