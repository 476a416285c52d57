"""The templates in service and the zygotes that sandboxes and their nurseries are forked from."""

import contextlib
import itertools
import os
import select
import selectors
import signal
import socket
from collections.abc import Callable
from typing import Any

from ringfence.core.errors import LauncherError
from ringfence.engine.launcher.backlog import Backlog
from ringfence.engine.launcher.host import Host
from ringfence.engine.launcher.records import TemplateRecord
from ringfence.engine.launcher.rotation import GUEST, Rotation
from ringfence.engine.launcher.zygotes import start_guest_zygote, start_kernel_zygote
from ringfence.engine.zygote import channel

Reply = Callable[..., None]
_FIRST_SLOTS = 4
_MOST_NAMES, _MOST_NAME, _MOST_TEXT = 40, 100, 300
_MOST_WAIT = 2.0
"""Seconds until the guest zygote has room for one more request, or is taken to be stuck."""


class Templates:
    """All templates of one launcher, and the guest zygote, which they share.

    program: the seccomp filter of sandboxes. after, seconds: when zygotes are replaced, see `Rotation`.
    patience: seconds after which one that reads nothing of what it is asked is killed, and replaced.
    """

    def __init__(
        self,
        host: Host,
        program: bytes,
        selector: selectors.BaseSelector,
        reply: Reply,
        after: int,
        seconds: float,
        patience: float,
    ) -> None:
        self._host = host
        self._program = program
        self._selector = selector
        self._reply = reply
        self._by_name: dict[str, TemplateRecord] = {}
        self._patience = patience
        self._backlogs: dict[str, Backlog] = {}
        self._killed: set[int] = set()
        self._rotation = Rotation(after, seconds, selector, self._successor, self._swap, self._failed)
        self._guest_pid, self._guest_zygote = start_guest_zygote()

    def get(self, name: str) -> TemplateRecord:
        """The template `name`. Raises LauncherError when it is not in service."""
        template = self._by_name.get(name)
        if template is None:
            raise LauncherError(f"template {name!r} is not warm")
        return template

    def ask_guest_zygote(self, message: dict[str, Any], fds: list[int]) -> None:
        """Ask for a sandbox. Raises LauncherError when the zygote does not take the request."""
        self._ask(GUEST, self._guest_zygote, message, fds)

    def ask_zygote(self, template: TemplateRecord, message: dict[str, Any], fds: list[int]) -> None:
        """Ask for a nursery. Raises LauncherError when the zygote does not take the request."""
        if template.zygote is not None:
            self._ask(template.name, template.zygote, message, fds)

    def _ask(self, name: str, end: socket.socket, message: dict[str, Any], fds: list[int]) -> None:
        backlog = self._backlogs.setdefault(name, Backlog(end))
        backlog.look()
        try:
            if not _sent(end, message, fds):
                # A kernel zygote runs code of others, and is never waited for; ours makes room soon.
                if name == GUEST and not _has_room(end):
                    self._replace(name)
                if name != GUEST or not _sent(end, message, fds):
                    raise LauncherError(f"{_called(name)} is behind with its work; try again")
        except channel.ChannelClosedError:
            text = "did not read what it was asked, and is being replaced; try again in some seconds"
            raise LauncherError(f"{_called(name)} {text}") from None
        backlog.look()
        self._rotation.forked(name)

    def tick(self) -> float | None:
        """Replace zygotes that are stuck; seconds until this should be called again, None: not before a send.

        Who waits for them learns that the fork died. Raises LauncherError when that is impossible.
        """
        for name, backlog in list(self._backlogs.items()):
            if backlog.look() > self._patience:
                self._replace(name)
        if all(backlog.empty for backlog in self._backlogs.values()):
            return None
        return min(1.0, self._patience / 4)

    def _replace(self, name: str) -> None:
        """Kill a zygote that is stuck; until its successor is warm, requests are refused."""
        pid = self._pid_of(name)
        if pid in self._killed:
            return
        os.write(2, f"ringfence launcher: {_called(name)} does not read; it is replaced\n".encode())
        try:
            self._rotation.replace(name)
        except OSError as error:
            raise LauncherError(f"{_called(name)} is stuck, and cannot be replaced: {error}") from error
        self._killed.add(pid)
        _kill(pid)

    def _pid_of(self, name: str) -> int:
        return self._guest_pid if name == GUEST else self._by_name[name].zygote_pid

    def _failed(self, name: str) -> None:
        """A successor has failed: no harm, unless there is nobody who goes on."""
        if self._pid_of(name) in self._killed:
            raise LauncherError(f"{_called(name)} was stuck, and its successor failed")

    def warm(self, request_id: int, description: dict[str, Any]) -> None:
        """Put a template in service; answered when its zygote is warm."""
        name = description["name"]
        if name in self._by_name:
            raise LauncherError(f"template {name!r} is warm already")
        index = next(i for i in itertools.count() if i not in {t.index for t in self._by_name.values()})
        namespace_fd = self._host.create_template_namespace(index)
        record = TemplateRecord(name, description, self._host.ids, namespace_fd, index)
        self._by_name[name] = record
        if not description["python"]:
            self._reply(request_id, report={})
            return
        record.zygote_pid, record.zygote = self._start_zygote(record, gradual=description["gradual"])
        record.warm_request = request_id
        record.make_slots(_FIRST_SLOTS)
        self._selector.register(record.zygote, selectors.EVENT_READ, lambda: self._on_zygote(record))

    def cool(self, request_id: int, name: str) -> None:
        """Take a template without sandboxes out of service, if it is in."""
        record = self._by_name.get(name)
        if record is not None:
            if record.in_use:
                raise LauncherError(f"template {record.name!r} has sandboxes")
            if record.warm_request is not None:
                raise LauncherError(f"template {record.name!r} is still warming up")
            if record.zygote is not None and record.zygote in self._selector.get_map():
                self._selector.unregister(record.zygote)
            self._forget(record)
        self._reply(request_id)

    def child_ended(self, pid: int) -> None:
        """Note the end of a child.

        Without zygotes nothing new can start: better to end, loudly, than to serve half.
        """
        if pid in self._killed:
            return
        if pid == self._guest_pid:
            raise LauncherError("the guest zygote died")
        for template in self._by_name.values():
            if template.zygote_pid == pid and template.warm_request is None:
                raise LauncherError(f"the kernel zygote of template {template.name!r} died")

    def end_successors(self) -> None:
        """End the zygotes that are not in service yet."""
        self._rotation.end()

    def end(self) -> None:
        """Kill every zygote. The caller reaps them."""
        for pid in [self._guest_pid, *(template.zygote_pid for template in self._by_name.values())]:
            if pid:
                _kill(pid)

    def _start_zygote(self, record: TemplateRecord, *, gradual: bool) -> tuple[int, socket.socket]:
        pid, end = start_kernel_zygote(
            record.description, record.namespace_fd, self._host.idmap, self._program
        )
        channel.send(end, {"preload": record.description["preload"], "gradual": gradual})
        return pid, end

    def _successor(self, name: str) -> tuple[int, socket.socket]:
        if name == GUEST:
            return start_guest_zygote()
        return self._start_zygote(self._by_name[name], gradual=False)

    def _swap(self, name: str, pid: int, end: socket.socket) -> None:
        """Put a new zygote in service. The old one ends when it has read what was sent to it."""
        self._backlogs.pop(name, None)
        if name == GUEST:
            self._killed.discard(self._guest_pid)
            self._guest_zygote.close()
            self._guest_pid, self._guest_zygote = pid, end
            return
        record = self._by_name[name]
        self._killed.discard(record.zygote_pid)
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
        report = report_of(message)
        if record.warm_request is not None and report is not None:
            record.report = report
            self._reply(record.warm_request, report=report)
            record.warm_request = None
            return
        self._selector.unregister(record.zygote)
        if record.warm_request is not None:
            text = f"the kernel zygote of template {record.name!r} died while it was warming up"
            self._reply(record.warm_request, error=text, kind="TemplateError")
            self._forget(record)
        else:  # closed, or says what no zygote of ours says: its end is noticed like any other
            _kill(record.zygote_pid)

    def _forget(self, record: TemplateRecord) -> None:
        self._by_name.pop(record.name, None)
        self._backlogs.pop(record.name, None)
        self._killed.discard(record.zygote_pid)
        self._rotation.drop(record.name)
        if record.zygote_pid:
            _kill(record.zygote_pid)
        record.release()


def report_of(message: dict[str, Any]) -> dict[str, Any] | None:
    """The report of a preload in a zygote's message, None when there is none. Nothing else is passed on."""
    match message.get("report"):
        case {"modules": list(modules), "failed": dict(failed), "threads": int(threads)}:
            return {
                "modules": [str(name)[:_MOST_NAME] for name in modules[:_MOST_NAMES]],
                "failed": {
                    name[:_MOST_NAME]: str(error)[:_MOST_TEXT]
                    for name, error in list(failed.items())[:_MOST_NAMES]
                },
                "threads": min(max(threads, 0), 1 << 31),
            }
    return None


def _called(name: str) -> str:
    return f"the kernel zygote of template {name!r}" if name != GUEST else "the guest zygote"


def _sent(end: socket.socket, message: dict[str, Any], fds: list[int]) -> bool:
    try:
        channel.send(end, message, fds)
    except BlockingIOError:
        return False
    return True


def _has_room(end: socket.socket) -> bool:
    poll = select.poll()  # which knows descriptors over 1023
    poll.register(end, select.POLLOUT)
    return bool(poll.poll(_MOST_WAIT * 1000))


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
