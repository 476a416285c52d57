"""What this machine's kernel lets an engine do, found out by trying it in throw-away children.

Version numbers lie (distributions port features back and switch them off, containers refuse them), so
nothing is concluded from them; they only appear in the remedies. All of it takes well under 100 ms.
"""

import contextlib
import errno
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass

from . import capabilities, cgroups, landlock, linux, network, seccomp

_NAMESPACES = {
    "mount": linux.CLONE_NEWNS,
    "PID": linux.CLONE_NEWPID,
    "network": linux.CLONE_NEWNET,
    "IPC": linux.CLONE_NEWIPC,
    "UTS": linux.CLONE_NEWUTS,
    "cgroup": linux.CLONE_NEWCGROUP,
}
_SECCOMP_MODE_FILTER = 2
_MOUNT_FLAGS = linux.MS_NOSUID | linux.MS_NODEV
_CONTAINER = (
    "run it outside of the container, or give the container --privileged (or --security-opt "
    "seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined)"
)
_APPARMOR = (
    "AppArmor keeps ordinary users from user namespaces: start the engine as root, install an AppArmor "
    "profile with the rule `userns,` for its interpreter, or set "
    "kernel.apparmor_restrict_unprivileged_userns=0"
)
TRANSPARENT_NETWORK = "transparent TCP in a network namespace"
_TRANSPARENT = (
    "a kernel with nf_tables and nft_tproxy (CONFIG_NFT_TPROXY; as modules: modprobe nf_tables nft_tproxy); "
    "without, programs in sandboxes need HTTP_PROXY and the like, which are set then"
)
_ANY = ("198.18.0.1", 5432)
_SWITCHES = (
    ("kernel/apparmor_restrict_unprivileged_userns", "1", _APPARMOR),
    (
        "kernel/unprivileged_userns_clone",
        "0",
        "set kernel.unprivileged_userns_clone=1, or start the engine as root",
    ),
    ("user/max_user_namespaces", "0", "set user.max_user_namespaces to 15000 or more"),
)


@dataclass(frozen=True)
class Feature:
    """One thing the machine has or lacks; `remedy` is empty when it has it."""

    name: str
    available: bool
    detail: str
    remedy: str = ""


def detect_features() -> tuple[Feature, ...]:
    """Try every feature that an engine may use, as the user who calls this; leaves nothing behind.

    Forks, so the caller should have a single thread.
    """
    return (
        _feature("user namespaces", _user_namespace, namespace_remedy()),
        _feature("namespaces", _namespaces, namespace_remedy()),
        _feature(
            "tmpfs and overlay in a user namespace", _overlay, "Linux 5.11 or newer; " + namespace_remedy()
        ),
        _feature("a new /proc in a PID namespace", _proc, _CONTAINER),
        _idmapped_mounts(),
        _feature("seccomp filters", _seccomp, "a kernel with CONFIG_SECCOMP_FILTER, on x86_64 or aarch64"),
        _landlock(),
        _feature("pidfd", _pidfd, "Linux 5.3 or newer"),
        _feature("openat2", _openat2, "Linux 5.6 or newer"),
        _feature("close_range", _close_range, "Linux 5.9 or newer"),
        _feature("new mount API", _mount_api, "Linux 5.12 or newer; " + namespace_remedy()),
        transparent_network(),
        _feature("cgroups", _cgroups, ""),
    )


def transparent_network() -> Feature:
    """Whether the kernel can lead connections to any address to one listener. Forks."""
    return _feature(TRANSPARENT_NETWORK, _transparent, _TRANSPARENT)


def namespace_remedy() -> str:
    """What to do when user namespaces are refused, as far as the machine's settings tell."""
    if os.geteuid() == 0:
        return _CONTAINER
    for path, refusing, remedy in _SWITCHES:
        with contextlib.suppress(OSError), open(f"/proc/sys/{path}") as file:
            if file.read().strip() == refusing:
                return remedy
    return f"start the engine as root, or {_CONTAINER}"


class _MissingError(Exception):
    """A feature that is there but not usable: the detail, and the remedy if it is a special one."""

    def __init__(self, detail: str, remedy: str = "") -> None:
        super().__init__(detail)
        self.remedy = remedy


def _feature(name: str, attempt: Callable[[], str], remedy: str) -> Feature:
    good, detail, special = _in_child(attempt)
    return Feature(name, good, detail, "" if good else special or remedy)


