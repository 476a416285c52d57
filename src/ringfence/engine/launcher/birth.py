"""The request to the guest zygote by which a sandbox is born, first or again."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ringfence.engine.launcher import lifecycle
from ringfence.engine.launcher.gvisor import gvisor_birth
from ringfence.engine.launcher.host import Host
from ringfence.engine.launcher.records import SandboxRecord
from ringfence.engine.zygote import channel


def ask_for(
    host: Host,
    ask: Callable[[dict[str, Any], list[int]], None],
    request: dict[str, Any],
    record: SandboxRecord,
    report_end: socket.socket,
) -> None:
    """Have the guest zygote fork the sandbox that the engine's `request` describes.

    ask: sends the request. report_end: where it is to report; closed here, sent or not. Raises OSError and
    what `ask` raises.
    """
    sent = [report_end]
    files: list[int] = []
    try:
        http, tunnel = _listen(record.directory / "http.sock"), _listen(record.directory / "tunnel.sock")
        guest_end, record.nursery_end = channel.pair()
        lifeline_end, words_end = _connect(record)
        sent += [http, tunnel, guest_end, lifeline_end]
        files.append(words_end)
        procs, counters = record.cgroup.procs_fds(), record.cgroup.counter_fds()
        files += [*procs, *counters]
        fds = [
            report_end.fileno(),
            record.template.namespace_fd,
            record.slot_fd,
            http.fileno(),
            tunnel.fileno(),
            guest_end.fileno(),
            request["fds"][0],
            lifeline_end.fileno(),
            words_end,
            *counters,
            *procs,
            *([record.disk_fd] if record.disk_fd >= 0 else []),
        ]
        ask(_birth(host, request, record, len(counters)), fds)
    finally:
        for end in sent:
            end.close()
        channel.close_all(files)


def _connect(record: SandboxRecord) -> tuple[socket.socket, int]:
    """What the launcher and the guest will talk over, a socket and a pipe; the guest's ends.

    A guest may be hostile, and a socket of its choice may take long to close. So there is no way on which it
    could send us descriptors: the socket takes nothing from its side, and a pipe has bytes alone. In the pipe
    each write is a packet (O_DIRECT, pipe(2)).
    """
    record.lifeline, theirs = channel.pair()
    record.lifeline.shutdown(socket.SHUT_RD)
    record.lifeline.setblocking(False)
    record.words, words_end = os.pipe2(os.O_CLOEXEC | os.O_DIRECT)
    os.set_blocking(record.words, False)
    return theirs, words_end


def _birth(host: Host, request: dict[str, Any], record: SandboxRecord, counters: int) -> dict[str, Any]:
    limits = request["limits"]
    plan = record.template.plan
    return {
        "guest": {**request["guest"], "single_id": plan.single},
        "hostname": request["hostname"],
        "single_id": plan.single,
        "idmap": host.idmap,
        "debug": host.debug,
        "filter_flags": host.filter_flags,
        "counters": counters,
        "has_disk": record.disk_fd >= 0,
        "gvisor": gvisor_birth(request["gvisor"], record.template),
        "limits": limits,
        "root": {
            "layers": lifecycle.layers_of(record.template, request["snapshots"]),
            "size": limits["disk_mb"] << 20,
            "inodes": limits["inodes"],
            "root_id": plan.owner_in_template(record.slot, 0),
            "memory": limits["memory_mb"] << 20,
            "cpus": limits["cpus"],
            "volumes": request["volumes"],
        },
        "states": request.get("states"),
    }


def _listen(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(path))
    server.listen(512)
    return server
