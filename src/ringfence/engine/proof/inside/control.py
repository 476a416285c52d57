"""Attacks on the sandbox's own services, and on what a fork of a warmed interpreter may have inherited."""

import http.client
import os
import re
import socket
from contextlib import suppress

from ringfence.engine.proof.inside.harness import Facts, GotThrough, NotApplicable, attack

CATEGORY = "control channel"
_CHUNK = 1 << 20


def _ask(port: int, method: str, path: str, token: str | None) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    headers = {"Content-Type": "application/json"} | ({"X-Access-Token": token} if token else {})
    try:
        connection.request(method, path, "{}", headers)
        return connection.getresponse().status
    finally:
        connection.close()


@attack(CATEGORY, "access token")
def the_services_inside_answer_without_token(facts: Facts) -> str:
    """envd and the interpreter listen on loopback inside: they ask for the token there too."""
    answers = []
    for port, method, path in (
        (49983, "POST", "/process.Process/List"),
        (49983, "GET", "/files?path=/etc/passwd"),
        (49999, "POST", "/execute"),
    ):
        for token in (None, "wrong"):
            status = _ask(port, method, path, token)
            if status < 400:
                raise GotThrough(f"{method} {path} on port {port}: {status}")
            answers.append(str(status))
    return f"answers: {', '.join(answers)}"


@attack(CATEGORY, "empty environment")
def the_environment_has_secrets(facts: Facts) -> str:
    """Anything that is named like a key of the engine's."""
    words = ("API_KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL", "AWS_", "SSH_", "RINGFENCE_")
    found = [name for name in os.environ if any(word in name.upper() for word in words)]
    if found:
        raise GotThrough(f"variables: {', '.join(found)}")
    return f"{len(os.environ)} variables, none named like a secret"


@attack(CATEGORY, "zygotes without secrets", essential=False, who={"kernel"}, seconds=30)
def the_memory_has_secrets(facts: Facts) -> str:
    """A word of the engine's environment is looked for in all memory of the kernel.

    It comes here backwards, and as a pattern of single characters, so that the search does not find itself.
    """
    if not facts["canary_reversed"]:
        raise NotApplicable("the engine was started without a word to look for")
    pattern = re.compile("".join(f"[{letter}]" for letter in reversed(facts["canary_reversed"])).encode())
    searched = 0
    with open("/proc/self/maps") as maps:
        regions = [line.split()[:2] for line in maps if "[v" not in line]
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        for span, mode in regions:
            if mode.startswith("r"):
                start, end = (int(part, 16) for part in span.split("-"))
                searched += end - start
                if _occurs(memory.fileno(), start, end, pattern):
                    raise GotThrough(f"the word is in memory at {span}")
    return f"{searched >> 20} MiB searched"


def _occurs(descriptor: int, start: int, end: int, pattern: "re.Pattern[bytes]") -> bool:
    for offset in range(start, end, _CHUNK):
        with suppress(OSError):
            if pattern.search(os.pread(descriptor, min(_CHUNK + 256, end - offset), offset)):
                return True
    return False


@attack(CATEGORY, "private sockets")
def the_launcher_is_spoken_to(facts: Facts) -> str:
    """Sockets that were inherited: a message as the launcher's on each of them."""
    tried = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError, ValueError):
            descriptor = int(name)
            if descriptor <= 2 or not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(descriptor)) as inherited:
                if inherited.type & 0xF == socket.SOCK_SEQPACKET:
                    raise GotThrough(f"descriptor {name} is a packet socket of the launcher's kind")
            tried += 1
    return f"{tried} sockets inherited, none to the launcher, the zygote or the nursery"
