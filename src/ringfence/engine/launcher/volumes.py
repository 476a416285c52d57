"""Volumes, from the launcher's side: mounted where only the launcher sees them, and given agents.

The mounts are in the launcher's own mount namespace. So none is left when the launcher and what it started
have ended, however that came, and with the mounts the loop devices go.
"""

import contextlib
import os
import re
import selectors
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ringfence.core.errors import LimitError, VolumeError
from ringfence.engine.isolation import linux, loop, userns
from ringfence.engine.launcher import treecopy
from ringfence.engine.launcher.helpers import in_child, result_of, settle
from ringfence.engine.launcher.host import Host
from ringfence.engine.volumes import agent

Reply = Callable[..., None]
_ID = re.compile(r"[0-9a-f-]{36}")
_MAX_AGENTS = 200
_OWNER = 1000
_ATTRIBUTES = linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV | linux.MOUNT_ATTR_NOEXEC


class Volumes:
    """The volumes of one launcher. `directory`: where they are kept; None: nowhere."""

    def __init__(
        self, host: Host, directory: str | None, runtime_dir: str, program: bytes, reply: Reply,
        selector: selectors.BaseSelector,
    ) -> None:  # fmt: skip
        self._host = host
        self._directory = directory
        self._places = Path(runtime_dir) / "volumes"
        self._program = program
        self._reply = reply
        self._selector = selector
        self._tops: dict[str, str] = {}
        self._agents: dict[int, tuple[str, int]] = {}

    def attach(self, request_id: int, volume_id: str) -> None:
        """Mount a volume and put its directories in place. ``busy`` while another launcher still has it."""
        image, plain = self._paths(volume_id)
        if volume_id not in self._tops:
            try:
                self._tops[volume_id] = self._mount(volume_id, image) if os.path.isfile(image) else plain
                self._prepare(self._tops[volume_id])
            except BlockingIOError:
                self._reply(request_id, busy=True)
                return
            except OSError as error:
                self._detach(volume_id)
                raise VolumeError(f"the volume cannot be mounted: {error}") from error
        self._reply(request_id)

    def source(self, volume_id: str) -> str:
        """The directory that sandboxes are shown of a mounted volume."""
        if volume_id not in self._tops:
            raise VolumeError(f"volume {volume_id[:40]!r} is not mounted")
        return f"{self._tops[volume_id]}/{agent.FILES}"

    def start_agent(self, request_id: int, volume_id: str, requests: int) -> None:
        """Start the agent of a mounted volume; `requests` is its end of the channel."""
        self.source(volume_id)
        used = {number for _, number in self._agents.values()}
        number = next((one for one in range(1, _MAX_AGENTS + 1) if one not in used), None)
        if number is None:
            raise LimitError(f"the contents of {_MAX_AGENTS} volumes are in use, the most there can be")
        namespace = userns.create(self._host.ids.agent_maps(number))
        try:
            top = _open_top(self._tops[volume_id], namespace if self._host.idmap else None)
            pid = os.fork()
            if pid == 0:
                self._become_agent(requests, top, namespace)
            os.close(top)
        finally:
            os.close(namespace)
        self._agents[pid] = (volume_id, number)
        self._reply(request_id)

    def _become_agent(self, requests: int, top: int, namespace: int) -> None:
        try:
            settle({requests, top, namespace})
            channel = socket.socket(fileno=requests)
            agent.run(channel, top, namespace, self._program, single_id=self._host.ids.single)
        except BaseException as error:
            os.write(2, f"the agent of a volume ended: {error}\n".encode())
        finally:
            os._exit(0)

    def child_ended(self, pid: int) -> None:
        """Note the end of a child, which may be an agent: its ids are free again."""
        self._agents.pop(pid, None)

    def remove(self, request_id: int, volume_id: str) -> None:
        """Unmount a volume and remove it from the disk, in a child, since it may be large."""
        image, plain = self._paths(volume_id)
        for pid, (owned, _) in self._agents.items():
            if owned == volume_id:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._detach(volume_id)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(image)
        answer, _ = in_child(lambda: treecopy.remove(plain))
        self._selector.register(answer, selectors.EVENT_READ, lambda: self._on_removed(request_id, answer))

    def _on_removed(self, request_id: int, answer: int) -> None:
        self._selector.unregister(answer)
        result = result_of(answer)
        if "error" in result:
            text = f"a volume could not be removed whole: {result['error']}"
            self._reply(request_id, error=text, kind="VolumeError")
        else:
            self._reply(request_id)

    def end(self) -> bool:
        """Unmount all; whether that was possible. Otherwise nobody may remove what lies below the mounts."""
        for volume_id in list(self._tops):
            self._detach(volume_id)
        if not self._places.is_dir():
            return True
        return not any(os.path.ismount(place) for place in self._places.iterdir())

    def _mount(self, volume_id: str, image: str) -> str:
        place = self._places / volume_id
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        loop.mount_image(image, str(place))
        return str(place)

    def _detach(self, volume_id: str) -> None:
        top = self._tops.pop(volume_id, None)
        if top is not None and top.startswith(str(self._places)):
            with contextlib.suppress(OSError):  # it was not mounted
                linux.umount(top, linux.MNT_DETACH)
            with contextlib.suppress(OSError):
                os.rmdir(top)

    def _prepare(self, top: str) -> None:
        """The two directories at the top, which no sandbox can touch; made when they are not there."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(f"{top}/{agent.STAGING}", 0o700)
        with contextlib.suppress(FileExistsError):
            os.mkdir(f"{top}/{agent.FILES}", 0o700)
            if not self._host.ids.single:
                os.chown(f"{top}/{agent.FILES}", _OWNER, _OWNER)
            os.chmod(f"{top}/{agent.FILES}", 0o777)

    def _paths(self, volume_id: str) -> tuple[str, str]:
        """The image and the plain directory of a volume, of which one is there. Nothing else is touched."""
        if self._directory is None or not _ID.fullmatch(volume_id):
            raise VolumeError(f"there is no place for a volume {volume_id[:40]!r}")
        return f"{self._directory}/{volume_id}.img", f"{self._directory}/{volume_id}"

    def sources(self, mounts: list[dict[str, Any]]) -> list[dict[str, str]]:
        """Where the volumes of a create request are on the host, and where they are to be shown."""
        return [{"source": self.source(one["volume"]), "target": one["path"]} for one in mounts]


def _open_top(top: str, idmap_fd: int | None) -> int:
    fd = linux.open_tree(linux.AT_FDCWD, top, linux.OPEN_TREE_CLONE)
    if idmap_fd is None:
        linux.mount_setattr(fd, attr_set=_ATTRIBUTES)
    else:
        linux.mount_setattr(fd, attr_set=_ATTRIBUTES | linux.MOUNT_ATTR_IDMAP, userns_fd=idmap_fd)
    return fd
