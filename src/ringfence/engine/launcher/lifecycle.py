"""Standing still, falling asleep, waking up and being copied: what happens to a sandbox between its birth and
its end.

- *frozen*: every process stands still where it is, and its memory stays;
- *suspended*: its processes have ended, its files stay, with its slot (ids) and its cgroup;
- a *snapshot* is a copy of its upper layers in a directory, ``0``, ``1``, … by overlay. The copy is made in
  the sandbox's own user namespace: the child that makes it has no power over anything but the sandbox's
  files. As root the directory is seen through an id-mapped mount, so ids on disk are ids inside.
"""

import contextlib
import os
import re
import selectors
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ringfence.core.errors import LauncherError
from ringfence.engine.isolation import disk, linux, userns
from ringfence.engine.launcher import standstill, treecopy
from ringfence.engine.launcher.helpers import in_child, result_of
from ringfence.engine.launcher.host import Host
from ringfence.engine.launcher.records import SandboxRecord, TemplateRecord
from ringfence.engine.launcher.unpack import (
    Unpacker,
    add_users_and_places,
    leave_the_host,
    load_decompressor,
)

Reply = Callable[..., None]
_NAME = re.compile(r"[a-z0-9]{1,64}")
_ATTRIBUTES = (
    linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV | linux.MOUNT_ATTR_NOEXEC | linux.MOUNT_ATTR_IDMAP
)


def layers_of(template: TemplateRecord, snapshots: list[str]) -> list[dict[str, Any]]:
    """The template's overlays with the layers of `snapshots` (directories, topmost first) on top."""
    return [
        {**layer, "lowers": [*(f"{path}/{number}" for path in snapshots), *layer["lowers"]]}
        for number, layer in enumerate(template.description["layers"])
    ]


def end_helper(record: SandboxRecord) -> None:
    """Kill the child that works on a sandbox's files, if there is one."""
    if record.helper >= 0:
        with contextlib.suppress(ProcessLookupError):
            linux.pidfd_send_signal(record.helper, signal.SIGKILL)


