"""A sandbox's file tree, built in its own mount namespace.

Each layer of the template becomes an overlay: the template's directories below, read-only, and above them one
tmpfs that is limited in size and inodes and holds everything the sandbox writes, ``/tmp`` and ``/dev/shm``
included. An overlay, not a read-only bind, because a bind shares inodes: a sandbox would see its neighbours'
file accesses through inotify(7) and could block them with flock(2).

The lower directories come in as detached, id-mapped mounts (mount_setattr(2)), so that files of the host's
uid 0 appear as the sandbox's own root's, though neither is host root. They are cloned before the user
namespace is entered, because only then the caller may see and map them; everything after needs no privilege
outside.
"""

import contextlib
import math
import os
import stat
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from . import devices, disk, linux, procfs, volume_mounts

# Every Linux has /tmp, and the mount namespace is private: nothing is ever visible there outside of it.
STAGE = "/tmp"  # noqa: S108
_ROOT = f"{STAGE}/root"
DISK = f"{STAGE}/disk"
"""Where the writable layer is mounted while the tree is built."""
_DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
MAX_PTYS = 64
_LOCKED = linux.MS_NOSUID | linux.MS_NODEV


@dataclass(frozen=True)
class LayerPaths:
    """One overlay: `lowers` are host directories, topmost first, shown at `target`."""

    target: str
    lowers: tuple[str, ...]


@dataclass(frozen=True)
class RootPlan:
    """What to build. Sizes in bytes; ids as seen from the template namespace.

    memory, cpus: what the generated files of /proc say the machine has.
    writable: false gives the zygote's view, where nothing but a small /tmp can be written.
    own_pids: whether the caller is in a PID namespace of its own and so may mount a /proc of it.
    code: files (path to contents) put on a tmpfs on /run, for the zygote's view.
    volumes: host directories that come on top of the layers.
    """

    layers: tuple[LayerPaths, ...]
    size: int
    inodes: int
    root_id: int
    memory: int
    cpus: float
    writable: bool = True
    own_pids: bool = True
    code: dict[str, bytes] = field(default_factory=dict)
    volumes: tuple[volume_mounts.VolumePath, ...] = ()


def clone_lowers(layers: Sequence[LayerPaths], idmap_fd: int | None) -> list[list[int]]:
    """Detached copies of all lower mounts, id-mapped when `idmap_fd`, a user namespace, is given."""
    return [[clone(path, idmap_fd) for path in layer.lowers] for layer in layers]


def open_file(directory: str, name: str, empty: str) -> int:
    """A descriptor of a file that can be read and mapped, but not be changed in any way, whoever owns it.

    It is opened through a read-only overlay of its own, which nobody can look up a name in: what one sandbox
    does to its inode (flock(2), leases, inotify(7), times) no other one can notice. The contents are in
    memory once all the same. empty: a directory, because an overlay without an upper layer wants two lower
    ones.
    """
    with contextlib.ExitStack() as stack:
        # By descriptors, because a path may have a colon.
        lowers = [os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for path in (directory, empty)]
        for fd in lowers:
            stack.callback(os.close, fd)
        context = linux.fsopen("overlay")
        stack.callback(os.close, context)
        places = ":".join(f"/proc/self/fd/{fd}" for fd in lowers)
        linux.fsconfig(context, linux.FSCONFIG_SET_STRING, "lowerdir", places)
        linux.fsconfig(context, linux.FSCONFIG_CMD_CREATE)
        flags = linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV
        mount = linux.fsmount(context, flags | linux.MOUNT_ATTR_NOEXEC)
        stack.callback(os.close, mount)
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=mount)


def clone(path: str, idmap_fd: int | None) -> int:
    """A detached copy of the mount at `path`, id-mapped when `idmap_fd`, a user namespace, is given."""
    fd = linux.open_tree(linux.AT_FDCWD, path, linux.OPEN_TREE_CLONE)
    flags = linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV
    if idmap_fd is None:
        linux.mount_setattr(fd, attr_set=flags)
    else:
        linux.mount_setattr(fd, attr_set=flags | linux.MOUNT_ATTR_IDMAP, userns_fd=idmap_fd)
    return fd


def assemble(
    plan: RootPlan,
    trees: list[list[int]],
    kept_disk: int | None = None,
    keep: Callable[[int], None] = os.close,
    volumes: Sequence[int] = (),
    nodes: int | None = None,
) -> None:
    """Build the tree in this process's (new) mount namespace and make it the root.

    The cloned `trees` and `volumes` are used up, and so are `kept_disk`, the writable layer of an earlier
    life, and `nodes`, the mount from `devices.make`; without one the host's devices are shown. `keep` is
    given a detached copy of the writable layer's mount as soon as there is one, and closes it.
    """
    os.umask(0o022)
    make_stage()
    if plan.writable:
        keep(disk.attach(DISK, plan.size, plan.inodes, plan.root_id, kept_disk))
    os.mkdir(_ROOT)
    for number, (layer, fds) in enumerate(zip(plan.layers, trees, strict=True)):
        overlay(plan, number, layer, fds, _ROOT)
    _mount_dev(plan, nodes)
    _mount_proc(plan)
    if plan.writable:
        _tell_processors(plan.cpus)
    else:
        # Packages want a home and a temporary directory for their caches; nothing of these is seen in a
        # sandbox.
        for directory in ("/tmp", "/run", "/home/user"):  # noqa: S108
            linux.mount("tmpfs", _ROOT + directory, "tmpfs", _LOCKED, "size=64m,nr_inodes=4096,mode=755")
        for path, contents in plan.code.items():
            _write(_ROOT + path, contents)
    pivot(_ROOT)
    volume_mounts.attach(plan.volumes, volumes, plan.root_id)


