"""The lowest layer of a template: ``/`` without ``/usr``, generated, with nothing of the host's that is not
needed.
"""

import os
from pathlib import Path

from ringfence.engine.templates.hostfiles import add_host_files
from ringfence.engine.templates.plan import Plan

USER_ID = 1000

_FILES = Path(__file__).parent / "files"

# Directories of root's with mode 755: mount points, and what programs of a Debian system expect.
_DIRECTORIES = (
    *("/boot", "/dev", "/media", "/mnt", "/opt", "/proc", "/srv", "/sys", "/usr"),
    *("/etc/profile.d", "/etc/opt", "/etc/default"),
    *("/etc/apt/apt.conf.d", "/etc/apt/preferences.d", "/etc/apt/sources.list.d", "/etc/apt/trusted.gpg.d"),
    *("/run/e2b", "/run/lock"),
    *(
        "/var/backups",
        "/var/cache/apt/archives/partial",
        "/var/cache/fontconfig",
        "/var/cache/man",
        "/var/lib/apt/lists/partial",
    ),
    *(
        "/var/lib/dpkg/info",
        "/var/lib/dpkg/updates",
        "/var/lib/misc",
        "/var/log",
        "/var/mail",
        "/var/opt",
        "/var/spool",
    ),
)
_LINKS = {
    "/etc/localtime": "/usr/share/zoneinfo/Etc/UTC",
    "/etc/mtab": "/proc/self/mounts",
    "/var/lock": "/run/lock",
    "/var/run": "/run",
}
# Where the host's root has its programs and libraries: links into /usr, or directories of their own on
# older systems.
_ROOT_PROGRAMS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "libo32")


def plan_skeleton(template_id: str, name: str) -> Plan:
    """The tree at ``/`` of the template `name`."""
    plan = Plan()
    for path in _DIRECTORIES:
        plan.directory(path)
    for path in ("/tmp", "/var/tmp"):  # noqa: S108 (inside a sandbox)
        plan.directory(path, 0o1777)
    for path, target in _LINKS.items():
        plan.link(path, target)
    _add_programs(plan)
    _add_processors(plan, os.cpu_count() or 1)
    add_host_files(plan)
    _add_own_files(plan)
    _add_homes(plan)
    _add_e2b_files(plan, template_id, name)
    return plan


def host_root_directories(root: Path = Path("/")) -> tuple[str, ...]:
    """The host's directories that a sandbox shows as they are: ``/usr``, and ``/bin`` and so on where they
    are not links.
    """
    own = (f"/{name}" for name in _ROOT_PROGRAMS if (root / name).is_dir() and not (root / name).is_symlink())
    return ("/usr", *own)


def _add_programs(plan: Plan, root: Path = Path("/")) -> None:
    for name in _ROOT_PROGRAMS:
        path = root / name
        if path.is_symlink():
            plan.link(f"/{name}", os.readlink(path))  # noqa: PTH115 (as text, unchanged)
        elif path.is_dir():
            plan.directory(f"/{name}")


def _add_processors(plan: Plan, count: int) -> None:
    """What of ``/sys`` by which programs count processors: lscpu, and through it joblib and scikit-learn.

    Generated: `count` processors, each a core of its own, whatever the host's real topology is.
    """
    top = "/sys/devices/system/cpu"
    for name in ("possible", "present", "online"):
        plan.file(f"{top}/{name}", f"0-{count - 1}\n".encode() if count > 1 else b"0\n", 0o444)
    for number in range(count):
        topology = {
            "core_id": str(number),
            "physical_package_id": "0",
            "thread_siblings": _cpu_mask({number}, count),
            "core_siblings": _cpu_mask(set(range(count)), count),
        }
        for name, text in topology.items():
            plan.file(f"{top}/cpu{number}/topology/{name}", f"{text}\n".encode(), 0o444)


def _cpu_mask(processors: set[int], count: int) -> str:
    """A set of processors as sysfs writes it: hexadecimal words of 32 bits, the highest first."""
    bits = sum(1 << number for number in processors)
    words = [(bits >> shift) & 0xFFFFFFFF for shift in range(0, count, 32)]
    return ",".join(f"{word:08x}" if count > 32 else f"{word:x}" for word in reversed(words))


def _add_own_files(plan: Plan) -> None:
    for path in sorted((_FILES / "etc").rglob("*")):
        if path.is_file():
            plan.file(f"/etc/{path.relative_to(_FILES / 'etc')}", path.read_bytes())
    if Path("/usr/lib/os-release").exists():
        plan.link("/etc/os-release", "../usr/lib/os-release")
    plan.file("/var/lib/dpkg/status", b"")
    plan.file("/var/lib/dpkg/available", b"")


def _add_homes(plan: Plan) -> None:
    # E2B's kernels are root's, and programs give them /root as directory; ours are the user's, who may be
    # root at any time by sudo.
    plan.directory("/root", 0o775, group=USER_ID)
    plan.directory("/home/user", 0o755, USER_ID)
    plan.directory("/code", 0o777)
    for directory, owner in (("/etc/skel", 0), ("/root", 0), ("/home/user", USER_ID)):
        for name in ("bashrc", "profile"):
            plan.file(f"{directory}/.{name}", (_FILES / "skel" / name).read_bytes(), owner=owner)


def _add_e2b_files(plan: Plan, template_id: str, name: str) -> None:
    """What E2B's own sandboxes have to be recognised by; the guest adds what depends on the sandbox."""
    plan.file("/.e2b", f"ENV_ID={name}\nTEMPLATE_ID={template_id}\nBUILD_ID={template_id}\n".encode())
    plan.file("/run/e2b/.E2B_SANDBOX", b"true", 0o444)
    plan.file("/run/e2b/.E2B_TEMPLATE_ID", template_id.encode(), 0o444)
