"""Removing a directory with everything in it, however deep and however broad it is."""

import os

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(path: str) -> None:
    """As ``rm -r``; links are not followed. Raises `OSError`.

    It goes down by name and up by ``..``, so depth costs neither stack nor descriptors nor long paths. That
    the way up leads to where it came from is checked, since others may move directories meanwhile.
    """
    current = os.open(path, _FLAGS)
    above: list[tuple[str, tuple[int, int], list[str]]] = []
    try:
        below = _empty(current)
        while True:
            if below:
                name = below.pop()
                above.append((name, _identity(current), below))
                current = _replace(current, name)
                below = _empty(current)
            elif above:
                name, parent, below = above.pop()
                current = _replace(current, "..")
                if _identity(current) != parent:
                    raise OSError(f"{path} was changed while it was removed")
                os.rmdir(name, dir_fd=current)
            else:
                break
    finally:
        os.close(current)
    os.rmdir(path)  # noqa: PTH106


def _replace(current: int, name: str) -> int:
    other = os.open(name, _FLAGS, dir_fd=current)
    os.close(current)
    return other


def _identity(directory: int) -> tuple[int, int]:
    status = os.fstat(directory)
    return status.st_dev, status.st_ino


def _empty(directory: int) -> list[str]:
    """Remove everything but directories; the names of these."""
    with os.scandir(directory) as found:
        entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
    for name, is_directory in entries:
        if not is_directory:
            os.unlink(name, dir_fd=directory)
    return [name for name, is_directory in entries if is_directory]
