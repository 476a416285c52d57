"""The writable layer of a sandbox: one tmpfs, limited in size and inodes, that can outlive its processes.

It holds what the sandbox wrote and nothing else: ``u<n>`` and ``w<n>``, the upper and the work directory of
the template's n-th overlay, and ``shm``. The launcher keeps a detached copy of its mount, so a sandbox whose
processes have ended can be started again on the same files.
"""

import contextlib
import os
import shutil

from . import linux


def attach(place: str, size: int, inodes: int, root_id: int, kept: int | None) -> int:
    """Mount the layer at `place`: the `kept` one (used up), else a new one. A detached copy of its mount.

    size: bytes. root_id: the owner of a new one's root, as seen from the caller's user namespace.
    """
    os.mkdir(place)
    if kept is None:
        options = f"size={size},nr_inodes={inodes},mode=755,uid={root_id},gid={root_id}"
        linux.mount("tmpfs", place, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, options)
    else:
        linux.move_mount(kept, "", linux.AT_FDCWD, place)
        os.close(kept)
    return linux.open_tree(linux.AT_FDCWD, place, linux.OPEN_TREE_CLONE)


def use(mount: int) -> tuple[int, int]:
    """Bytes used and in all of the layer whose mount this is."""
    status = os.fstatvfs(mount)
    return (status.f_blocks - status.f_bfree) * status.f_frsize, status.f_blocks * status.f_frsize


def fresh_shm(place: str) -> str:
    """The directory for ``/dev/shm``, empty: what an earlier life left in it is not kept, as in a reboot."""
    shm = f"{place}/shm"
    with contextlib.suppress(FileNotFoundError, RecursionError):
        shutil.rmtree(shm)
    os.makedirs(shm, exist_ok=True)
    os.chmod(shm, 0o1777)
    return shm


def upper(place: str, number: int) -> str:
    """Where the upper directory of the `number`-th overlay is below a layer mounted at `place`."""
    return f"{place}/u{number}"