class Lifecycle:
    """Freezes, thaws and copies sandboxes of one launcher."""

    def __init__(
        self, host: Host, snapshot_dir: str | None, selector: selectors.BaseSelector, reply: Reply
    ) -> None:
        self._host = host
        self._snapshot_dir = snapshot_dir
        self._selector = selector
        self._reply = reply
        if snapshot_dir is not None:
            Path(snapshot_dir).mkdir(0o700, parents=True, exist_ok=True)

    def snapshot_path(self, name: str) -> str:
        """The directory of the snapshot `name`. Only our own directory is ever written to or removed from."""
        if self._snapshot_dir is None or not _NAME.fullmatch(name):
            raise LauncherError(f"there is no place for a snapshot {name[:40]!r}")
        return f"{self._snapshot_dir}/{name}"

    def freeze(self, request_id: int, record: SandboxRecord) -> None:
        """Let every process of the sandbox stand still, and have the kernel take back what memory it can."""
        if not record.ready or record.frozen or record.killed:
            raise LauncherError(f"sandbox {record.sandbox_id} does not run")
        standstill.hold(record, freezer=self._host.cgroups.can_freeze)
        self._reply(request_id)
        with contextlib.suppress(OSError):
            answer, _ = in_child(record.cgroup.reclaim)
            os.close(answer)

    def thaw(self, request_id: int, record: SandboxRecord) -> None:
        """Let a frozen sandbox go on."""
        self._let_go(record, record.frozen)
        self._reply(request_id)

    def snapshot(self, request_id: int, record: SandboxRecord, name: str) -> None:
        """Copy the sandbox's upper layers into the new snapshot `name`; it stands still meanwhile."""
        directory = self.snapshot_path(name)
        alive = (record.ready or record.suspended) and not record.killed
        if not alive or record.helper >= 0 or record.disk_fd < 0:
            raise LauncherError(f"sandbox {record.sandbox_id} cannot be copied now")
        thaw = record.ready and not record.frozen
        if thaw:
            standstill.hold(record, freezer=self._host.cgroups.can_freeze)
        try:
            Path(directory).mkdir(0o700)
            answer, pid = self._start_copy(record, directory)
        except OSError:
            self._let_go(record, thaw)
            raise
        record.helper = linux.pidfd_open(pid)
        self._selector.register(
            answer, selectors.EVENT_READ, lambda: self._on_copied(request_id, record, answer, thaw, directory)
        )

    def erase(self, request_id: int, name: str) -> None:
        """Remove a snapshot's directory, if it is there."""
        self._erase(request_id, self.snapshot_path(name), None)

    def _erase(self, request_id: int, directory: str, because: str | None) -> None:
        answer, _ = in_child(lambda: treecopy.remove(directory))
        self._selector.register(
            answer, selectors.EVENT_READ, lambda: self._on_erased(request_id, answer, because)
        )

    def unpack(self, request_id: int, name: str, archive: int | None, files: dict[str, str]) -> None:
        """Apply an image's layer to layer 0 of the snapshot `name`; without one, finish it with `files`."""
        directory = f"{self.snapshot_path(name)}/0"
        Path(directory).mkdir(0o755, parents=True, exist_ok=True)
        namespace = userns.create(self._host.ids.unpacker_maps())
        single = self._host.ids.single
        try:
            target = _open_target(directory, namespace if self._host.idmap else None)
            needed = [namespace, target, *([archive] if archive is not None else [])]

            def work() -> dict[str, int]:
                if archive is not None:
                    load_decompressor(archive)
                if not single:
                    os.setgroups([])
                leave_the_host(namespace, target)
                linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)  # forgotten with the change of ids
                unpacker = Unpacker(single)
                if archive is not None:
                    unpacker.apply(archive)
                else:
                    add_users_and_places(single, files)
                return {"bytes": unpacker.written, "entries": unpacker.entries}

            answer, _ = in_child(work, *needed)
            os.close(target)
        finally:
            os.close(namespace)
        self._selector.register(answer, selectors.EVENT_READ, lambda: self._on_unpacked(request_id, answer))

    def _on_unpacked(self, request_id: int, answer: int) -> None:
        result = self._finish(answer)
        if "error" in result:
            text = f"the image cannot be unpacked: {result['error']}"
            self._reply(request_id, error=text, kind="TemplateError")
        else:
            self._reply(request_id, **result["result"])

    def _start_copy(self, record: SandboxRecord, directory: str) -> tuple[int, int]:
        overlays = len(record.template.description["layers"])
        plan = record.template.plan

        def copy() -> dict[str, int]:
            target = _open_target(directory, record.slot_fd if self._host.idmap else None)
            if not plan.single:
                os.setgroups([])
            userns.enter(record.slot_fd, plan.guest_uid())
            linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)  # forgotten with the change of ids
            return _copy_layers(record.disk_fd, target, overlays)

        return in_child(copy, record.slot_fd, record.disk_fd)

    def _on_copied(
        self, request_id: int, record: SandboxRecord, answer: int, thaw: bool, directory: str
    ) -> None:
        result = self._finish(answer)
        os.close(record.helper)
        record.helper = -1
        self._let_go(record, thaw)
        if "error" in result:
            text = f"the files of sandbox {record.sandbox_id} could not be copied: {result['error']}"
            self._erase(request_id, directory, text)
        else:
            self._reply(request_id, **result["result"])

    def _let_go(self, record: SandboxRecord, thaw: bool) -> None:
        if thaw and record.frozen:
            standstill.release(record, freezer=self._host.cgroups.can_freeze)

    def _on_erased(self, request_id: int, answer: int, because: str | None) -> None:
        result = self._finish(answer)
        error = because or result.get("error")
        if error:
            self._reply(request_id, error=error, kind="LauncherError")
        else:
            self._reply(request_id)

    def _finish(self, answer: int) -> dict[str, Any]:
        self._selector.unregister(answer)
        return result_of(answer)


def _open_target(directory: str, idmap_fd: int | None) -> int:
    if idmap_fd is None:
        return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fd = linux.open_tree(linux.AT_FDCWD, directory, linux.OPEN_TREE_CLONE)
    linux.mount_setattr(fd, attr_set=_ATTRIBUTES, userns_fd=idmap_fd)
    return fd


def _copy_layers(source: int, target: int, overlays: int) -> dict[str, int]:
    copier = treecopy.TreeCopier(target)
    for number in range(overlays):
        upper = os.open(disk.upper(".", number), os.O_RDONLY | os.O_DIRECTORY, dir_fd=source)
        copier.copy(upper, str(number))
        os.close(upper)
    return {"bytes": copier.written, "entries": copier.entries}
