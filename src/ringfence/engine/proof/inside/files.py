"""Attacks on files: the host's, the template's, those of PID 1, and devices."""

import os
import stat
from contextlib import suppress

from ringfence.engine.proof.inside import native
from ringfence.engine.proof.inside.harness import Facts, GotThrough, NotApplicable, attack

CATEGORY = "files"
_ROOT = "root directory of its own"
_TEMPLATE = "read-only template, writable layer"
_DEV = "minimal /dev"
_NUMBERS_TRIED = 300


def _read(path: str) -> bytes:
    with suppress(OSError), open(path, "rb") as file:
        return file.read(4096)
    return b""


def _ways_to(path: str) -> list[str]:
    up = "../" * 24
    return [
        path,
        f"/proc/1/root{path}",
        f"/proc/self/root{path}",
        f"/proc/1/cwd/{up}{path}",
        f"/proc/self/cwd/{up}{path}",
        f"/tmp/{up}{path}",
        f"/usr/{up}{path}",
        f"/mnt{path}",
        f"/host{path}",
        f"/oldroot{path}",
        f"/old{path}",
    ]


@attack(CATEGORY, _ROOT)
def a_host_file_is_out_of_reach(facts: Facts) -> str:
    """By its path, upward paths, magic links, and symbolic links to all of these."""
    for number, way in enumerate(_ways_to(facts["marker"])):
        link = f"/tmp/link-{os.getpid()}-{number}"
        with suppress(OSError):
            os.symlink(way, link)
        found = _read(way) or _read(link)
        with suppress(OSError):
            os.unlink(link)
        if found.startswith(facts["token"].encode()):
            raise GotThrough(f"read {way}")
    return f"{facts['marker']} is not there"


@attack(CATEGORY, _ROOT)
def host_directories_are_not_there(facts: Facts) -> str:
    """Directories of the engine and the host's users."""
    seen = [path for path in facts["host_directories"] if os.path.exists(path)]
    if seen:
        raise GotThrough(f"seen: {', '.join(seen)}")
    return f"{len(facts['host_directories'])} directories of the host are not there"


@attack(CATEGORY, _ROOT)
def a_leaked_descriptor_leads_outside(facts: Facts) -> str:
    """CVE-2024-21626 of runc: a directory that was left open."""
    kinds = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            mode = os.fstat(int(name)).st_mode
            if (
                int(name) > 2
                and stat.S_ISDIR(mode)
                and not os.readlink(f"/proc/self/fd/{name}").startswith("/proc")
            ):
                raise GotThrough(f"descriptor {name} is the directory {os.readlink(f'/proc/self/fd/{name}')}")
            for up in ("../" * depth for depth in range(1, 12)):
                with suppress(OSError):
                    descriptor = os.open(up + facts["marker"].lstrip("/"), os.O_RDONLY, dir_fd=int(name))
                    os.close(descriptor)
                    raise GotThrough(f"descriptor {name} leads to {facts['marker']}")
            kinds.append(stat.filemode(mode)[0])
    return f"descriptors by kind: {''.join(sorted(kinds))}"


@attack(CATEGORY, _ROOT)
def a_chroot_escape(facts: Facts) -> str:
    """The classic: chroot into a directory below an open one, then walk up."""
    return native.refuse_all([("chroot", b"/tmp"), ("pivot_root", b"/nowhere", b"/nowhere")])


@attack(CATEGORY, "seccomp")
def a_file_handle_of_the_host(facts: Facts) -> str:
    """Shocker: inode numbers of the host's file system, opened by handle."""
    return native.refuse_all(
        [("open_by_handle_at", -1, 0, 0), ("name_to_handle_at", -1, 0, 0, 0, 0), ("fanotify_init", -1, 0)]
    )


def _append(path: str) -> None:
    with open(path, "ab") as file:
        file.write(b"\n#")


def _link(path: str) -> None:
    os.link(path, path + ".link")


def _move(path: str) -> None:
    os.rename(path, path + ".moved")
    os.rename(path + ".moved", path)


@attack(CATEGORY, _TEMPLATE, who={"root", "user"})
def the_template_is_written_to(facts: Facts) -> str:
    """Writes, renames and links; the host looks at the template's files afterwards."""
    tried = 0
    for path in facts["template_files"]:
        for way in (_append, _link, _move):
            with suppress(OSError):
                way(path)
            tried += 1
    return f"{tried} changes tried; at most the sandbox's own layer changed"


