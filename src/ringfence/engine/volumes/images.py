"""The file that holds a volume: its size is the volume's limit, and its space is set aside from the start."""

import asyncio
import errno
import os
import shutil
from pathlib import Path

from ringfence.core.errors import VolumeError

_SEARCH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
_FORMAT_SECONDS = 120
_KEPT_FREE = 0.05
"""The part of the disk that volumes leave to others."""


def formatter() -> str | None:
    """The path of mkfs.ext4, if this machine has it."""
    return shutil.which("mkfs.ext4", path=_SEARCH)


async def make_image(path: Path, size_mb: int) -> None:
    """Make the image of an empty volume. Raises VolumeError (``full`` when the disk has no room for it)."""
    program = formatter()
    if program is None:
        raise VolumeError("mkfs.ext4 is not installed on the server", "unsupported")
    fresh = path.with_suffix(".new")
    try:
        await asyncio.to_thread(_reserve, fresh, size_mb << 20)
        await _format(program, fresh)
        fresh.rename(path)
    finally:
        fresh.unlink(missing_ok=True)


def _reserve(path: Path, size: int) -> None:
    disk = os.statvfs(path.parent)
    if disk.f_bavail * disk.f_frsize - size < disk.f_blocks * disk.f_frsize * _KEPT_FREE:
        raise VolumeError("the server's disk has no room for another volume", "full")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise VolumeError("the server's disk has no room for another volume", "full") from None
    finally:
        os.close(descriptor)


async def _format(program: str, path: Path) -> None:
    # nodiscard: discarding would give back the space that was set aside.
    process = await asyncio.create_subprocess_exec(
        program, "-q", "-F", "-m", "0", "-E", "nodiscard,lazy_itable_init=1", str(path),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE, env={"PATH": _SEARCH, "LANG": "C.UTF-8"},
    )  # fmt: skip
    try:
        _, trouble = await asyncio.wait_for(process.communicate(), _FORMAT_SECONDS)
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        raise VolumeError(f"mkfs.ext4 failed: {trouble.decode(errors='replace').strip()[:300]}")
