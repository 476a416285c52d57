"""The device nodes that a sandbox sees, on a file system of its own.

To show the host's would share their inodes: with flock(2) sandboxes could block each other, and programs of
the host, and with inotify(7) see when anybody opens one. Only the host's root can make nodes that can be
opened; an ordinary user's sandboxes are shown the host's, and the report says so.
"""

import os
import stat

from . import linux

NODES = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
"""Major and minor number by name (Documentation/admin-guide/devices.txt)."""


LAYER = "device nodes of its own"
"""How the report calls it."""


def make() -> int | None:
    """A detached mount with fresh nodes; None for who may not make any. Call it as the host's root."""
    if os.getuid() != 0:
        return None
    context = linux.fsopen("tmpfs")
    try:
        for key, value in {"size": "64k", "nr_inodes": "16", "mode": "755"}.items():
            linux.fsconfig(context, linux.FSCONFIG_SET_STRING, key, value)
        linux.fsconfig(context, linux.FSCONFIG_CMD_CREATE)
        mount = linux.fsmount(context, linux.MOUNT_ATTR_NOSUID)
    finally:
        os.close(context)
    try:
        for name, number in NODES.items():
            os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(*number), dir_fd=mount)
            os.chmod(name, 0o666, dir_fd=mount)  # noqa: S103 - as everywhere; the umask is not known here
        os.close(os.open("null", os.O_RDONLY, dir_fd=mount))
    except PermissionError:  # in a container: no CAP_MKNOD, or the devices cgroup
        os.close(mount)
        return None
    return mount


def available() -> bool:
    """Whether sandboxes can have nodes of their own here."""
    mount = make()
    if mount is None:
        return False
    os.close(mount)
    return True
