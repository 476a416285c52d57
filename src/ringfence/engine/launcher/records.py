"""What the launcher keeps of each template and each sandbox."""

import os
import shutil
import socket
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ringfence.core.errors import LimitError
from ringfence.engine.isolation import userns
from ringfence.engine.isolation.cgroups import Cgroup
from ringfence.engine.zygote import channel

_NURSERIES_AT_ONCE = 20


@dataclass
class TemplateRecord:
    """A template in service: its user namespace, its kernel zygote and the slots (ids) of its sandboxes.

    index: which range of host ids it has. zygote: None when the template has no Python to run kernels with.
    """

    name: str
    description: dict[str, Any]
    plan: userns.IdPlan
    namespace_fd: int
    index: int
    zygote_pid: int = 0
    zygote: socket.socket | None = None
    warm_request: int | None = None
    report: dict[str, Any] = field(default_factory=dict)
    _free: deque[tuple[int, int]] = field(default_factory=deque)
    _made: int = 0

    @property
    def in_use(self) -> bool:
        """Whether a sandbox has one of its slots."""
        return len(self._free) < self._made

    def release(self) -> None:
        """Close its namespaces and channel. Its zygote is killed, and reaped later; it has no sandboxes."""
        if self.zygote is not None:
            self.zygote.close()
            self.zygote = None
        for _, fd in self._free:
            os.close(fd)
        self._free.clear()
        os.close(self.namespace_fd)

    def take_slot(self) -> tuple[int, int]:
        """A free slot: its number and its user namespace. A slot is used by one live sandbox at a time."""
        if not self._free:
            self.make_slots(1)
        return self._free.popleft()

    def make_slots(self, count: int) -> None:
        """Create `count` more slots; LimitError when the template's id range is used up."""
        for _ in range(count):
            if self._made >= userns.SLOTS:
                raise LimitError(f"template {self.name!r} has {userns.SLOTS} sandboxes, the most it can have")
            slot = self._made + 1
            fd = userns.create(self.plan.slot_maps(slot), self.namespace_fd)
            self._made = slot
            self._free.append((slot, fd))

    def give_slot(self, slot: int, fd: int) -> None:
        """Return a slot; only when no process of it is left."""
        self._free.append((slot, fd))


@dataclass
class SandboxRecord:
    """A sandbox from the request until its last trace is removed.

    disk_fd: a mount of its writable layer. frozen: its processes stand still. suspended: it has none, only
    files. revived: it has been so before. helper: a pidfd of the child that copies its files, or -1.
    gvisor: whether its kernel is gVisor. image_place: for one that is there to be written down, the
    directory for its image, which may have `image_room` bytes.
    stopped_before: pids that were stopped already when it was held by signals. namespaces: what a nursery
    joins. nurseries: how many more than the first it has had; nursery_since: up to when its time is used up
    by them. report: what its birth tells; nothing hostile ever holds the other end. lifeline, words: what its
    guest is told, and a pipe of what that says. saving: its guest may say why it could not save the state of
    its kernels, which is then `unsaved`.
    """

    sandbox_id: str
    template: TemplateRecord
    slot: int
    slot_fd: int
    cgroup: Cgroup
    directory: Path
    report: socket.socket
    nursery_end: socket.socket | None
    create_request: int | None
    kill_requests: list[int] = field(default_factory=list)
    pid: int = 0
    pidfd: int = -1
    namespaces: list[int] = field(default_factory=list)
    nurseries: int = 0
    nursery_since: float = 0.0
    ready: bool = False
    killed: bool = False
    error: str = ""
    limits: dict[str, Any] = field(default_factory=dict)
    disk_fd: int = -1
    frozen: bool = False
    suspended: bool = False
    revived: bool = False
    suspend_request: int | None = None
    helper: int = -1
    gvisor: bool = False
    image_place: str = ""
    image_room: int = 0
    stopped_before: set[int] = field(default_factory=set)
    saving: bool = False
    unsaved: str = ""
    lifeline: socket.socket | None = None
    words: int = -1

    def may_have_nursery(self, most: int) -> bool:
        """Whether it may have another nursery now, which is then counted: `most` in all, a few at once and
        then one a second, so that no sandbox keeps the zygote, which all of a template share, to itself.
        """
        now = time.monotonic()
        self.nursery_since = max(self.nursery_since, now - _NURSERIES_AT_ONCE)
        if self.nurseries >= most or self.nursery_since >= now:
            return False
        self.nurseries += 1
        self.nursery_since += 1
        return True

    def tell(self, message: dict[str, Any], *fds: int) -> bool:
        """Send its guest a message, if there is room for one: a hostile guest may have stopped reading."""
        if self.lifeline is None:
            return False
        try:
            channel.send(self.lifeline, message, fds)
        except (channel.ChannelClosedError, OSError):
            return False
        return True

    def end_life(self) -> None:
        """Close what belongs to its processes, which are gone: channels, descriptors, sockets."""
        self.report.close()
        if self.lifeline is not None:
            self.lifeline.close()
            self.lifeline = None
        if self.words >= 0:
            os.close(self.words)
            self.words = -1
        if self.nursery_end is not None:
            self.nursery_end.close()
            self.nursery_end = None
        for fd in [*self.namespaces, *([self.pidfd] if self.pidfd >= 0 else [])]:
            os.close(fd)
        self.namespaces.clear()
        self.pid, self.pidfd = 0, -1
        self.ready = self.frozen = False
        for name in ("http.sock", "tunnel.sock"):
            (self.directory / name).unlink(missing_ok=True)

    def keep_disk(self, fd: int) -> None:
        """Hold `fd`, a mount of its writable layer, instead of the one held before."""
        if self.disk_fd >= 0:
            os.close(self.disk_fd)
        self.disk_fd = fd

    def release(self) -> None:
        """Remove what is left of it on the host.

        Sockets, directory, writable layer, cgroups, descriptors. Its processes are gone.
        """
        self.end_life()
        self.keep_disk(-1)
        shutil.rmtree(self.directory, ignore_errors=True)
        self.cgroup.remove()
        self.template.give_slot(self.slot, self.slot_fd)
