"""Attacks on another sandbox of the same engine. `set_up` is the victim's part, run in the other one."""

import fcntl
import os
import socket
import sys
import time
from contextlib import suppress

from ringfence.engine.proof.inside import native
from ringfence.engine.proof.inside.harness import Facts, GotThrough, attack

CATEGORY = "neighbours"
_PATH = "/tmp/ringfence-neighbour"
_IPC_CREAT = 0o1000


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
    held = open(facts["shared_file"], "rb")
    fcntl.flock(held, fcntl.LOCK_EX)
    print("ready", flush=True)
    time.sleep(3600)
    sys.exit(tcp.fileno())


@attack(CATEGORY, "mount namespace", who={"user", "root"}, essential=False)
def a_neighbours_file(facts: Facts) -> str:
    """At the same path as the neighbour has it."""
    with suppress(FileNotFoundError), open(_PATH) as file:
        if file.read() == facts["token"]:
            raise GotThrough("read the neighbour's file")
    return "not there"


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
