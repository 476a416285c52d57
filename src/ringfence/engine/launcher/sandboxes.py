"""The life of sandboxes, from the launcher's side: create, watch, kill, and leave nothing behind."""

import contextlib
import os
import select
import selectors
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ringfence.core.errors import LauncherError, LimitError
from ringfence.engine.isolation import linux
from ringfence.engine.launcher import birth, lifecycle
from ringfence.engine.launcher.gvisor import gvisor_cgroup
from ringfence.engine.launcher.host import Host
from ringfence.engine.launcher.images import Images
from ringfence.engine.launcher.records import SandboxRecord, TemplateRecord
from ringfence.engine.launcher.templates import Templates
from ringfence.engine.zygote import channel

Reply = Callable[..., None]
Announce = Callable[[dict[str, Any]], None]
MAX_ERROR = 2000
MAX_TRACE = 8000
_MAX_NURSERIES = 1000
"""How often a sandbox may lose its nursery and get another: each costs the template's zygote a fork."""


class Sandboxes:
    """All sandboxes of one launcher."""

    def __init__(
        self,
        host: Host,
        runtime_dir: str,
        templates: Templates,
        selector: selectors.BaseSelector,
        reply: Reply,
        announce: Announce,
    ) -> None:
        self._host = host
        self._runtime_dir = Path(runtime_dir)
        self._templates = templates
        self._selector = selector
        self._reply = reply
        self._announce = announce
        self._images = Images(selector, self._written_down)
        self._by_id: dict[str, SandboxRecord] = {}
        self._by_pid: dict[int, SandboxRecord] = {}

    def get(self, sandbox_id: str) -> SandboxRecord | None:
        """The sandbox with this id, if there is one."""
        return self._by_id.get(sandbox_id)

    def memory_limits(self) -> dict[int, int]:
        """The memory limit, in bytes, of each sandbox that runs, by the pid of its PID 1."""
        return {pid: int(record.limits["memory_mb"]) << 20 for pid, record in self._by_pid.items()}

    def tell_of_memory(self, pid: int, used: int) -> None:
        """Tell the guest, PID 1 of a sandbox, that a process is killed: all have `used` bytes together."""
        self._by_pid[pid].tell({"out_of_memory": used})

    def create(self, request_id: int, request: dict[str, Any], template: TemplateRecord) -> None:
        """Ask the zygote for a sandbox; the answer goes out when its guest is ready or has failed."""
        sandbox_id = request["id"]
        if sandbox_id in self._by_id:
            raise LimitError(f"sandbox {sandbox_id} exists already")
        limits = request["limits"]
        gvisor = request["gvisor"]
        slot, slot_fd = template.take_slot()
        directory = self._runtime_dir / sandbox_id
        try:
            directory.mkdir(mode=0o700)
            grouped = gvisor_cgroup(limits, gvisor["room"]) if gvisor else limits
            cgroup = self._host.cgroups.create(sandbox_id, self._host.group_limits(grouped))
        except BaseException:
            with contextlib.suppress(OSError):
                directory.rmdir()
            template.give_slot(slot, slot_fd)
            raise
        report, report_end = channel.pair()
        record = SandboxRecord(
            sandbox_id, template, slot, slot_fd, cgroup, directory, report, None, None,
            limits=limits, gvisor=bool(gvisor), image_place=request.get("image_place", ""),
            image_room=gvisor["room"] if gvisor else 0,
        )  # fmt: skip
        self._by_id[sandbox_id] = record
        self._start(request_id, request, record, report_end)

    def revive(self, request_id: int, request: dict[str, Any], record: SandboxRecord) -> None:
        """Start a suspended sandbox again on the files it left."""
        if not record.suspended or record.killed or record.helper >= 0:
            raise LauncherError(f"sandbox {record.sandbox_id} cannot be started again now")
        record.report, report_end = channel.pair()
        record.suspended, record.revived, record.error = False, True, ""
        self._start(request_id, request, record, report_end)

    def _start(
        self, request_id: int, request: dict[str, Any], record: SandboxRecord, report_end: socket.socket
    ) -> None:
        try:
            birth.ask_for(self._host, self._templates.ask_guest_zygote, request, record, report_end)
        except BaseException:
            self._failed(record, "")  # who asked is answered with the error
            raise
        record.create_request = request_id
        self._selector.register(record.report, selectors.EVENT_READ, lambda: self._on_report(record))

    def _on_report(self, record: SandboxRecord) -> None:
        if record.sandbox_id not in self._by_id:
            return  # forgotten by an earlier event of the same round
        try:
            message, fds = channel.receive(record.report)
        except channel.ChannelClosedError:
            self._selector.unregister(record.report)
            if record.pid == 0:
                self._failed(record, record.error or "the fork of the sandbox died")
            return
        except ValueError:
            message, fds = {}, []
        if not self._take_report(record, message, fds):
            channel.close_all(fds)
            self._break_off(record)

    def _take_report(self, record: SandboxRecord, message: dict[str, Any], fds: list[int]) -> bool:
        """Do what a report asks for, if it may come now; whether it did.

        All reports come from code of ours that has not met anything hostile.
        """
        match message:
            case {"disk": True} if len(fds) == 1:
                record.keep_disk(fds[0])
            case {"pid": int(pid)} if pid > 0 and record.pid == 0:
                self._conceived(record, pid, fds)
            case {"error": str(error)} if not fds:
                record.error = error[:MAX_ERROR]
                if self._host.debug:
                    os.write(2, str(message.get("trace", "")).encode())
                if record.pid == 0:
                    self._failed(record, record.error)
            case {"image": list(names)} if record.pid and record.image_place:
                return self._images.take(record, names, fds)
            case {"ready": True} if record.pid and not fds and not record.image_place:
                self._born(record)
            case _:
                return False
        return True

    def read_words(self, record: SandboxRecord) -> None:
        """Take what a guest has said by now."""
        while record.words >= 0 and record.words in self._selector.get_map() and self._on_words(record):
            pass

    def _on_words(self, record: SandboxRecord) -> bool:
        """Take one thing that a guest says, which may be anything; whether there was one."""
        if record.words < 0:
            return False  # forgotten by an earlier event of the same round
        try:
            data = os.read(record.words, select.PIPE_BUF)
        except BlockingIOError:
            return False
        if not data:
            self._selector.unregister(record.words)  # the guest is ending
            return False
        word, _, text = data.partition(b" ")
        if word == b"nursery" and not text:
            self._renew_nursery(record)
        elif word == b"unsaved" and record.saving:
            reason = text.decode("utf-8", "replace")[:MAX_ERROR]
            record.saving, record.unsaved = False, reason or "its guest does not say why"
        else:
            if self._host.debug:
                os.write(2, f"guest of {record.sandbox_id}: {data[:MAX_TRACE]!r}\n".encode())
            self._break_off(record)
        return True

    def _conceived(self, record: SandboxRecord, pid: int, namespaces: list[int]) -> None:
        record.pid = pid
        record.pidfd = linux.pidfd_open(pid)
        record.namespaces = namespaces
        self._by_pid[pid] = record
        if record.killed:
            self._kill(record)

    def _break_off(self, record: SandboxRecord) -> None:
        """End a sandbox whose guest said what no guest of ours says."""
        self._unwatch(record)
        if record.pidfd >= 0:
            record.error = record.error or "the guest told the launcher something that no guest says"
            self._end_processes(record)
        else:
            self._failed(record, "the fork of the sandbox sent something that is no report")

    def _born(self, record: SandboxRecord) -> None:
        record.ready = True
        self._selector.unregister(record.report)
        record.report.close()
        self._selector.register(record.words, selectors.EVENT_READ, lambda: self._on_words(record))
        if record.create_request is not None:
            self._reply(record.create_request, pid=record.pid)
            record.create_request = None
        self._send_nursery(record)

    def _written_down(self, record: SandboxRecord, result: dict[str, Any]) -> None:
        """The image of one that was there for that is stored, or is not: its life is over."""
        if record.create_request is not None:
            if "result" in result:
                self._reply(record.create_request, **result["result"])
            else:
                text = f"the image of a warmed sandbox could not be stored: {result['error']}"
                self._reply(record.create_request, error=text, kind="SandboxStartError")
            record.create_request = None
        self._kill(record)

    def _send_nursery(self, record: SandboxRecord) -> None:
        """Ask the kernel zygote for the sandbox's nursery: the process that will fork its Python kernels."""
        end = record.nursery_end
        record.nursery_end = None
        if end is None:
            return
        if record.template.zygote is None or record.gvisor:
            # A template without kernels: the guest finds the socket closed. In gVisor it starts its own.
            end.close()
            return
        procs = record.cgroup.procs_fds()
        request = {
            "namespaces": len(record.namespaces),
            "single_id": record.template.plan.single,
            "limits": record.limits,
            "bound_memory": not self._host.cgroups.available,
            "debug": self._host.debug,
            "filter_flags": self._host.filter_flags,
        }
        try:
            # What fails for want of descriptors or processes costs this sandbox its kernels, not all theirs.
            with contextlib.suppress(LauncherError, OSError):
                fds = [*record.namespaces, record.slot_fd, end.fileno(), *procs]
                self._templates.ask_zygote(record.template, request, fds)
        finally:
            channel.close_all(procs)
            end.close()

    def _renew_nursery(self, record: SandboxRecord) -> None:
        """Make another nursery for a guest, whose sandbox's root has killed the one there was."""
        if record.killed or not record.namespaces or not record.may_have_nursery(_MAX_NURSERIES):
            record.tell({"nursery": False})
            return
        end, record.nursery_end = channel.pair()
        with end:
            record.tell({"nursery": True}, end.fileno())
        self._send_nursery(record)

    def kill(self, request_id: int, sandbox_id: str) -> None:
        """Kill a sandbox; answered when its last process is reaped and its traces are removed."""
        record = self._by_id.get(sandbox_id)
        if record is None:
            self._reply(request_id, existed=False)
            return
        record.kill_requests.append(request_id)
        if record.suspended:
            record.killed = True
            self._ended(record, oom=False, how="")
        else:
            self._kill(record)

    def suspend(self, request_id: int, record: SandboxRecord) -> None:
        """End a sandbox's processes and keep its files; answered when the last process is reaped."""
        if not record.ready or record.killed or record.helper >= 0 or record.suspend_request is not None:
            raise LauncherError(f"sandbox {record.sandbox_id} cannot be suspended now")
        record.suspend_request = request_id
        self._end_processes(record)

    def _kill(self, record: SandboxRecord) -> None:
        record.killed = True
        self._end_processes(record)

    @staticmethod
    def _end_processes(record: SandboxRecord) -> None:
        if record.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                linux.pidfd_send_signal(record.pidfd, signal.SIGKILL)
        if record.frozen:
            record.frozen = False
            record.cgroup.thaw()  # version 1 lets nobody die frozen

    def kill_all(self) -> None:
        """Kill every sandbox and wait until nothing of them is left."""
        for record in list(self._by_id.values()):
            if record.pidfd >= 0:
                self._kill(record)
            else:
                record.cgroup.kill()
        while self._by_pid:
            pid, status = os.waitpid(-1, 0)
            self.child_ended(pid, status)
        for record in list(self._by_id.values()):
            record.cgroup.kill()
            self._forget(record)

    def child_ended(self, pid: int, status: int) -> None:
        """Note the end of a child.

        A PID 1's end is its sandbox's, because the kernel has killed the rest by then.
        """
        record = self._by_pid.pop(pid, None)
        if record is None:
            return
        if not record.ready:
            self._drain_report(record)
            self._failed(record, record.error or f"PID 1 of the sandbox ended with {_how(status)}")
            return
        if record.suspend_request is not None and not record.killed:
            request_id, record.suspend_request = record.suspend_request, None
            self._lay_down(record)
            self._reply(request_id)
            return
        self._ended(record, record.cgroup.oom_kills() > 0, _how(status))

    def _lay_down(self, record: SandboxRecord) -> None:
        """Keep a sandbox without processes: its files, its slot and its cgroup."""
        record.cgroup.kill()  # what was on its way in
        self._unwatch(record)
        self._by_pid.pop(record.pid, None)
        record.end_life()
        record.suspended = True

    def _ended(self, record: SandboxRecord, oom: bool, how: str) -> None:
        self._forget(record)
        if record.killed:
            reason, detail = "killed", "the sandbox was killed"
        elif oom:
            reason, detail = "oom", f"the memory limit of {record.limits['memory_mb']} MiB was reached"
        else:
            reason, detail = "exited", record.error or f"PID 1 of the sandbox ended with {how}"
        self._announce({"event": "exit", "id": record.sandbox_id, "reason": reason, "detail": detail})
        if record.suspend_request is not None:
            self._reply(record.suspend_request, error=detail, kind="SandboxNotFoundError")
        for request_id in record.kill_requests:
            self._reply(request_id, existed=True)

    def _drain_report(self, record: SandboxRecord) -> None:
        if record.error:
            return
        record.report.setblocking(False)
        try:
            message, fds = channel.receive(record.report)
            channel.close_all(fds)
            record.error = str(message.get("error", ""))[:MAX_ERROR]
        except (channel.ChannelClosedError, BlockingIOError, ValueError):
            return

    def _failed(self, record: SandboxRecord, message: str) -> None:
        if record.sandbox_id not in self._by_id:
            return
        record.cgroup.kill()
        if record.revived and record.killed:
            self._ended(record, oom=False, how="")
        elif record.revived:
            self._lay_down(record)
        else:
            self._forget(record)
            for request_id in record.kill_requests:
                self._reply(request_id, existed=True)
        if record.create_request is not None:
            self._reply(record.create_request, error=message, kind="SandboxStartError")
            record.create_request = None

    def _forget(self, record: SandboxRecord) -> None:
        lifecycle.end_helper(record)
        self._unwatch(record)
        self._by_id.pop(record.sandbox_id, None)
        self._by_pid.pop(record.pid, None)
        record.release()

    def _unwatch(self, record: SandboxRecord) -> None:
        for watched in (record.report.fileno(), record.words):
            if watched >= 0 and watched in self._selector.get_map():
                self._selector.unregister(watched)


def _how(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return f"signal {-code} ({signal.Signals(-code).name})"
    return f"exit status {code}"
