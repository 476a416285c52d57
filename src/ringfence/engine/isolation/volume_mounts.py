"""Volumes in a sandbox: directories of the host that outlive it and that several sandboxes share.

Each comes in like a template's directory, as a detached copy of a mount that is id-mapped to the sandbox's
own ids, taken before the user namespace is entered; but it can be written. So an id on a volume is the id
that whoever wrote it had inside, and none of the host's.
"""

import contextlib
import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass

from . import linux

_RESOLVE = linux.RESOLVE_IN_ROOT | linux.RESOLVE_NO_MAGICLINKS
_PLACE = os.O_PATH | os.O_DIRECTORY
_NOT_BELOW = ("/proc", "/sys", "/dev")


@dataclass(frozen=True)
class VolumePath:
    """A host directory, `source`, shown at `target`, an absolute path inside."""

    source: str
    target: str


def clone(volumes: Sequence[VolumePath], idmap_fd: int | None) -> list[int]:
    """Detached copies of the volumes' mounts, id-mapped when `idmap_fd`, a user namespace, is given."""
    return [_clone(volume.source, idmap_fd) for volume in volumes]


def _clone(source: str, idmap_fd: int | None) -> int:
    fd = linux.open_tree(linux.AT_FDCWD, source, linux.OPEN_TREE_CLONE)
    flags = linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV
    if idmap_fd is None:
        linux.mount_setattr(fd, attr_set=flags)
    else:
        linux.mount_setattr(fd, attr_set=flags | linux.MOUNT_ATTR_IDMAP, userns_fd=idmap_fd)
    return fd


def attach(volumes: Sequence[VolumePath], trees: Sequence[int], root_id: int, place: str = "/") -> None:
    """Mount the cloned `trees`, which are used up, at the volumes' targets below `place`.

    Missing directories are made, for `root_id`. No link on the way, which is a stranger's, leads out of
    `place`. Raises `OSError`.
    """
    root = os.open(place, _PLACE | os.O_CLOEXEC)
    try:
        # The shortest first: one volume may be mounted within another.
        for volume, tree in sorted(zip(volumes, trees, strict=True), key=lambda pair: len(pair[0].target)):
            target = _make(root, volume.target, root_id)
            _check(root, target, volume.target)
            linux.move_mount(
                tree, "", target, "", linux.MOVE_MOUNT_F_EMPTY_PATH | linux.MOVE_MOUNT_T_EMPTY_PATH
            )
            os.close(target)
            os.close(tree)
    finally:
        os.close(root)


def _make(root: int, target: str, root_id: int) -> int:
    """The directory at `target`, opened; it and its parents are made when they are not there."""
    parts = [part for part in target.split("/") if part]
    place = os.dup(root)
    for count in range(1, len(parts) + 1):
        path = "/".join(parts[:count])
        try:
            below = linux.openat2(root, path, _PLACE, resolve=_RESOLVE)
        except FileNotFoundError:
            _make_one(place, parts[count - 1], root_id)
            below = linux.openat2(root, path, _PLACE, resolve=_RESOLVE)
        os.close(place)
        place = below
    return place


def _make_one(parent: int, name: str, root_id: int) -> None:
    try:
        os.mkdir(name, 0o755, dir_fd=parent)
        os.chown(name, root_id, root_id, dir_fd=parent, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.EOVERFLOW:
            raise
        # Within another volume, where our own id has no name: as the sandbox's root.
        os.setegid(root_id)
        os.seteuid(root_id)
        try:
            os.mkdir(name, 0o755, dir_fd=parent)
        finally:
            os.seteuid(0)
            os.setegid(0)
            linux.prctl(linux.PR_SET_DUMPABLE, 1)  # see userns.enter


def _check(root: int, place: int, target: str) -> None:
    """A link may have led anywhere, but not to the root, the kernel's files or the devices."""
    tops = set()
    for path in _NOT_BELOW:
        with contextlib.suppress(OSError):
            tops.add(_identity(os.stat(path.lstrip("/"), dir_fd=root)))
    end = _identity(os.fstat(root))
    refused = _identity(os.fstat(place)) == end
    # Upwards, and not by a name from /proc, which may show this process to nobody, itself included.
    step = os.dup(place)
    while not refused and _identity(os.fstat(step)) != end:
        refused = _identity(os.fstat(step)) in tops
        above = os.open("..", _PLACE | os.O_CLOEXEC, dir_fd=step)
        os.close(step)
        step = above
    os.close(step)
    if refused:
        raise OSError(errno.EINVAL, f"a volume cannot be mounted at {target}: it leads to a reserved place")


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
