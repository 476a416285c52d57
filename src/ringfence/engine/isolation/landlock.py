"""Landlock: a second barrier around files, signals and abstract sockets, which any process may put around
itself.

It still holds if a mistake in the mount namespace exposes a path. It does not cover UDP and never replaces
the network namespace. Kernels differ in what they can restrict (the ABI number); what a kernel does not
know is left out unless `strict` is asked for.
"""

import os
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from . import linux

EXECUTE = 1 << 0
WRITE_FILE = 1 << 1
READ_FILE = 1 << 2
READ_DIR = 1 << 3
_CHANGE_DIRECTORIES = 0x1FF0  # REMOVE_DIR, REMOVE_FILE and MAKE_* of seven kinds
REFER = 1 << 13
TRUNCATE = 1 << 14
IOCTL_DEV = 1 << 15

READ = EXECUTE | READ_FILE | READ_DIR
"""Look and run."""
ALL = READ | WRITE_FILE | _CHANGE_DIRECTORIES | REFER | TRUNCATE | IOCTL_DEV
"""Everything that Landlock knows about files."""
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV

BIND_TCP = 1 << 0
CONNECT_TCP = 1 << 1
SCOPE_ABSTRACT_UNIX_SOCKET = 1 << 0
SCOPE_SIGNAL = 1 << 1
SCOPES = SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL
"""No signals to, and no connections to abstract Unix sockets of, processes outside."""

STRICT_ABI = 6
"""Linux 6.12: everything that Ringfence asks for."""
_ABI_FILES, _ABI_NETWORK, _ABI_SCOPES = 2, 4, 6
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1
_RULE_NET_PORT = 2


@dataclass(frozen=True)
class PathRule:
    """Allow `access` (a mask, `READ` or `ALL` as a rule) at and below `path`."""

    path: str
    access: int = READ


@dataclass(frozen=True)
class PortRule:
    """Allow to bind or connect (`BIND_TCP`, `CONNECT_TCP`) TCP port `port`."""

    port: int
    access: int


def abi() -> int:
    """The kernel's Landlock ABI; 0 when it has none, or has it switched off."""
    try:
        return linux.landlock_create_ruleset(None, _CREATE_RULESET_VERSION)
    except OSError:
        return 0


def file_rights(version: int) -> int:
    """The rights over files that a kernel with this ABI can restrict.

    None for ABI 1: it refuses every rename and link between directories, which would break programs.
    """
    if version < _ABI_FILES:
        return 0
    rights = READ | WRITE_FILE | _CHANGE_DIRECTORIES | REFER
    if version >= 3:
        rights |= TRUNCATE
    if version >= 5:
        rights |= IOCTL_DEV
    return rights


def restrict(
    paths: Iterable[PathRule] | None = None,
    ports: Iterable[PortRule] | None = None,
    scopes: int = SCOPES,
    strict: bool = False,
) -> int:
    """Confine this thread and what it starts to `paths` and `ports` (None: no restriction of that kind).

    Returns the ABI that is in force, 0 for none. Needs no_new_privs.

    Raises `OSError` when `strict` and the kernel has less than `STRICT_ABI`, or when a path does not exist.
    """
    version = abi()
    if strict and version < STRICT_ABI:
        raise OSError(f"Landlock ABI {STRICT_ABI} (Linux 6.12) is needed, this kernel has {version}")
    files = file_rights(version) if paths is not None else 0
    network = BIND_TCP | CONNECT_TCP if ports is not None and version >= _ABI_NETWORK else 0
    scoped = scopes if version >= _ABI_SCOPES else 0
    if not files | network | scoped:
        return 0
    ruleset = _create(version, files, network, scoped)
    try:
        for path in paths if paths is not None and files else ():
            _allow_path(ruleset, path, files)
        for port in ports if ports is not None and network else ():
            attributes = struct.pack("=QQ", port.access & network, port.port)
            linux.landlock_add_rule(ruleset, _RULE_NET_PORT, attributes)
        linux.landlock_restrict_self(ruleset)
    finally:
        os.close(ruleset)
    return version


def _create(version: int, files: int, network: int, scoped: int) -> int:
    # A kernel refuses a structure that is longer than its own with anything in the part it does not know.
    known = 1 + (version >= _ABI_NETWORK) + (version >= _ABI_SCOPES)
    return linux.landlock_create_ruleset(struct.pack("=3Q", files, network, scoped)[: 8 * known])


def _allow_path(ruleset: int, rule: PathRule, handled: int) -> None:
    fd = os.open(rule.path, os.O_PATH | os.O_CLOEXEC)
    try:
        access = rule.access & handled
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            access &= _OF_FILES
        linux.landlock_add_rule(ruleset, _RULE_PATH_BENEATH, struct.pack("=Qi", access, fd))
    finally:
        os.close(fd)
