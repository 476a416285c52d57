"""The file tree that runsc itself runs in, built in the mount namespace of one sandbox.

- ``/runsc``, ``/proc``, ``/dev``, ``/state``, ``/bundle``: what runsc needs, and nothing else;
- ``/bundle/root``: the container's root: our Python, read-only, for the guest alone, and in
- ``/bundle/root/sandbox`` the template's overlays with the sandbox's writable layer, as in the process tier.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

from ringfence.engine.gvisor.python import HostPython
from ringfence.engine.isolation import disk, linux, mounts, procfs, volume_mounts

_ROOT = f"{mounts.STAGE}/root"
_CONTAINER = f"{_ROOT}/bundle/root"
_SANDBOX = f"{_CONTAINER}/sandbox"
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_LOCKED = linux.MS_NOSUID | linux.MS_NODEV
RUNSC = "/runsc"
STATE = "/state"
BUNDLE = "/bundle"
PID_FILE = "/state/pid"
IMAGE = "/image"


@dataclass(frozen=True)
class Trees:
    """Detached copies of what the host gives: `layers` of the template, volumes, runsc, our Python, and the
    directory of the image to restore.
    """

    layers: list[list[int]]
    volumes: list[int]
    runsc: int
    python: list[int]
    image: int | None


def clone(
    plan: mounts.RootPlan,
    runsc: str,
    python: HostPython,
    image: str | None,
    idmap_fd: int | None,
) -> Trees:
    """Copy the mounts while the host's tree is in sight and there is the power to map their ids."""
    return Trees(
        mounts.clone_lowers(plan.layers, idmap_fd),
        volume_mounts.clone(plan.volumes, idmap_fd),
        mounts.clone(runsc, idmap_fd),
        [mounts.clone(path, idmap_fd) for path, _ in python.binds],
        None if image is None else mounts.clone(image, idmap_fd),
    )


def assemble(
    plan: mounts.RootPlan,
    trees: Trees,
    python: HostPython,
    files: dict[str, str],
    kept_disk: int | None,
    keep: Callable[[int], None],
    room: int,
) -> None:
    """Build the tree and make it the root of this process's (new) mount namespace; `trees` are used up.

    files: texts by path, the bundle's ``config.json`` for one. room: bytes that an image may have which is
    to be written, else 0; it lies in memory until it has been taken away.
    """
    os.umask(0o022)
    mounts.make_stage()
    keep(disk.attach(mounts.DISK, plan.size, plan.inodes, plan.root_id, kept_disk))
    os.mkdir(_ROOT)
    linux.mount("tmpfs", _ROOT, "tmpfs", _LOCKED, "size=16m,nr_inodes=4096,mode=755")
    for name in ("proc", "dev", "state", "tmp", "bundle", "bundle/root", "bundle/root/sandbox", "image"):
        os.mkdir(f"{_ROOT}/{name}")
    _attach_file(trees.runsc, _ROOT + RUNSC)
    if trees.image is not None:
        _attach(trees.image, _ROOT + IMAGE)
    elif room:
        linux.mount("tmpfs", _ROOT + IMAGE, "tmpfs", _LOCKED | linux.MS_NOEXEC, f"size={room},nr_inodes=16")
    _mount_proc(plan)
    for name in _DEVICES:
        _touch(f"{_ROOT}/dev/{name}")
        linux.mount(f"/dev/{name}", f"{_ROOT}/dev/{name}", None, linux.MS_BIND)
    _show_python(python, trees.python)
    for number, (layer, fds) in enumerate(zip(plan.layers, trees.layers, strict=True)):
        mounts.overlay(plan, number, layer, fds, _SANDBOX)
    volume_mounts.attach(plan.volumes, trees.volumes, plan.root_id, _SANDBOX)
    for path, text in files.items():
        with open(_ROOT + path, "w") as file:
            file.write(text)
    mounts.pivot(_ROOT)


def _mount_proc(plan: mounts.RootPlan) -> None:
    """A /proc for runsc, which passes the machine's memory on to its kernel: there, the sandbox's limit.

    The second one stays whole: who has none in sight may not mount one (mount_namespaces(7)), as runsc does.
    """
    os.mkdir(f"{_ROOT}/whole")
    for name in ("proc", "whole"):
        linux.mount("proc", f"{_ROOT}/{name}", "proc", _LOCKED | linux.MS_NOEXEC, "")
    with open(f"{_ROOT}/meminfo", "wb") as file:
        file.write(procfs.generate(plan.memory, plan.cpus, "", 0)["meminfo"])
    linux.mount(f"{_ROOT}/meminfo", f"{_ROOT}/proc/meminfo", None, linux.MS_BIND)


def _show_python(python: HostPython, trees: list[int]) -> None:
    for name in ("proc", "dev", "sys", "tmp"):  # what gVisor mounts in every root
        os.mkdir(f"{_CONTAINER}/{name}")
    for tree, (_, place) in zip(trees, python.binds, strict=True):
        os.makedirs(_CONTAINER + place, exist_ok=True)
        _attach(tree, _CONTAINER + place)
    for place, target in python.links:
        os.symlink(target, _CONTAINER + place)


def _attach(tree: int, place: str) -> None:
    linux.move_mount(tree, "", linux.AT_FDCWD, place)
    os.close(tree)


def _attach_file(tree: int, place: str) -> None:
    _touch(place)
    _attach(tree, place)


def _touch(path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o755))
