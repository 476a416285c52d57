"""The launcher's loop: a few verbs from the engine, and the births and deaths of its children.

Single-threaded and synchronous, because it forks and because a reader should be able to hold it in mind. It
ends when the engine's end of the channel closes, and everything it started ends with it.

- ``hello`` (runtime_dir, debug, totals, …): what of isolation is in force;
- ``warm`` (template): the report of the preload, when the template's zygote is warm; a template without a
  ``python`` gets no zygote, and its sandboxes no kernels;
- ``cool`` (template): ends its zygote, when it has no sandboxes;
- ``create`` (id, template, limits, guest, hostname, resume; beside it, the guest's channel to the egress):
  its pid, when the guest is about to serve; resume: on the state of kernels in its topmost snapshot, if any;
- ``kill`` (id): whether it existed, when nothing is left of it;
- ``stats`` (id): memory, processor and process counts;
- ``freeze``, ``thaw`` (id): let all of its processes stand still, let them go on;
- ``suspend`` (id): end its processes and keep its files; ``revive`` (as ``create``): start again on them;
- ``unpack`` (name, files, a layer's archive): add an image's layer to a snapshot of nothing;
- ``snapshot`` (id, name, memory), ``erase`` (name): copy a sandbox's layers, and with `memory` the state of
  its kernels; remove such a copy;
- ``volume_attach``, ``volume_remove`` (volume): mount a volume for sandboxes to come, remove it for good;
- ``volume_agent`` (volume; beside it, the agent's end of a channel): start the process for its contents.

A refused request is answered with ``error`` and ``kind``; the end of a sandbox is announced as the event
``exit``.
"""

import contextlib
import itertools
import os
import selectors
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from ringfence.core.errors import KernelStateError, LauncherError, RingfenceError, SandboxNotFoundError
from ringfence.engine.isolation import disk, linux, loop, oom, seccomp
from ringfence.engine.launcher.host import Host
from ringfence.engine.launcher.lifecycle import Lifecycle
from ringfence.engine.launcher.records import SandboxRecord, TemplateRecord
from ringfence.engine.launcher.rotation import GUEST, Rotation
from ringfence.engine.launcher.sandboxes import Sandboxes
from ringfence.engine.launcher.volumes import Volumes
from ringfence.engine.launcher.watchdog import Watchdog
from ringfence.engine.launcher.zygotes import start_guest_zygote, start_kernel_zygote
from ringfence.engine.runtime_dir import remove_runtime_dir
from ringfence.engine.zygote import channel

_FIRST_SLOTS = 4


