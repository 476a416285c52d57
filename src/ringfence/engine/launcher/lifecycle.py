"""Standing still, falling asleep, waking up and being copied: what happens to a sandbox between its birth and
its end.

- *frozen*: every process stands still where it is, and its memory stays;
- *suspended*: its processes have ended, its files stay, with its slot (ids) and its cgroup;
- a *snapshot* is a copy of its upper layers in a directory, ``0``, ``1``, … by overlay. The copy is made in
  the sandbox's own user namespace: the child that makes it has no power over anything but the sandbox's
  files. As root the directory is seen through an id-mapped mount, so ids on disk are ids inside. It may have
  the state of the sandbox's kernels beside them, see `states`.
"""

import contextlib
import functools
import os
import re
import selectors
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ringfence.core.errors import LauncherError, RingfenceError
from ringfence.engine.isolation import disk, linux, userns
from ringfence.engine.launcher import standstill, states, treecopy
from ringfence.engine.launcher.helpers import give_up_power, in_child, result_of
from ringfence.engine.launcher.host import Host
from ringfence.engine.launcher.records import SandboxRecord, TemplateRecord
from ringfence.engine.launcher.unpack import (
    Unpacker,
    add_users_and_places,
    leave_the_host,
    load_decompressor,
)
from ringfence.engine.zygote import channel

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


@dataclass
class _Copy:
    """A snapshot that is being made. thaw: the sandbox goes on afterwards. saving: its kernels must be told
    that they may. size: bytes of their state.
    """

    request_id: int
    record: SandboxRecord
    directory: str
    thaw: bool
    saving: bool = False
    size: int = 0


