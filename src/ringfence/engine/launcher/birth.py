"""The request to the guest zygote by which a sandbox is born, first or again."""

import socket
from pathlib import Path
from typing import Any

from ringfence.engine.launcher import lifecycle
from ringfence.engine.launcher.gvisor import gvisor_birth
from ringfence.engine.launcher.host import Host
from ringfence.engine.launcher.records import SandboxRecord
from ringfence.engine.zygote import channel


def ask_for(
    host: Host,
    zygote: socket.socket,
    request: dict[str, Any],
    record: SandboxRecord,
    report_end: socket.socket,
) -> None:
    """Have the guest zygote fork the sandbox that the engine's `request` describes.

    report_end: where it is to report; closed here, sent or not. Raises OSError, ChannelClosedError.
    """
    sent = [report_end]
    files: list[int] = []
    try:
        http, tunnel = _listen(record.directory / "http.sock"), _listen(record.directory / "tunnel.sock")
        guest_end, record.nursery_end = channel.pair()
        sent += [http, tunnel, guest_end]
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
            *counters,
            *procs,
            *([record.disk_fd] if record.disk_fd >= 0 else []),
        ]
        channel.send(zygote, _birth(host, request, record, len(counters)), fds)
    finally:
        for end in sent:
            end.close()
        channel.close_all(files)


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
