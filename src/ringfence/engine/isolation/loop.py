"""Loop devices: a file as a block device, for as long as it is mounted.

Nothing has to be undone: a device lets go of its file when its last user does (``LO_FLAGS_AUTOCLEAR``), also
when every process that had to do with it was killed. While a device has it the file is locked, with flock(2),
by the open file that the device keeps; so no file can be mounted by two launchers, which would destroy it.
"""

import errno
import fcntl
import os
import struct

from . import linux

# include/uapi/linux/loop.h
_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LO_FLAGS_AUTOCLEAR = 4
_LO_FLAGS_DIRECT_IO = 16
_INFO_BYTES, _FLAGS_OFFSET, _RESERVED_BYTES = 232, 52, 64
_CONTROL = "/dev/loop-control"
_TRIES = 64


def missing() -> str:
    """What this process lacks to mount an image: a sentence, empty when it lacks nothing."""
    try:
        os.close(os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{_CONTROL} cannot be used ({error.strerror})"
    with open("/proc/filesystems") as file:
        if "ext4" not in file.read().split():
            return "the kernel has no ext4"
    return ""


def mount_image(image: str, place: str) -> None:
    """Mount the ext4 image, a file that we have formatted, at the directory `place`: nosuid and nodev.

    Raises `BlockingIOError` while the image is mounted by somebody else, `OSError` otherwise.
    """
    backing = os.open(image, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(backing, fcntl.LOCK_EX | fcntl.LOCK_NB)
        device, name = _attach(backing)
    finally:
        os.close(backing)
    try:
        flags = linux.MS_NOSUID | linux.MS_NODEV
        linux.mount(name, place, "ext4", flags, "errors=remount-ro")
    finally:
        os.close(device)


def _attach(backing: int) -> tuple[int, str]:
    info = bytearray(_INFO_BYTES)
    # Direct: the pages of the mounted file system are cached, those of the file need not be as well.
    struct.pack_into("=I", info, _FLAGS_OFFSET, _LO_FLAGS_AUTOCLEAR | _LO_FLAGS_DIRECT_IO)
    configuration = struct.pack("=II", backing, 0) + bytes(info) + bytes(_RESERVED_BYTES)
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            name = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            device = os.open(name, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, configuration)
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # else somebody was faster
                    raise
            else:
                return device, name
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "no loop device is free")
