"""Who kernels run as, and the environment they start with."""

import os
import pwd
from dataclasses import dataclass

from ringfence.guest.config import GuestConfig

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where programs of a sandbox are."""
_DEFAULT_ID = 1000


@dataclass(frozen=True)
class User:
    """A user inside the sandbox. Ids are those of the sandbox's own user namespace."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def kernel_user(config: GuestConfig) -> User:
    """The sandbox's default user; with a single id, that id under the same name."""
    name = config.default_user
    try:
        entry = pwd.getpwnam(name)
        groups = tuple(os.getgrouplist(name, entry.pw_gid))
        user = User(name, entry.pw_uid, entry.pw_gid, groups, entry.pw_dir)
    except KeyError:
        user = User(name, _DEFAULT_ID, _DEFAULT_ID, (_DEFAULT_ID,), f"/home/{name}")
    if config.single_id:
        return User(name, os.geteuid(), os.getegid(), tuple(os.getgroups()), user.home)
    return user


def kernel_environment(config: GuestConfig, user: User) -> dict[str, str]:
    """The variables of a kernel: the sandbox's over the defaults, and E2B's own over both."""
    return {
        "PATH": PATH,
        "HOME": user.home,
        "LANG": "C.UTF-8",
        "SHELL": "/bin/bash",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        **config.variables,
        "USER": user.name,
        "LOGNAME": user.name,
    }