def _in_child(attempt: Callable[[], str]) -> tuple[bool, str, str]:
    """Whether `attempt` returned in a forked child, what it returned or raised, and its special remedy."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _report(attempt, writer)
    os.close(writer)
    with open(reader, "rb") as stream:
        answer = stream.read().decode(errors="replace")
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return False, f"killed by signal {os.WTERMSIG(status)}", ""
    verdict, _, rest = answer.partition("\n")
    detail, _, remedy = rest.partition("\n")
    return verdict == "yes", detail or "no answer", remedy


def _report(attempt: Callable[[], str], writer: int) -> None:
    try:
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        text = f"yes\n{attempt()}"
    except _MissingError as error:
        text = f"no\n{error}\n{error.remedy}"
    except Exception as error:  # the boundary of the process: every failure is an answer
        text = f"no\n{error}"
    with contextlib.suppress(OSError):
        os.write(writer, text.encode()[:4000])
    os._exit(0)


# --- the attempts; each runs in a child of its own


def _enter_user_namespace(flags: int = 0) -> None:
    uid, gid = os.geteuid(), os.getegid()
    linux.unshare(linux.CLONE_NEWUSER | flags)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    if flags & linux.CLONE_NEWNS:
        linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)


def _user_namespace() -> str:
    _enter_user_namespace()
    if not capabilities.bounding() >> capabilities.NUMBERS["SYS_ADMIN"] & 1:
        raise _MissingError("the bounding set lacks CAP_SYS_ADMIN", _CONTAINER)
    return "made one and mapped an id into it"


def _namespaces() -> str:
    _enter_user_namespace()
    for name, flag in _NAMESPACES.items():
        try:
            linux.unshare(flag)
        except OSError as error:
            raise _MissingError(f"no {name} namespace: {error}") from error
    return ", ".join(_NAMESPACES)


def _overlay() -> str:
    _enter_user_namespace(linux.CLONE_NEWNS)
    base = "/proc" if not os.path.isdir("/mnt") else "/mnt"  # any directory does: nobody else sees it
    linux.mount("tmpfs", base, "tmpfs", _MOUNT_FLAGS, "size=64k,nr_inodes=16")
    for name in ("lower", "upper", "work", "root"):
        os.mkdir(f"{base}/{name}")
    with open(f"{base}/lower/file", "w"):
        pass
    options = f"userxattr,lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work"
    linux.mount("overlay", f"{base}/root", "overlay", _MOUNT_FLAGS, options)
    os.unlink(f"{base}/root/file")  # makes a whiteout, which is what old kernels refuse
    return "a writable overlay on a tmpfs"


def _proc() -> str:
    _enter_user_namespace(linux.CLONE_NEWNS | linux.CLONE_NEWPID)

    def inside() -> str:
        flags = _MOUNT_FLAGS | linux.MS_NOEXEC
        linux.mount("proc", "/proc", "proc", flags, "hidepid=invisible")
        return f"shows {sum(name.isdigit() for name in os.listdir('/proc'))} process"

    good, detail, _ = _in_child(inside)
    if not good:
        raise _MissingError(detail)
    return detail


def _idmapped_mounts() -> Feature:
    name = "id-mapped mounts"
    if os.geteuid() != 0:
        return Feature(name, False, "only root can make them", "start the engine as root")
    return _feature(name, _idmap, "Linux 5.12 or newer, and a file system that supports them")


def _idmap() -> str:
    linux.unshare(linux.CLONE_NEWNS)
    namespace = _mapped_namespace()
    tree = linux.open_tree(linux.AT_FDCWD, "/usr", linux.OPEN_TREE_CLONE)
    linux.mount_setattr(tree, attr_set=linux.MOUNT_ATTR_IDMAP, userns_fd=namespace)
    return f"uid {os.stat('.', dir_fd=tree).st_uid} for the owner of /usr"


def _mapped_namespace() -> int:
    ready, done = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        linux.unshare(linux.CLONE_NEWUSER)
        os.write(ready[1], b"x")
        os.close(done[1])
        os.read(done[0], 1)
        os._exit(0)
    os.close(ready[1])
    if os.read(ready[0], 1) != b"x":
        raise _MissingError("no user namespace to map by", _CONTAINER)
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/{pid}/{name}", "w") as file:
            file.write("0 1000000 65536")
    namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    os.close(done[1])
    os.waitpid(pid, 0)
    return namespace


def _seccomp() -> str:
    program = seccomp.build()
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    seccomp.install(program)
    if linux.prctl(linux.PR_GET_SECCOMP) != _SECCOMP_MODE_FILTER:
        raise _MissingError("a filter was installed but is not in force")
    return f"{len(program) // 8} instructions for {linux.ARCH}, in force"


def _landlock() -> Feature:
    version = landlock.abi()
    name = "Landlock"
    if version >= landlock.STRICT_ABI:
        return Feature(name, True, f"ABI {version}: files, TCP, signals, abstract sockets")
    remedy = "Linux 6.12 or newer with CONFIG_SECURITY_LANDLOCK, and landlock in the lsm= boot parameter"
    if version == 0:
        return Feature(name, False, "not there, or switched off", remedy)
    return Feature(name, False, f"ABI {version}: too old to scope signals and abstract sockets", remedy)


def _pidfd() -> str:
    fd = linux.pidfd_open(os.getpid())
    linux.pidfd_send_signal(fd, 0)
    return "opened and signalled"


def _openat2() -> str:
    root = os.open("/usr", os.O_PATH | os.O_CLOEXEC)
    in_root = 0x10
    os.close(linux.openat2(root, "../..", os.O_PATH, resolve=in_root))
    return "resolves within a root"


def _close_range() -> str:
    linux.close_range(1 << 20, (1 << 20) + 1, linux.CLOSE_RANGE_CLOEXEC)
    return "with CLOSE_RANGE_CLOEXEC"


def _transparent() -> str:
    _enter_user_namespace(linux.CLONE_NEWNET)
    network.loopback_up()
    with network.intercept() as listener, socket.create_connection(_ANY, timeout=5):
        connection, _ = listener.accept()
        with connection:
            if connection.getsockname() != _ANY:
                raise _MissingError("a connection lost its address on the way")
    return "nftables with tproxy, a local route for every address"


def _mount_api() -> str:
    _enter_user_namespace(linux.CLONE_NEWNS)
    for call in (
        lambda: linux.open_tree(-1, "x", linux.OPEN_TREE_CLONE),
        lambda: linux.mount_setattr(-1, "x", 0),
        lambda: linux.move_mount(-1, "x", -1, "x", 0),
    ):
        try:
            call()
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.EPERM):
                raise
    return "open_tree, move_mount, mount_setattr"


def _cgroups() -> str:
    driver = cgroups.detect()
    driver.remove()
    if not driver.available:
        raise _MissingError(driver.detail, driver.remedy)
    return driver.detail