@attack(CATEGORY, "private host ids", who={"root"})
def a_device_is_made(facts: Facts) -> str:
    """Disks and memory by mknod, as the sandbox's root."""
    opened = []
    for kind, major, minor in (
        (stat.S_IFBLK, 8, 0),
        (stat.S_IFBLK, 253, 0),
        (stat.S_IFBLK, 254, 0),
        (stat.S_IFCHR, 1, 1),
        (stat.S_IFCHR, 1, 5),
    ):
        path = f"/tmp/device-{os.getpid()}-{major}-{minor}"
        with suppress(OSError):
            os.mknod(path, kind | 0o666, os.makedev(major, minor))
            with suppress(OSError):
                os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
                opened.append(f"{major}:{minor}")
            os.unlink(path)
    if opened:
        raise GotThrough(f"made and opened devices {', '.join(opened)}")
    return "no device could be made and opened"


@attack(CATEGORY, _DEV)
def the_hosts_devices_are_there(facts: Facts) -> str:
    """Anything in /dev but the harmless ones."""
    harmless = {
        "null",
        "zero",
        "full",
        "random",
        "urandom",
        "tty",
        "ptmx",
        "pts",
        "shm",
        "fd",
        "stdin",
        "stdout",
        "stderr",
        "mqueue",
        "core",
    }
    others = sorted(set(os.listdir("/dev")) - harmless)
    if others:
        raise GotThrough(f"/dev has {', '.join(others[:10])}")
    return "only harmless devices in /dev"


@attack(CATEGORY, "no_new_privs, nosuid")
def a_setuid_program_gives_power(facts: Facts) -> str:
    """no_new_privs is set for good, so setuid programs change nothing."""
    if native.call("prctl", 39, 0, 0, 0, 0) != 1:  # PR_GET_NO_NEW_PRIVS
        raise GotThrough("no_new_privs is not set")
    with suppress(OSError):
        native.call("prctl", 38, 0, 0, 0, 0)
        raise GotThrough("no_new_privs could be cleared")
    return "no_new_privs is set and cannot be cleared"


@attack(CATEGORY, _ROOT)
def mounts_name_the_hosts_paths(facts: Facts) -> str:
    """What mountinfo tells about the host."""
    with open("/proc/self/mountinfo") as file:
        text = file.read()
    named = [path for path in facts["private_paths"] if path in text]
    if named:
        raise GotThrough(f"mountinfo names {', '.join(named)}")
    return "mountinfo names no path of the engine"


@attack(CATEGORY, "masked /proc")
def magic_links_of_pid_1(facts: Facts) -> str:
    """The root, directory, memory, environment and descriptors of the sandbox's first process."""
    if os.getpid() == 1:
        raise NotApplicable("it is PID 1 itself")
    told = []
    for name in ("root", "cwd", "exe", "mem", "environ", "fd", "maps", "map_files"):
        path = f"/proc/1/{name}"
        with suppress(OSError):
            if name in ("fd", "map_files", "root", "cwd"):
                os.listdir(path)
            else:
                with open(path, "rb") as file:
                    file.read(1)
            told.append(name)
    told += _opened_descriptors()
    if told:
        raise GotThrough(f"can be read: {', '.join(told)}")
    return "nothing of /proc/1 that leads anywhere can be opened"


@attack(CATEGORY, "masked /proc")
def threads_of_pid_1_have_a_directory(facts: Facts) -> str:
    """Threads are not listed in /proc, but have a directory there, which no mask covers; through it envd,
    which is PID 1, would give away the map of its own memory.
    """
    first = facts.get("first_process", 1)
    for number in range(first + 1, first + _NUMBERS_TRIED):
        with suppress(OSError), open(f"/proc/{number}/status") as file:
            if f"\nTgid:\t{first}\n" in file.read():
                raise GotThrough(f"/proc/{number} is a thread of process {first}")
    return f"none of {_NUMBERS_TRIED} numbers is a thread of process {first}"


def _opened_descriptors() -> list[str]:
    """Which files of PID 1 can be opened by its descriptors, but the null device."""
    opened = []
    with suppress(OSError):
        for number in sorted(os.listdir("/proc/1/fd")):
            with suppress(OSError):
                target = os.readlink(f"/proc/1/fd/{number}")
                if target != "/dev/null":
                    os.close(os.open(f"/proc/1/fd/{number}", os.O_RDONLY | os.O_NONBLOCK))
                    opened.append(f"fd/{number} ({target})")
    return opened