def make_stage() -> None:
    """Detach this mount namespace from others, and mount the place where everything is built."""
    linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("tmpfs", STAGE, "tmpfs", _LOCKED, "size=64m,nr_inodes=8192,mode=755")
    os.mkdir(f"{STAGE}/empty")


def overlay(plan: RootPlan, number: int, layer: LayerPaths, fds: list[int], root: str) -> None:
    """Mount the `number`-th overlay of `plan` below `root`; the cloned lower mounts `fds` are used up."""
    lowers = []
    for position, fd in enumerate(fds):
        lower = f"{STAGE}/l{number}.{position}"
        os.mkdir(lower)
        linux.move_mount(fd, "", linux.AT_FDCWD, lower)
        os.close(fd)
        lowers.append(lower)
    options = "userxattr,lowerdir=" + ":".join(lowers)
    flags = _LOCKED
    if plan.writable:
        options += f",upperdir={_make_upper(plan, number, lowers[0])},workdir={DISK}/w{number}"
        os.makedirs(f"{DISK}/w{number}", exist_ok=True)
    else:
        options += f":{STAGE}/empty"  # an overlay without an upper layer wants two lower ones
        flags |= linux.MS_RDONLY
    linux.mount("overlay", root + layer.target.rstrip("/"), "overlay", flags, options)


def _make_upper(plan: RootPlan, number: int, lower: str) -> str:
    # The merged directory has the upper one's owner and mode.
    upper = disk.upper(DISK, number)
    if os.path.isdir(upper):
        return upper  # of an earlier life
    like = os.stat(lower)
    os.mkdir(upper)
    try:
        os.chown(upper, like.st_uid, like.st_gid)
    except OSError:  # an ordinary user's engine: the host's root has no id in here
        os.chown(upper, plan.root_id, plan.root_id)
    os.chmod(upper, stat.S_IMODE(like.st_mode))
    return upper


def _mount_dev(plan: RootPlan, nodes: int | None) -> None:
    dev, source = f"{_ROOT}/dev", "/dev"
    if nodes is not None:
        source = f"{STAGE}/nodes"
        os.mkdir(source)
        linux.move_mount(nodes, "", linux.AT_FDCWD, source)
        os.close(nodes)
    options = f"size=64k,nr_inodes=64,mode=755,uid={plan.root_id},gid={plan.root_id}"
    linux.mount("tmpfs", dev, "tmpfs", linux.MS_NOSUID | linux.MS_NOEXEC, options)
    for name in devices.NODES:
        os.close(os.open(f"{dev}/{name}", os.O_CREAT | os.O_WRONLY, 0o666))
        linux.mount(f"{source}/{name}", f"{dev}/{name}", None, linux.MS_BIND)
    for name, target in _DEVICE_LINKS.items():
        os.symlink(target, f"{dev}/{name}")
    os.mkdir(f"{dev}/pts")
    pts = f"newinstance,ptmxmode=0666,mode=620,max={MAX_PTYS}"
    linux.mount("devpts", f"{dev}/pts", "devpts", linux.MS_NOSUID | linux.MS_NOEXEC, pts)
    os.mkdir(f"{dev}/shm")
    shm = disk.fresh_shm(DISK if plan.writable else STAGE)
    linux.mount(shm, f"{dev}/shm", None, linux.MS_BIND)


def _mount_proc(plan: RootPlan) -> None:
    proc = f"{_ROOT}/proc"
    boot_time = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    files = procfs.generate(plan.memory, plan.cpus, str(uuid.uuid4()), boot_time)
    if plan.own_pids:
        flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
        linux.mount("proc", proc, "proc", flags)
        _open_low_ports(proc)
        os.mkdir(f"{STAGE}/masks")
        # The sandbox's processes see each other, as on E2B; the one that serves it, which is this, stays out
        # of sight.
        masks = [*procfs.mask_plan(procfs.listing(proc), files), procfs.Mask(str(os.getpid()), True)]
        procfs.cover(proc, f"{STAGE}/masks", masks)
        linux.mount(None, proc, None, linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY | flags)
        return
    linux.mount("tmpfs", proc, "tmpfs", _LOCKED, "size=1m,nr_inodes=256,mode=755")
    for name, contents in files.items():
        _write(f"{proc}/{name}", contents)


def _tell_processors(cpus: float) -> None:
    """Where the template says how many processors the host has, say how many this sandbox may use."""
    if math.ceil(cpus) == os.cpu_count():
        return
    for name, contents in procfs.generate_sys(cpus).items():
        if os.path.exists(f"{_ROOT}/sys/{name}"):
            os.unlink(f"{_ROOT}/sys/{name}")
            _write(f"{_ROOT}/sys/{name}", contents)


def _open_low_ports(proc: str) -> None:
    # The sandbox's root has no capability over its network namespace, and port 80 of a lone loopback needs no
    # guard.
    for name, value in (("ip_unprivileged_port_start", "0"), ("ping_group_range", "0 65535")):
        path = f"{proc}/sys/net/ipv4/{name}"
        if os.path.exists(path):
            try:
                _write(path, value.encode())
            except OSError:
                if name == "ip_unprivileged_port_start":
                    raise


def _write(path: str, contents: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(contents)


def pivot(root: str) -> None:
    """Make the mount `root` the root of this namespace, and let go of the old one."""
    os.chdir(root)
    linux.pivot_root(".", ".")  # the old root now lies on top of the new one
    linux.umount(".", linux.MNT_DETACH)
    os.chdir("/")
