import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from ringfence.engine.isolation import linux, procfs

MEMORY = 768 << 20
BOOT_ID = "01234567-89ab-4cde-8f01-23456789abcd"
FILES = procfs.generate(MEMORY, 1.5, BOOT_ID, time.time() - 100)


def fields(text):
    return {
        line.split(":")[0].strip(): line.split(":")[1].strip() for line in text.splitlines() if ":" in line
    }


def test_memory_is_the_limit():
    meminfo = fields(FILES["meminfo"].decode())
    assert meminfo["MemTotal"] == meminfo["MemAvailable"] == f"{MEMORY // 1024} kB"
    assert meminfo["SwapTotal"] == "0 kB"


def test_a_part_of_a_processor_counts_as_one():
    stat = FILES["stat"].decode()
    assert re.findall(r"^cpu\d+", stat, re.M) == ["cpu0", "cpu1"]
    assert re.findall(r"^processor\s*: (\d+)", FILES["cpuinfo"].decode(), re.M) == ["0", "1"]
    one = procfs.generate(MEMORY, 0.1, BOOT_ID, 0)
    assert re.findall(r"^cpu\d+", one["stat"].decode(), re.M) == ["cpu0"]


def test_the_start_is_where_it_was_said_to_be():
    started = int(re.search(r"^btime (\d+)", FILES["stat"].decode(), re.M)[1])
    uptime = float(FILES["uptime"].split()[0])
    assert uptime == pytest.approx(100, abs=30)
    assert time.time() - started >= 99


def test_every_number_of_the_host_that_a_mask_hides_is_hidden():
    plan = procfs.mask_plan(procfs.listing("/proc"), FILES)
    masked = {mask.name for mask in plan}
    assert {"kcore", "kallsyms", "keys", "sysrq-trigger", "config.gz", "modules", "cmdline", "timer_list"} & {
        name for name, _ in procfs.listing("/proc")
    } <= masked
    assert masked.isdisjoint({"self", "thread-self", "mounts", "net"})
    assert not any(name.isdigit() for name in masked)


def test_an_entry_of_a_kernel_of_the_future_is_covered_and_a_live_one_is_not():
    plan = procfs.mask_plan(
        [("novelty", False), ("fs2", True), ("uptime", False), ("17", True)], FILES, frozenset({"uptime"})
    )
    assert plan == [procfs.Mask("novelty", False), procfs.Mask("fs2", True)]


# --- in force, seen by real programs


@pytest.fixture
def inside(as_user, user_namespace):
    """Run a function where /proc is covered, as in a sandbox: own user, mount, PID and network namespaces."""

    def run(function, covered=True):
        def work():
            user_namespace(linux.CLONE_NEWNS | linux.CLONE_NEWPID | linux.CLONE_NEWNET)
            reader, writer = os.pipe()
            if os.fork() == 0:
                try:
                    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
                    linux.mount("proc", "/proc", "proc", flags, "hidepid=invisible")
                    if covered:
                        linux.mount("tmpfs", "/sys", "tmpfs")
                        for path, contents in procfs.generate_sys(1.5).items():
                            Path("/sys", path).parent.mkdir(parents=True, exist_ok=True)
                            Path("/sys", path).write_bytes(contents)
                        with tempfile.TemporaryDirectory() as staging:
                            procfs.cover("/proc", staging, procfs.mask_plan(procfs.listing("/proc"), FILES))
                    os.write(writer, repr(function()).encode())
                except BaseException as error:
                    os.write(writer, repr(f"{type(error).__name__}: {error}").encode())
                finally:
                    os._exit(0)
            os.close(writer)
            with open(reader) as stream:
                return eval(stream.read())

        return as_user(work)

    return run


def test_the_covered_files_are_read_and_the_rest_is_empty(inside):
    names = [
        name
        for name, is_directory in procfs.listing("/proc")
        if not is_directory and name not in procfs.VISIBLE
    ]

    def look():
        return {name: Path("/proc", name).read_bytes() for name in names}

    seen = inside(look)
    assert {name: text for name, text in seen.items() if text} == {
        name: text for name, text in FILES.items() if name in names
    }


def test_the_covered_directories_are_empty_but_for_the_settings(inside):
    names = [name for name, is_directory in procfs.listing("/proc") if is_directory]

    def look():
        tree = [
            str(Path(at, name).relative_to("/proc/sys"))
            for at, _, files in os.walk("/proc/sys")
            for name in files
        ]
        return {name: os.listdir(f"/proc/{name}") for name in names if name != "sys"}, tree

    others, tree = inside(look)
    assert set(map(tuple, others.values())) <= {()}
    generated = {path.removeprefix("sys/") for path in FILES if path.startswith("sys/")}
    assert generated <= set(tree) <= generated | set(procfs.LIVE_SETTINGS)


def test_the_settings_say_what_was_generated_and_live_ones_are_the_kernels(inside):
    def look():
        def read(name):
            return Path("/proc/sys", name).read_text().strip()

        uuid = "kernel/random/uuid"
        return read("kernel/random/boot_id"), read("kernel/hostname"), read(uuid) != read(uuid)

    boot_id, hostname, fresh = inside(look)
    assert boot_id == BOOT_ID
    assert hostname == os.uname().nodename
    assert fresh


def test_nothing_of_it_can_be_written_even_by_the_root_inside(inside):
    def attempt(path):
        try:
            with open(path, "w") as file:
                file.write("1")
        except OSError as error:
            return error.strerror
        return "written"

    port = "/proc/sys/net/ipv4/ip_unprivileged_port_start"
    paths = ["/proc/meminfo", "/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", port]

    def look():
        return [attempt(path) for path in paths]

    assert set(inside(look)) <= {"Read-only file system", "No such file or directory", "Permission denied"}
    # With the layer off, the root of a network namespace can write its settings.
    assert inside(lambda: attempt(port), covered=False) == "written"


def test_without_the_masks_the_host_shows(inside):
    def look():
        return Path("/proc/meminfo").read_text().split()[1], bool(Path("/proc/cmdline").read_text())

    assert inside(look) == (f"{MEMORY // 1024}", False)
    total, cmdline = inside(look, covered=False)
    assert int(total) * 1024 != MEMORY
    assert cmdline


def test_python_and_psutil_see_the_limits(inside):
    psutil = pytest.importorskip("psutil")

    def look():
        memory = psutil.virtual_memory()
        return {
            "processors": (os.cpu_count(), psutil.cpu_count(), psutil.cpu_percent(0.01)),
            "memory": (memory.total, memory.available, psutil.swap_memory().total),
            "boot": int(psutil.boot_time()),
            "processes": psutil.pids(),
        }

    assert inside(look) == {
        "processors": (2, 2, 0.0),
        "memory": (MEMORY, MEMORY, 0),
        "boot": int(re.search(rb"btime (\d+)", FILES["stat"])[1]),
        "processes": [1],
    }
    assert inside(look, covered=False)["memory"][0] != MEMORY


@pytest.mark.parametrize(
    "command", [["free", "-b"], ["uptime"], ["ps", "-e"], ["nproc"], ["lscpu"], ["vmstat"]]
)
def test_the_usual_tools_work(inside, command):
    def look():
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return None
        return done.returncode, done.stdout, done.stderr

    answer = inside(look)
    if answer is None:
        pytest.skip(f"{command[0]} is not installed")
    code, output, errors = answer
    assert (code, errors) == (0, "")
    if command[0] == "free":
        assert str(MEMORY) in output
