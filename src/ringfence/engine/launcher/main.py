"""The launcher's loop: a few verbs from the engine, and the births and deaths of its children.

Single-threaded and synchronous, because it forks and because a reader should be able to hold it in mind. It
ends when the engine's end of the channel closes, and everything it started ends with it.

- ``hello`` (runtime_dir, debug, totals, …): what of isolation is in force;
- ``warm`` (template): the report of the preload, when the template's zygote is warm; a template without a
  ``python`` gets no zygote, and its sandboxes no kernels;
- ``cool`` (template): ends its zygote, when it has no sandboxes;
- ``create`` (id, template, limits, guest, hostname, resume; beside it, the guest's channel to the egress):
  its pid, when the guest is about to serve; resume: on the state of kernels in its topmost snapshot, if any;
- ``image`` (as ``create``, and image_place): a sandbox under gVisor that gets no orders is written down in
  that directory when it is warm, and ends; the bytes of its image;
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

import os
import selectors
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ringfence.core.errors import LauncherError, RingfenceError, SandboxNotFoundError
from ringfence.engine.isolation import disk, linux, loop, oom, seccomp
from ringfence.engine.launcher.host import Host
from ringfence.engine.launcher.lifecycle import Lifecycle
from ringfence.engine.launcher.records import SandboxRecord
from ringfence.engine.launcher.sandboxes import Sandboxes
from ringfence.engine.launcher.templates import Templates
from ringfence.engine.launcher.volumes import Volumes
from ringfence.engine.launcher.watchdog import Watchdog
from ringfence.engine.runtime_dir import remove_runtime_dir
from ringfence.engine.zygote import channel


@dataclass(frozen=True)
class _Parts:
    """What there is once the engine has said hello."""

    host: Host
    templates: Templates
    sandboxes: Sandboxes
    lifecycle: Lifecycle
    volumes: Volumes


class Launcher:
    """Has the parts do what the engine asks for, and tells them of their children's ends."""

    def __init__(self, engine: socket.socket) -> None:
        self._engine = engine
        self._selector = selectors.DefaultSelector()
        self._parts: _Parts | None = None
        self._runtime_dir: Path | None = None
        self._ending = False
        self._watchdog = Watchdog(self._out_of_memory)

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
        """Look after zygotes, and where no cgroup limits memory, at that; how long to wait at most."""
        if self._parts is None:
            return None
        waits = [self._parts.templates.tick()]
        if not self._parts.host.cgroups.available:
            waits.append(self._watchdog.tick(self._parts.sandboxes.memory_limits()))
        return min((wait for wait in waits if wait is not None), default=None)

    def _out_of_memory(self, pid: int, used: int) -> None:
        if self._parts is not None:
            self._parts.sandboxes.tell_of_memory(pid, used)

    def _end(self) -> None:
        self._engine.close()  # first of all, so that the engine does not wait for answers
        self._ending = True
        parts = self._parts
        if parts is not None:
            parts.templates.end_successors()
            parts.sandboxes.kill_all()
            parts.templates.end()
        while True:
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                break
        if parts is not None:
            parts.host.cgroups.remove()
        unmounted = parts is None or parts.volumes.end()
        if self._runtime_dir is not None and unmounted:
            remove_runtime_dir(self._runtime_dir)  # the engine does so too, unless it was killed

    def _reply(self, request_id: int, **answer: Any) -> None:
        self._announce({"reply": request_id, **answer})

    def _announce(self, event: dict[str, Any]) -> None:
        if not self._ending:
            channel.send(self._engine, event)

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

    def _ready(self) -> _Parts:
        if self._parts is None:
            raise LauncherError("hello must come first")
        return self._parts

    def _verb_hello(self, request_id: int, request: dict[str, Any]) -> None:
        self._runtime_dir = Path(request["runtime_dir"])
        host = Host.prepare(request["debug"], request["totals"], request["log_refusals"])
        try:
            self._parts = self._make_parts(host, request)
        except BaseException:
            host.cgroups.remove()
            raise
        self._reply(request_id, isolation=host.report(), volumes_lack=loop.missing())

    def _make_parts(self, host: Host, request: dict[str, Any]) -> _Parts:
        program, selector, reply = seccomp.build(), self._selector, self._reply
        lifecycle = Lifecycle(
            host, request["snapshot_dir"], selector, reply, lambda one: sandboxes.read_words(one)
        )
        volumes = Volumes(host, request["volume_dir"], request["runtime_dir"], program, reply, selector)
        # Last of all that may fail, because it starts a process.
        times = request["rotate_after"], request["rotate_seconds"], request["zygote_patience"]
        templates = Templates(host, program, selector, reply, *times)
        sandboxes = Sandboxes(host, request["runtime_dir"], templates, selector, reply, self._announce)
        return _Parts(host, templates, sandboxes, lifecycle, volumes)

    def _verb_warm(self, request_id: int, request: dict[str, Any]) -> None:
        self._ready().templates.warm(request_id, request["template"])

    def _verb_cool(self, request_id: int, request: dict[str, Any]) -> None:
        self._ready().templates.cool(request_id, request["template"])

    def _verb_create(self, request_id: int, request: dict[str, Any]) -> None:
        parts = self._ready()
        template = parts.templates.get(request["template"])
        parts.sandboxes.create(request_id, self._with_paths(request), template)

    def _verb_image(self, request_id: int, request: dict[str, Any]) -> None:
        if not request["gvisor"] or not request["gvisor"]["room"] or not request["image_place"]:
            raise LauncherError("only what runs under gVisor can be written down, and in a place for it")
        self._verb_create(request_id, request)

    def _with_paths(self, request: dict[str, Any]) -> dict[str, Any]:
        lifecycle = self._ready().lifecycle
        snapshots = [lifecycle.snapshot_path(name) for name in request["snapshots"]]
        volumes = self._ready().volumes.sources(request["volumes"])
        states = lifecycle.states_in(snapshots[0]) if request.get("resume") else None
        place = [*states, str(self._empty_directory())] if states else None
        return {**request, "snapshots": snapshots, "volumes": volumes, "states": place}

    def _empty_directory(self) -> Path:
        if self._runtime_dir is None:
            raise LauncherError("hello must come first")
        directory = self._runtime_dir / "empty"
        directory.mkdir(0o755, exist_ok=True)
        return directory

    def _verb_volume_attach(self, request_id: int, request: dict[str, Any]) -> None:
        self._ready().volumes.attach(request_id, request["volume"])

    def _verb_volume_agent(self, request_id: int, request: dict[str, Any]) -> None:
        self._ready().volumes.start_agent(request_id, request["volume"], request["fds"][0])

    def _verb_volume_remove(self, request_id: int, request: dict[str, Any]) -> None:
        self._ready().volumes.remove(request_id, request["volume"])

    def _verb_freeze(self, request_id: int, request: dict[str, Any]) -> None:
        self._ready().lifecycle.freeze(request_id, self._record(request["id"]))

    def _verb_thaw(self, request_id: int, request: dict[str, Any]) -> None:
        self._ready().lifecycle.thaw(request_id, self._record(request["id"]))

    def _verb_suspend(self, request_id: int, request: dict[str, Any]) -> None:
        self._ready().sandboxes.suspend(request_id, self._record(request["id"]))

    def _verb_revive(self, request_id: int, request: dict[str, Any]) -> None:
        self._ready().sandboxes.revive(request_id, self._with_paths(request), self._record(request["id"]))

    def _verb_snapshot(self, request_id: int, request: dict[str, Any]) -> None:
        record = self._record(request["id"])
        self._ready().lifecycle.snapshot(request_id, record, request["name"], memory=request["memory"])

    def _verb_unpack(self, request_id: int, request: dict[str, Any]) -> None:
        archive = request["fds"][0] if request["fds"] else None
        self._ready().lifecycle.unpack(request_id, request["name"], archive, request["files"])

    def _verb_erase(self, request_id: int, request: dict[str, Any]) -> None:
        self._ready().lifecycle.erase(request_id, request["name"])

    def _verb_kill(self, request_id: int, request: dict[str, Any]) -> None:
        self._ready().sandboxes.kill(request_id, request["id"])

    def _verb_stats(self, request_id: int, request: dict[str, Any]) -> None:
        record = self._record(request["id"])
        used, limit = disk.use(record.disk_fd) if record.disk_fd >= 0 else (0, 0)
        stats = {**vars(record.cgroup.stats()), "disk_used": used, "disk_limit": limit}
        self._reply(request_id, stats=stats)

    def _record(self, sandbox_id: str) -> SandboxRecord:
        record = self._ready().sandboxes.get(sandbox_id)
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
            if self._parts is not None:
                self._parts.sandboxes.child_ended(pid, status)
                self._parts.volumes.child_ended(pid)
                self._parts.templates.child_ended(pid)


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