class Lifecycle:
    """Freezes, thaws and copies sandboxes of one launcher. read_words: takes what a guest has said."""

    def __init__(
        self,
        host: Host,
        snapshot_dir: str | None,
        selector: selectors.BaseSelector,
        reply: Reply,
        read_words: Callable[[SandboxRecord], None],
    ) -> None:
        self._host = host
        self._snapshot_dir = snapshot_dir
        self._selector = selector
        self._reply = reply
        self._read_words = read_words
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

    def states_in(self, path: str) -> tuple[str, str] | None:
        """Where the snapshot at `path` has the state of kernels, directory and name; None without one."""
        return states.place_in(path)

    def snapshot(self, request_id: int, record: SandboxRecord, name: str, *, memory: bool) -> None:
        """Copy the sandbox's upper layers into the new snapshot `name`, and with `memory` first the state of
        its kernels. It stands still meanwhile, and its kernels from when they are saved.
        """
        directory = self.snapshot_path(name)
        alive = (record.ready or record.suspended) and not record.killed
        if not alive or record.helper >= 0 or record.disk_fd < 0:
            raise LauncherError(f"sandbox {record.sandbox_id} cannot be copied now")
        Path(directory).mkdir(0o700)
        copy = _Copy(request_id, record, directory, thaw=record.ready and not record.frozen)
        try:
            if memory and record.ready and record.template.zygote is not None:
                self._save_states(copy)
            else:
                self._copy_files(copy)
        except (RingfenceError, OSError) as error:  # nothing is left of it then
            record.saving = False
            self._fail(copy, f"sandbox {record.sandbox_id} cannot be copied: {error}")

    def _save_states(self, copy: "_Copy") -> None:
        record = copy.record
        self._let_go(record, record.frozen)  # what is paused goes on for as long as its kernels take
        copy.saving = record.saving = True
        record.unsaved = ""
        request = {"save": states.request_for(record)}
        file, source, target = states.open_place(copy.directory)
        try:
            work = functools.partial(states.store, record, source, file)
            answer, pid = in_child(work, record.slot_fd, source, file)
            if not record.tell(request, target):
                record.unsaved = f"the guest of sandbox {record.sandbox_id} does not answer"
        finally:
            channel.close_all([file, source, target])
        record.helper = linux.pidfd_open(pid)
        self._selector.register(answer, selectors.EVENT_READ, lambda: self._on_saved(copy, answer))

    def _on_saved(self, copy: "_Copy", answer: int) -> None:
        result, record = self._helped(copy.record, answer), copy.record
        self._read_words(record)
        record.saving = False
        if record.killed or not record.ready:
            self._fail(copy, f"sandbox {record.sandbox_id} ended while it was copied")
        elif record.unsaved:
            self._fail(copy, record.unsaved, "KernelStateError")
        elif "error" in result:
            self._fail(copy, f"the state of its kernels could not be stored: {result['error']}")
        elif result["result"]["bytes"] == 0:
            self._fail(copy, f"the guest of sandbox {record.sandbox_id} saved nothing", "KernelStateError")
        else:
            copy.size = result["result"]["bytes"]
            try:
                self._copy_files(copy)
            except (RingfenceError, OSError) as error:
                self._fail(copy, f"sandbox {record.sandbox_id} cannot be copied: {error}")

    def _copy_files(self, copy: "_Copy") -> None:
        record = copy.record
        if record.ready and not record.frozen:
            standstill.hold(record, freezer=self._host.cgroups.can_freeze)
        answer, pid = self._start_copy(record, copy.directory)
        record.helper = linux.pidfd_open(pid)
        self._selector.register(answer, selectors.EVENT_READ, lambda: self._on_copied(copy, answer))

    def _on_copied(self, copy: "_Copy", answer: int) -> None:
        result = self._helped(copy.record, answer)
        if "error" in result:
            text = f"the files of sandbox {copy.record.sandbox_id} could not be copied: {result['error']}"
            self._fail(copy, text)
        else:
            self._go_on(copy)
            files = result["result"]
            self._reply(copy.request_id, bytes=files["bytes"] + copy.size, entries=files["entries"])

    def _fail(self, copy: "_Copy", text: str, kind: str = "LauncherError") -> None:
        """Take back a copy, with its reason."""
        self._go_on(copy)
        self._erase(copy.request_id, copy.directory, text, kind)

    def _go_on(self, copy: "_Copy") -> None:
        """Leave the sandbox as it was before the copy."""
        record = copy.record
        if copy.thaw:
            self._let_go(record, record.frozen)
        elif record.ready and not record.frozen and not record.killed:
            with contextlib.suppress(OSError):
                standstill.hold(record, freezer=self._host.cgroups.can_freeze)
        if copy.saving and record.ready:
            record.tell({"go_on": True})

    def _helped(self, record: SandboxRecord, answer: int) -> dict[str, Any]:
        """What a sandbox's helper has answered, which has ended."""
        result = self._finish(answer)
        os.close(record.helper)
        record.helper = -1
        return result

    def erase(self, request_id: int, name: str) -> None:
        """Remove a snapshot's directory, if it is there."""
        self._erase(request_id, self.snapshot_path(name), None)

    def _erase(
        self, request_id: int, directory: str, because: str | None, kind: str = "LauncherError"
    ) -> None:
        answer, _ = in_child(lambda: treecopy.remove(directory))
        self._selector.register(
            answer, selectors.EVENT_READ, lambda: self._on_erased(request_id, answer, because, kind)
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

        def copy() -> dict[str, int]:
            target = _open_target(directory, record.slot_fd if self._host.idmap else None)
            give_up_power(record)
            return _copy_layers(record.disk_fd, target, overlays)

        return in_child(copy, record.slot_fd, record.disk_fd)

    def _let_go(self, record: SandboxRecord, thaw: bool) -> None:
        if thaw and record.frozen:
            standstill.release(record, freezer=self._host.cgroups.can_freeze)

    def _on_erased(self, request_id: int, answer: int, because: str | None, kind: str) -> None:
        result = self._finish(answer)
        error = because or result.get("error")
        if error:
            self._reply(request_id, error=error, kind=kind)
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