class Launcher:
    """Owns the zygotes and the sandboxes."""

    def __init__(self, engine: socket.socket) -> None:
        self._engine = engine
        self._selector = selectors.DefaultSelector()
        self._templates: dict[str, TemplateRecord] = {}
        self._program = seccomp.build()
        self._host: Host | None = None
        self._sandboxes: Sandboxes | None = None
        self._lifecycle: Lifecycle | None = None
        self._rotation: Rotation | None = None
        self._volumes: Volumes | None = None
        self._guest_pid = 0
        self._runtime_dir: Path | None = None
        self._ending = False
        self._watchdog = Watchdog()

    def run(self) -> None:
        """Serve until the engine goes away, then end every child."""
        wakeup_r, wakeup_w = socket.socketpair()
        for end in (wakeup_r, wakeup_w):
            end.setblocking(False)
        signal.set_wakeup_fd(wakeup_w.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(self._engine, selectors.EVENT_READ, self._on_engine)
        self._selector.register(wakeup_r, selectors.EVENT_READ, lambda: self._on_child(wakeup_r))
        try:
            while True:
                for key, _ in self._selector.select(self._watch()):
                    key.data()
        except channel.ChannelClosedError:
            pass
        finally:
            self._end()

    def _watch(self) -> float | None:
        """Where no cgroup limits memory, look at it; how long to wait at most until the next look."""
        if self._host is None or self._sandboxes is None or self._host.cgroups.available:
            return None
        return self._watchdog.tick(self._sandboxes.memory_limits())

    def _end(self) -> None:
        self._engine.close()  # first of all, so that the engine does not wait for answers
        self._ending = True
        if self._rotation is not None:
            self._rotation.end()
        if self._sandboxes is not None:
            self._sandboxes.kill_all()
        for pid in [self._guest_pid, *(template.zygote_pid for template in self._templates.values())]:
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        while True:
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                break
        if self._host is not None:
            self._host.cgroups.remove()
        unmounted = self._volumes is None or self._volumes.end()
        if self._runtime_dir is not None and unmounted:
            remove_runtime_dir(self._runtime_dir)  # the engine does so too, unless it was killed

    def _reply(self, request_id: int, **answer: Any) -> None:
        self._announce({"reply": request_id, **answer})

    def _on_engine(self) -> None:
        request, fds = channel.receive(self._engine)
        request["fds"] = fds
        request_id = request["request"]
        try:
            handler = getattr(self, "_verb_" + request["verb"])
            handler(request_id, request)
        except (RingfenceError, OSError, ValueError, KeyError) as error:
            kind = type(error).__name__ if isinstance(error, RingfenceError) else "LauncherError"
            self._reply(request_id, error=str(error), kind=kind)
        finally:
            channel.close_all(fds)

    def _verb_hello(self, request_id: int, request: dict[str, Any]) -> None:
        self._runtime_dir = Path(request["runtime_dir"])
        self._host = Host.prepare(request["debug"], request["totals"], request["log_refusals"])
        self._guest_pid, guest = start_guest_zygote()
        self._rotation = Rotation(
            request["rotate_after"], request["rotate_seconds"], self._selector, self._successor, self._swap
        )
        self._sandboxes = Sandboxes(
            self._host,
            request["runtime_dir"],
            guest,
            self._selector,
            self._reply,
            self._announce,
            self._rotation.forked,
        )
        self._lifecycle = Lifecycle(
            self._host, request["snapshot_dir"], self._selector, self._reply, self._sandboxes.read_reports
        )
        self._volumes = Volumes(
            self._host, request["volume_dir"], request["runtime_dir"], self._program, self._reply,
            self._selector,
        )  # fmt: skip
        self._reply(request_id, isolation=self._host.report(), volumes_lack=loop.missing())

    def _announce(self, event: dict[str, Any]) -> None:
        if not self._ending:
            channel.send(self._engine, event)

    def _ready_host(self) -> tuple[Host, Sandboxes]:
        if self._host is None or self._sandboxes is None:
            raise LauncherError("hello must come first")
        return self._host, self._sandboxes

    def _verb_warm(self, request_id: int, request: dict[str, Any]) -> None:
        host, _ = self._ready_host()
        description = request["template"]
        name = description["name"]
        if name in self._templates:
            raise LauncherError(f"template {name!r} is warm already")
        index = next(i for i in itertools.count() if i not in {t.index for t in self._templates.values()})
        namespace_fd = host.create_template_namespace(index)
        record = TemplateRecord(name, description, host.ids, namespace_fd, index)
        self._templates[name] = record
        if not description["python"]:
            self._reply(request_id, report={})
            return
        record.zygote_pid, record.zygote = self._start_zygote(record, gradual=description["gradual"])
        record.warm_request = request_id
        record.make_slots(_FIRST_SLOTS)
        self._selector.register(record.zygote, selectors.EVENT_READ, lambda: self._on_zygote(record))

    def _start_zygote(self, record: TemplateRecord, *, gradual: bool) -> tuple[int, socket.socket]:
        host, _ = self._ready_host()
        pid, end = start_kernel_zygote(record.description, record.namespace_fd, host.idmap, self._program)
        channel.send(end, {"preload": record.description["preload"], "gradual": gradual})
        return pid, end

    def _successor(self, name: str) -> tuple[int, socket.socket]:
        if name == GUEST:
            return start_guest_zygote()
        return self._start_zygote(self._templates[name], gradual=False)

    def _swap(self, name: str, pid: int, end: socket.socket) -> None:
        """Put a new zygote in service. The old one ends when it has read what was sent to it."""
        if name == GUEST:
            _, sandboxes = self._ready_host()
            self._guest_pid = pid
            sandboxes.fork_from(end)
            return
        record = self._templates[name]
        if record.zygote is not None:
            if record.zygote in self._selector.get_map():
                self._selector.unregister(record.zygote)
            record.zygote.close()
        record.zygote_pid, record.zygote = pid, end
        self._selector.register(end, selectors.EVENT_READ, lambda: self._on_zygote(record))

    def _on_zygote(self, record: TemplateRecord) -> None:
        """Its one report comes when it is warm. It runs code of others, so it is not believed much."""
        if record.zygote is None:
            return
        try:
            message, fds = channel.receive(record.zygote)
            channel.close_all(fds)
        except (channel.ChannelClosedError, ValueError):
            message = {}
        report = message.get("report")
        if record.warm_request is not None and isinstance(report, dict):
            record.report = report
            self._reply(record.warm_request, report=report)
            record.warm_request = None
            return
        self._selector.unregister(record.zygote)
        if record.warm_request is not None:
            text = f"the kernel zygote of template {record.name!r} died while it was warming up"
            self._reply(record.warm_request, error=text, kind="TemplateError")
            self._forget_template(record)
        else:  # closed, or says what no zygote of ours says: its end is noticed like any other
            with contextlib.suppress(ProcessLookupError):
                os.kill(record.zygote_pid, signal.SIGKILL)

    def _verb_cool(self, request_id: int, request: dict[str, Any]) -> None:
        record = self._templates.get(request["template"])
        if record is not None:
            if record.in_use:
                raise LauncherError(f"template {record.name!r} has sandboxes")
            if record.warm_request is not None:
                raise LauncherError(f"template {record.name!r} is still warming up")
            if record.zygote is not None and record.zygote in self._selector.get_map():
                self._selector.unregister(record.zygote)
            self._forget_template(record)
        self._reply(request_id)

    def _forget_template(self, record: TemplateRecord) -> None:
        self._templates.pop(record.name, None)
        if self._rotation is not None:
            self._rotation.drop(record.name)
        if record.zygote_pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(record.zygote_pid, signal.SIGKILL)
        record.release()

    def _verb_create(self, request_id: int, request: dict[str, Any]) -> None:
        _, sandboxes = self._ready_host()
        template = self._templates.get(request["template"])
        if template is None:
            raise LauncherError(f"template {request['template']!r} is not warm")
        sandboxes.create(request_id, self._with_paths(request), template)

    def _with_paths(self, request: dict[str, Any]) -> dict[str, Any]:
        lifecycle = self._ready_lifecycle()
        snapshots = [lifecycle.snapshot_path(name) for name in request["snapshots"]]
        volumes = self._ready_volumes().sources(request["volumes"])
        states = lifecycle.states_in(snapshots[0]) if request.get("resume") else None
        if states and request.get("gvisor"):
            raise KernelStateError(
                "this snapshot has variables of Python kernels, which cannot be loaded under gVisor; make "
                "one of the files only (memory=false)"
            )
        return {**request, "snapshots": snapshots, "volumes": volumes, "states": states}

    def _ready_volumes(self) -> Volumes:
        if self._volumes is None:
            raise LauncherError("hello must come first")
        return self._volumes

    def _verb_volume_attach(self, request_id: int, request: dict[str, Any]) -> None:
        self._ready_volumes().attach(request_id, request["volume"])

    def _verb_volume_agent(self, request_id: int, request: dict[str, Any]) -> None:
        self._ready_volumes().start_agent(request_id, request["volume"], request["fds"][0])

    def _verb_volume_remove(self, request_id: int, request: dict[str, Any]) -> None:
        self._ready_volumes().remove(request_id, request["volume"])

    def _ready_lifecycle(self) -> Lifecycle:
        if self._lifecycle is None:
            raise LauncherError("hello must come first")
        return self._lifecycle

    def _verb_freeze(self, request_id: int, request: dict[str, Any]) -> None:
        self._ready_lifecycle().freeze(request_id, self._record(request["id"]))

    def _verb_thaw(self, request_id: int, request: dict[str, Any]) -> None:
        self._ready_lifecycle().thaw(request_id, self._record(request["id"]))

    def _verb_suspend(self, request_id: int, request: dict[str, Any]) -> None:
        _, sandboxes = self._ready_host()
        sandboxes.suspend(request_id, self._record(request["id"]))

    def _verb_revive(self, request_id: int, request: dict[str, Any]) -> None:
        _, sandboxes = self._ready_host()
        sandboxes.revive(request_id, self._with_paths(request), self._record(request["id"]))

    def _verb_snapshot(self, request_id: int, request: dict[str, Any]) -> None:
        record = self._record(request["id"])
        self._ready_lifecycle().snapshot(request_id, record, request["name"], memory=request["memory"])

    def _verb_unpack(self, request_id: int, request: dict[str, Any]) -> None:
        archive = request["fds"][0] if request["fds"] else None
        self._ready_lifecycle().unpack(request_id, request["name"], archive, request["files"])

    def _verb_erase(self, request_id: int, request: dict[str, Any]) -> None:
        self._ready_lifecycle().erase(request_id, request["name"])

    def _verb_kill(self, request_id: int, request: dict[str, Any]) -> None:
        _, sandboxes = self._ready_host()
        sandboxes.kill(request_id, request["id"])

    def _verb_stats(self, request_id: int, request: dict[str, Any]) -> None:
        record = self._record(request["id"])
        used, limit = disk.use(record.disk_fd) if record.disk_fd >= 0 else (0, 0)
        stats = {**vars(record.cgroup.stats()), "disk_used": used, "disk_limit": limit}
        self._reply(request_id, stats=stats)

    def _record(self, sandbox_id: str) -> SandboxRecord:
        _, sandboxes = self._ready_host()
        record = sandboxes.get(sandbox_id)
        if record is None:
            raise SandboxNotFoundError(f"there is no sandbox {sandbox_id}")
        return record

    def _on_child(self, wakeup: socket.socket) -> None:
        wakeup.recv(4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self._sandboxes is not None:
                self._sandboxes.child_ended(pid, status)
            if self._volumes is not None:
                self._volumes.child_ended(pid)
            self._zygote_ended(pid)

    def _zygote_ended(self, pid: int) -> None:
        # Without zygotes nothing new can start: better to end, loudly, than to serve half.
        if pid == self._guest_pid:
            raise LauncherError("the guest zygote died")
        for template in self._templates.values():
            if template.zygote_pid == pid and template.warm_request is None:
                raise LauncherError(f"the kernel zygote of template {template.name!r} died")


def main() -> None:
    """Entry point; argv[1] is the descriptor of the channel to the engine."""
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    oom.protect()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the engine decides when to end
    os.umask(0o022)
    try:
        Launcher(socket.socket(fileno=int(sys.argv[1]))).run()
    except RingfenceError as error:
        sys.exit(f"ringfence launcher: {error}")


if __name__ == "__main__":
    main()
