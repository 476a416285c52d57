"""What the image of a warmed sandbox depends on. With anything of it another, it is not the image that is
wanted: a restored process goes on with the files that its memory was mapped from.

A template's own layers never change. What the host gives, its ``/usr`` and our Python, may be upgraded: the
times of the directories that programs and libraries lie in tell that, since files there are replaced.
"""

import functools
import os
import platform
import sys
import sysconfig
from pathlib import Path
from typing import Any

from ringfence import __version__
from ringfence.engine.isolation import procfs
from ringfence.engine.own_code import own_code
from ringfence.engine.templates.cache import digest

_LAYOUT = 1
"""Raise it when what is in an image changes in a way that nothing below tells."""
_PROCESSOR = (
    "vendor_id", "cpu family", "model", "model name", "stepping", "flags",
    "CPU implementer", "CPU part", "CPU variant", "CPU revision", "Features",
)  # fmt: skip
_LIBRARIES = ("bin", "lib*", "lib*/*-linux-*", "lib/python3*", "lib/python3*/lib-dynload")


def image_key(gvisor: dict[str, Any], description: dict[str, Any], frame: dict[str, Any]) -> str:
    """The name of the image for sandboxes of this kind. Blocks for some milliseconds.

    gvisor: runsc, as the launcher is told. description: of the template, as the launcher is told. frame: what
    all sandboxes of the kind are started with: ``snapshots`` of the template, ``hostname``, and ``limits``,
    of which the size of the disk is in the image.
    """
    program = Path(gvisor["path"]).stat()
    lowers = {path for layer in description["layers"] for path in layer["lowers"]}
    ours = {sys.base_prefix, *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))}
    return digest(
        _LAYOUT, __version__, own_code(), sys.version, sys.executable,
        gvisor, program.st_size, program.st_mtime_ns,
        *os.uname()[2:], os.geteuid(), _processor(), len(os.sched_getaffinity(0)), platform.libc_ver(),
        description, frame["snapshots"], frame["hostname"], frame["limits"]["disk_mb"],
        [_times(Path(path)) for path in sorted({*lowers, *ours})],
    )  # fmt: skip


@functools.cache
def _processor() -> list[str]:
    fields = dict(procfs.host_processor())
    return [fields.get(name, "") for name in _PROCESSOR]


def _times(top: Path) -> list[tuple[str, int]]:
    """The directories of programs and libraries below `top`, and when something in them was replaced."""
    found = {top} if top.is_dir() else set()
    for pattern in _LIBRARIES:
        found.update(path for path in top.glob(pattern) if path.is_dir())
    return [(str(path), path.stat().st_mtime_ns) for path in sorted(found)]
