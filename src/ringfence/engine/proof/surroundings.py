"""What the host lays out for the attacks to reach for, and looks at afterwards."""

import contextlib
import hashlib
import os
import secrets
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ringfence.engine.model import Limits, Template
from ringfence.engine.templates.indexes import user_home

_WATCHED_FILES = 3
_MOST_HASHED = 4 << 20
_HELLO_SECONDS = 0.2
DENIED = "162.159.200.1"
"""A public time server, which answers on the web too. The sandbox under attack is denied it."""


@dataclass
class Surroundings:
    """Bait on the host: a file, a process, a TCP and an abstract Unix socket; and the template's files."""

    token: str
    marker: Path
    victim: "subprocess.Popen[bytes]"
    tcp: socket.socket
    outward: socket.socket | None
    abstract: socket.socket
    template_files: dict[str, Path]
    digests: dict[Path, str] = field(default_factory=dict)

    def facts(self, limits: Limits, private_paths: list[str], canary: str) -> dict[str, Any]:
        """What the attacks are told."""
        name = self.token[:12]
        return {
            "sandboxed": True,
            "token": self.token,
            "marker": str(self.marker),
            "victim": self.victim.pid,
            "tcp_port": self.tcp.getsockname()[1],
            "abstract": f"ringfence-{name}",
            "addresses": [list(self.outward.getsockname()[:2])] if self.outward else [],
            "sockets": [
                "/run/docker.sock",
                "/var/run/docker.sock",
                "/run/dbus/system_bus_socket",
                "/run/systemd/private",
            ],
            "host_directories": [
                str(self.marker.parent),
                str(user_home() / ".ssh"),
                "/var/lib/docker",
                "/boot/grub",
                *private_paths,
            ],
            "private_paths": private_paths,
            "template_files": sorted(self.template_files),
            "shared_file": sorted(self.template_files)[0],
            "denied": DENIED,
            "canary_reversed": canary[::-1],
            "neighbour_abstract": f"neighbour-{name}",
            "neighbour_port": 40777,
            "neighbour_key": int(name[:7], 16),
            "neighbour_pid": 0,
            "memory": limits.memory_mb << 20,
            "disk": limits.disk_mb << 20,
            "inodes": limits.inodes,
            "pids": limits.pids,
            "open_files": limits.open_files,
            "cpus": limits.cpus,
            "host_name": os.uname().nodename,
            "host_cpus": os.cpu_count() or 1,
            "grace": 2,
        }

    def traces(self) -> dict[str, str]:
        """What the attacks have done to the host; empty when nothing."""
        found = {}
        if self.marker.read_text() != self.token:
            found["a file of the host was changed"] = str(self.marker)
        changed = [str(path) for path, digest in self.digests.items() if _digest(path) != digest]
        if changed:
            found["files of the template were changed"] = ", ".join(changed)
        if self.victim.poll() is not None:
            found["a process of the host was ended"] = f"status {self.victim.returncode}"
        for name, listener in (
            ("TCP", self.tcp),
            ("outward TCP", self.outward),
            ("abstract Unix", self.abstract),
        ):
            if listener is not None and self._was_reached(listener):
                found[f"a {name} socket of the host was reached"] = "a connection arrived"
        return found

    def _was_reached(self, listener: socket.socket) -> bool:
        """Whether somebody who knows the token connected; others may find the outward port by chance."""
        with contextlib.suppress(BlockingIOError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(_HELLO_SECONDS)
                    with contextlib.suppress(OSError):
                        if listener is not self.outward or connection.recv(64) == self.token.encode():
                            return True
        return False


@contextlib.contextmanager
def surroundings(template: Template) -> Iterator[Surroundings]:
    """Lay out the bait, and take it away."""
    token = secrets.token_hex(16)
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="ringfence-proof-"))
        marker = Path(directory) / "marker"
        marker.write_text(token)
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        abstract.bind(f"\0ringfence-{token[:12]}")
        abstract.listen()
        outward = _outward_listener()
        if outward is not None:
            stack.enter_context(outward)
        for listener in (tcp, abstract, outward):
            if listener is not None:
                listener.setblocking(False)
        victim = subprocess.Popen(
            ["/bin/cat", "-", token],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(_end, victim)
        files = _template_files(template)
        yield Surroundings(
            token,
            marker,
            victim,
            tcp,
            outward,
            abstract,
            files,
            {path: _digest(path) for path in files.values()},
        )


def _end(victim: "subprocess.Popen[bytes]") -> None:
    if victim.stdin is not None:
        victim.stdin.close()
    victim.kill()
    victim.wait()


def _template_files(template: Template) -> dict[str, Path]:
    """Some files of the template: paths inside to paths on the host."""
    files: dict[str, Path] = {}
    for layer in template.layers:
        lower = layer.lowers[-1]
        for pattern in ("bin/env", "bin/*", "etc/*", "lib/python3*/site-packages/*.py"):
            for path in sorted(lower.glob(pattern))[:_WATCHED_FILES]:
                if path.is_file() and not path.is_symlink():
                    files.setdefault(str(Path(layer.target) / path.relative_to(lower)), path)
                    break
    return files


def _digest(path: Path) -> str:
    try:
        status = path.stat()
        with path.open("rb") as file:
            content = hashlib.sha256(file.read(_MOST_HASHED)).hexdigest()
    except OSError as error:
        return f"{error}"
    return f"{content} {status.st_mtime_ns} {status.st_nlink} {status.st_mode} {status.st_uid}"


def _outward_listener() -> socket.socket | None:
    """A listener on the address this host sends from, if it has one; nothing is sent to find out."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return socket.create_server((probe.getsockname()[0], 0))
        except OSError:
            return None
