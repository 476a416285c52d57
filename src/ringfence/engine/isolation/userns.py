"""User namespaces: which host ids a template's zygote and its sandboxes run as.

A template's zygote imports third-party code, so it must hold no privilege on the host: it lives in a user
namespace of its own (the *template namespace*) and every sandbox of the template in a child of that. The
zygote thus has power over its own sandboxes, which it joins with setns(2), and over nothing else.

As root the template namespace maps 2**24 private host ids, and each sandbox ("slot") gets 65,536 of them: its
uids 0 and 1000 are two host ids that no other live sandbox has. The ranges begin above those of systemd
(``nspawn``, ``DynamicUser``) and of subuid(5). An ordinary user has one id to give: it is 0 in the template
namespace and 1000 in the sandbox.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

from . import linux

FIRST_HOST_ID = 0x70000000
TEMPLATE_RANGE = 1 << 24
SLOT_RANGE = 1 << 16
SLOTS = TEMPLATE_RANGE // SLOT_RANGE - 1
_RANGES = (0xFFFFFFFE - FIRST_HOST_ID) // TEMPLATE_RANGE
MAX_TEMPLATES = _RANGES - 2
"""Templates that there can be at once; the last two ranges are for the launcher's helpers."""

Maps = list[tuple[int, int, int]]


@dataclass(frozen=True)
class IdPlan:
    """How ids are dealt out: `single` is the plan of an ordinary user, who has one id only."""

    single: bool

    def template_maps(self, index: int) -> Maps:
        """The map of the `index`-th template namespace: (inside, outside, count)."""
        if self.single:
            return [(0, 0, 1)]
        return [(0, FIRST_HOST_ID + index * TEMPLATE_RANGE, TEMPLATE_RANGE)]

    def slot_maps(self, slot: int) -> Maps:
        """The map of a sandbox's namespace into its template namespace; slots count from 1."""
        if self.single:
            return [(1000, 0, 1)]
        return [(0, slot * SLOT_RANGE, SLOT_RANGE)]

    def unpacker_maps(self) -> Maps:
        """The map of the namespace in which images are unpacked."""
        return self.template_maps(_RANGES - 1)

    def agent_maps(self, number: int) -> Maps:
        """The map of the `number`-th volume agent's namespace, which is below no template's; from 1."""
        if self.single:
            return [(1000, 0, 1)]
        first = FIRST_HOST_ID + (_RANGES - 2) * TEMPLATE_RANGE
        return [(0, first + number * SLOT_RANGE, SLOT_RANGE)]

    def owner_in_template(self, slot: int, uid: int) -> int:
        """The id that `uid` of the sandbox in `slot` has in the template namespace."""
        return 0 if self.single else slot * SLOT_RANGE + uid

    def guest_uid(self) -> int:
        """The uid PID 1 of a sandbox runs as, inside."""
        return 1000 if self.single else 0


def create(maps: Maps, parent_fd: int | None = None) -> int:
    """Create a user namespace with `maps` below the one behind `parent_fd` (default: the caller's); its
    descriptor.

    A map may only be written by a process of the parent namespace that has CAP_SETUID there
    (user_namespaces(7)), and nothing that joined a namespace can come back: so one child enters the parent,
    and its child makes the namespace.
    """
    ready_r, ready_w = os.pipe()
    done_r, done_w = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ready_r)
        os.close(done_w)
        _exit_after(lambda: _create_and_map(maps, parent_fd, ready_w, done_r), ready_w)
    os.close(ready_w)
    os.close(done_r)
    try:
        answer = os.read(ready_r, 4096).decode()
        if not answer.isdigit():
            raise OSError(f"cannot create a user namespace: {answer or 'the helper died'}")
        return os.open(f"/proc/{answer}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(done_w)
        os.close(ready_r)
        os.waitpid(child, 0)


def _exit_after(action: Callable[[], None], error_fd: int) -> None:
    try:
        action()
    except BaseException as error:
        os.write(error_fd, str(error).encode()[:4000] or b"unknown error")
        os._exit(1)
    os._exit(0)


def _create_and_map(maps: Maps, parent_fd: int | None, ready_w: int, done_r: int) -> None:
    if parent_fd is not None:
        enter(parent_fd, 0)
    made_r, made_w = os.pipe()
    grandchild = os.fork()
    if grandchild == 0:
        os.close(made_r)
        _exit_after(lambda: _make_and_wait(made_w, done_r), made_w)
    os.close(made_w)
    error = os.read(made_r, 4096).decode()
    if error != "ok":
        raise OSError(error)
    write_maps(grandchild, maps)
    os.write(ready_w, str(grandchild).encode())
    os.waitpid(grandchild, 0)


def _make_and_wait(made_w: int, done_r: int) -> None:
    linux.unshare(linux.CLONE_NEWUSER)
    os.write(made_w, b"ok")
    os.read(done_r, 1)  # until the launcher has opened our namespace and closes its end


def write_maps(pid: int, maps: Maps) -> None:
    """Write the uid and gid map of process `pid`."""
    text = "".join(f"{inside} {outside} {count}\n" for inside, outside, count in maps)
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/{pid}/{name}", "w") as file:
            file.write(text)


def enter(userns_fd: int, uid: int) -> None:
    """Join a user namespace and become `uid` (and the same gid) in it, with every capability there."""
    linux.setns(userns_fd, linux.CLONE_NEWUSER)
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    # A change of ids makes a process undumpable, and then /proc/<pid> belongs to a root that is not ours.
    linux.prctl(linux.PR_SET_DUMPABLE, 1)


def become_namespace_root() -> None:
    """For an ordinary user: enter a fresh user namespace as its root, with only the own id mapped."""
    uid, gid = os.getuid(), os.getgid()
    linux.unshare(linux.CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
