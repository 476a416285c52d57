"""Real cgroups where the machine has them; what it has not is written into a tree of ordinary files."""

import os
import signal
import time
from pathlib import Path

import pytest

from ringfence.engine.isolation import cgroup_base, cgroup_scope, cgroup_v1, cgroup_v2, cgroups, linux

LIMITS = {"memory_mb": 64, "cpus": 0.5, "pids": 20}
DEAD = (4194303, 1)  # an engine with this pid and start time never was


def _v1_directories():
    found = [entry for entry in cgroups.hierarchies() if entry.version == 1]
    return {name: entry.own for entry in found for name in entry.controllers}


def _v2_directory():
    return next((entry.own for entry in cgroups.hierarchies() if entry.version == 2), None)


def _usable(path):
    return path is not None and os.access(path, os.W_OK)


HAS_V1 = all(_usable(_v1_directories().get(name)) for name in ("memory", "pids", "freezer"))
HAS_V2 = _usable(_v2_directory())
needs_v1 = pytest.mark.skipif(not HAS_V1, reason="needs writable cgroup v1 hierarchies")
needs_v2 = pytest.mark.skipif(not HAS_V2, reason="needs a writable cgroup v2 hierarchy")


@pytest.fixture
def v1():
    wanted = {
        name: path
        for name, path in _v1_directories().items()
        if name in (*cgroup_v1.REQUIRED, *cgroup_v1.OPTIONAL)
    }
    driver = cgroup_v1.V1Driver(wanted)
    yield driver
    driver.remove()
    leftover = [path for path in driver._own.values() if os.path.exists(path)]
    assert leftover == []


@pytest.fixture
def v2():
    driver = cgroup_v2.V2Driver(_v2_directory(), required=frozenset())
    yield driver
    driver.remove()
    assert not os.path.exists(driver._own)


@pytest.fixture(params=[pytest.param("v1", marks=needs_v1), pytest.param("v2", marks=needs_v2)])
def driver(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def group(driver):
    made = driver.create("sandbox-1", LIMITS)
    yield made
    assert made.kill()
    assert made.remove()


def spawn(group, action):
    """Fork a process that joins the group through descriptors, as a sandbox does, and then acts."""
    fds = group.procs_fds()
    pid = os.fork()
    if pid == 0:
        try:
            linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
            for fd in fds:
                os.write(fd, b"0")
            action()
        finally:
            os._exit(3)
    for fd in fds:
        os.close(fd)
    return pid


def sleep_long():
    time.sleep(100)


def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def until(condition):
    assert cgroup_base.wait_until(condition, 10.0)


# --- both versions


def test_a_process_joins_and_is_counted(group):
    pid = spawn(group, sleep_long)
    until(lambda: group.pids() == [pid])
    assert group.stats().pids == 1
    group.kill()
    assert ended(pid) == -signal.SIGKILL
    assert group.stats().pids == 0


def test_join_self_moves_the_caller_and_its_children(group):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        group.join_self()
        child = os.fork()
        if child == 0:
            sleep_long()
        os.write(writer, str(child).encode())
        sleep_long()
    child = int(os.read(reader, 20))
    assert sorted(group.pids()) == sorted([pid, child])
    assert group.kill()
    assert ended(pid) == -signal.SIGKILL


def test_kill_ends_a_storm_of_forks(group):
    def storm():
        while True:
            try:
                os.fork()
            except OSError:
                time.sleep(0.001)

    def small_storm():
        for _ in range(4):
            os.fork()
        sleep_long()

    # Only a pids controller bounds a real one.
    pid = spawn(group, storm if isinstance(group, cgroup_v1.V1Group) else small_storm)
    until(lambda: len(group.pids()) >= 16)
    assert group.kill()
    assert group.pids() == []
    assert ended(pid) == -signal.SIGKILL


def test_a_frozen_group_stands_still_and_goes_on(group):
    reader, writer = os.pipe()

    def tick():
        while True:
            os.write(writer, b".")
            time.sleep(0.001)

    pid = spawn(group, tick)
    os.read(reader, 1)
    group.freeze()
    os.set_blocking(reader, False)
    while True:
        try:
            os.read(reader, 65536)
        except BlockingIOError:
            break
    time.sleep(0.05)
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    group.thaw()
    os.set_blocking(reader, True)
    assert os.read(reader, 1) == b"."
    group.kill()
    assert ended(pid) == -signal.SIGKILL


def test_a_frozen_group_can_be_killed(group):
    pid = spawn(group, sleep_long)
    until(lambda: group.pids() == [pid])
    group.freeze()
    assert group.kill()
    assert ended(pid) == -signal.SIGKILL


def test_a_group_with_a_process_is_not_removed(group):
    pid = spawn(group, sleep_long)
    until(lambda: group.pids() == [pid])
    assert not group.remove(timeout=0)
    group.kill()
    ended(pid)


def test_a_removed_group_answers_with_nothing(driver):
    group = driver.create("gone", LIMITS)
    assert group.remove()
    assert group.remove()
    assert group.kill()
    assert (group.pids(), group.oom_kills(), group.stats().memory_used) == ([], 0, 0)


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "x" * 200, "a\n"])
def test_only_harmless_names_become_directories(driver, name):
    with pytest.raises(ValueError, match="not a name for a cgroup"):
        driver.create(name, LIMITS)


def test_a_second_group_of_the_same_name_is_refused(driver, group):
    with pytest.raises(FileExistsError):
        driver.create(group.name, LIMITS)
    assert group.stats().memory_limit == 64 << 20


def test_the_engine_group_carries_pid_and_start_time(driver, group):
    name = f"ringfence-{os.getpid()}-{cgroup_base.start_time(os.getpid())}"
    own = driver._own.values() if isinstance(driver, cgroup_v1.V1Driver) else [driver._own]
    assert {Path(path).name for path in own} == {name}


def test_the_sweep_takes_dead_engines_and_leaves_the_living(driver, group, monkeypatch):
    dead = f"ringfence-{DEAD[0]}-{DEAD[1]}"
    monkeypatch.setattr(cgroup_base, "engine_group_name", lambda: dead)
    crashed = _another(driver)
    left = crashed.create("left", LIMITS)
    pid = spawn(left, sleep_long)
    until(lambda: left.pids() == [pid])
    assert dead in driver.sweep()  # and whatever else this machine has left
    assert ended(pid) == -signal.SIGKILL
    assert left.pids() == []
    assert dead not in driver.sweep()
    assert group.stats().memory_limit  # ours is still there


def _another(driver):
    if isinstance(driver, cgroup_v1.V1Driver):
        return cgroup_v1.V1Driver(driver._parents)
    return cgroup_v2.V2Driver(driver._parent, required=frozenset())


def test_the_sweep_asks_who_is_alive(driver, group):
    asked = []

    def alive(pid, started):
        asked.append((pid, started))
        return True

    assert driver.sweep(alive) == []
    assert (os.getpid(), cgroup_base.start_time(os.getpid())) in asked


def test_an_engine_group_that_was_removed_meanwhile_is_made_again(driver):
    driver.remove()
    again = driver.create("again", LIMITS)
    assert again.remove()


# --- version 1, with its controllers


@needs_v1
def test_memory_ends_at_the_limit_and_the_kill_is_counted(v1):
    group = v1.create("hungry", LIMITS)
    peak, events, forks = group.counter_fds()
    pid = spawn(group, lambda: bytearray(200 << 20))
    assert ended(pid) == -signal.SIGKILL
    assert group.oom_kills() == 1
    stats = group.stats()
    assert stats.memory_limit == 64 << 20
    assert 60 << 20 < stats.memory_peak <= 64 << 20
    assert b"oom_kill 1" in os.pread(events, 4096, 0)
    assert int(os.pread(peak, 64, 0)) == stats.memory_peak
    assert os.pread(forks, 4096, 0).startswith(b"max 0")
    for fd in (peak, events, forks):
        os.close(fd)
    assert group.remove()


@needs_v1
def test_without_the_group_the_same_allocation_succeeds():
    pid = os.fork()
    if pid == 0:
        bytearray(200 << 20)
        os._exit(7)
    assert ended(pid) == 7


@needs_v1
def test_processes_end_at_the_limit(v1):
    group = v1.create("many", LIMITS)

    def forks():
        made = 1
        try:
            while made < 40:
                if os.fork() == 0:
                    sleep_long()
                made += 1
        except BlockingIOError:
            os._exit(made)
        os._exit(99)

    assert ended(spawn(group, forks)) == 20
    assert group.kill()
    assert group.remove()


@needs_v1
def test_processor_time_is_counted_and_limited(v1):
    group = v1.create("busy", {**LIMITS, "cpus": 0.25})
    quota = Path(group._directories["cpu"], "cpu.cfs_quota_us").read_text().strip()
    assert quota == "25000"

    def burn():
        while time.process_time() < 0.05:
            pass
        os._exit(0)

    assert ended(spawn(group, burn)) == 0
    assert 0.04 < group.stats().cpu_seconds < 5
    assert group.stats().cpus == 0.25
    assert group.remove()


@needs_v1
def test_swap_is_part_of_the_memory_limit(v1):
    group = v1.create("noswap", LIMITS)
    file = Path(group._directories["memory"], "memory.memsw.limit_in_bytes")
    if file.exists():
        assert int(file.read_text()) == 64 << 20
    assert group.remove()


@needs_v1
def test_the_total_bounds_all_groups_together(v1):
    v1.limit_total({"memory_mb": 48})
    group = v1.create("part", {**LIMITS, "memory_mb": 1024})
    assert ended(spawn(group, lambda: bytearray(100 << 20))) == -signal.SIGKILL
    assert group.remove()


@needs_v1
def test_an_unprivileged_process_joins_through_the_descriptors(v1, as_user):
    group = v1.create("handed", LIMITS)
    fds = group.procs_fds()

    def work():
        with pytest.raises(PermissionError):
            group.join_self()
        for fd in fds:
            os.write(fd, b"0")
        return os.getpid() in group.pids()

    assert as_user(work) is True
    for fd in fds:
        os.close(fd)
    assert group.kill()
    assert group.remove()


@pytest.mark.skipif(os.geteuid() != 0, reason="root becomes an ordinary user for this")
@needs_v1
def test_an_ordinary_user_gets_no_v1_groups_and_is_told_what_to_do(as_user):
    def work():
        driver = cgroups.detect()
        group = driver.create("nothing", LIMITS)
        answers = (group.procs_fds(), group.counter_fds(), group.kill(), group.remove(), driver.sweep())
        return driver.available, driver.detail, driver.remedy, answers, vars(group.stats())["memory_limit"]

    available, detail, remedy, answers, limit = as_user(work)
    assert available is False
    assert "Permission denied" in detail
    assert "start the engine as root" in remedy
    assert answers == ([], [], True, True, [])
    assert limit == 64 << 20


@needs_v1
def test_detect_finds_version_1_here():
    driver = cgroups.detect()
    try:
        assert driver.available
        assert "memory" in driver.detail
        assert driver.remedy == ""
    finally:
        driver.remove()


# --- version 2: limits are written to a tree of files, as this needs no kernel


def _tree(path, controllers="cpuset cpu io memory pids"):
    path.mkdir(parents=True, exist_ok=True)
    (path / "cgroup.controllers").write_text(controllers)
    for name in (
        "cgroup.subtree_control",
        "cgroup.procs",
        "cgroup.type",
        "memory.max",
        "memory.swap.max",
        "pids.max",
    ):
        (path / name).write_text("")
    (path / "cpu.max").write_text("")


def test_limits_are_written_to_the_files_of_version_2(tmp_path):
    _tree(tmp_path)
    cgroup_v2.write_limits(str(tmp_path), {"memory_mb": 512, "cpus": 1.5, "pids": 77, "disk_mb": 1})
    contents = {
        name: (tmp_path / name).read_text()
        for name in ("memory.max", "memory.swap.max", "pids.max", "cpu.max")
    }
    assert contents == {
        "memory.max": str(512 << 20),
        "memory.swap.max": "0",
        "pids.max": "77",
        "cpu.max": "150000 100000",
    }


def test_what_has_no_limit_is_left_alone_and_a_tiny_quota_is_the_kernels_least(tmp_path):
    _tree(tmp_path)
    cgroup_v2.write_limits(str(tmp_path), {"cpus": 0.001})
    assert (tmp_path / "cpu.max").read_text() == "1000 100000"
    assert (tmp_path / "memory.max").read_text() == ""


def test_the_statistics_of_version_2_are_read(tmp_path):
    files = {
        "memory.current": "5000000\n",
        "memory.peak": "7000000\n",
        "memory.stat": "anon 3\ninactive_file 1000000\n",
        "memory.events": "low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\n",
        "cpu.stat": "usage_usec 2500000\nuser_usec 1\n",
        "pids.current": "4\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    stats = cgroup_v2.V2Group("x", str(tmp_path), {"memory_mb": 64, "cpus": 2.0}).stats()
    assert stats == cgroup_base.GroupStats(4000000, 1000000, 7000000, 64 << 20, 2.5, 2.0, 4, 1)


def test_controllers_are_handed_down_or_their_lack_is_an_error(tmp_path):
    _tree(tmp_path, controllers="cpu memory")
    with pytest.raises(OSError, match="has no controller for pids"):
        cgroup_v2.hand_down(str(tmp_path), cgroup_v2.REQUIRED)
    (tmp_path / "cgroup.subtree_control").write_text("memory pids")
    assert cgroup_v2.hand_down(str(tmp_path), cgroup_v2.REQUIRED) >= {"memory", "pids"}


@needs_v2
def test_a_process_can_be_forked_right_into_a_version_2_group(v2):
    group = v2.create("direct", {})
    fd = group.directory_fd()
    assert os.path.isdir(f"/proc/self/fd/{fd}")
    os.close(fd)
    assert group.remove()


# --- finding the hierarchies


def _proc(tmp_path, cgroup, mountinfo):
    (tmp_path / "cgroup").write_text(cgroup)
    (tmp_path / "mountinfo").write_text(mountinfo)
    return str(tmp_path)


def test_hierarchies_of_a_container_are_seen_from_where_they_are_mounted(tmp_path):
    proc = _proc(
        tmp_path,
        "5:cpu,cpuacct:/docker/abc/inner\n4:memory:/elsewhere\n0::/docker/abc\n",
        "31 23 0:28 /docker/abc /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
        "32 23 0:29 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "33 23 0:30 /docker/abc /sys/fs/cgroup/uni\\040fied rw shared:1 - cgroup2 cgroup2 rw\n"
        "34 23 0:31 / /proc rw - proc proc rw\n",
    )
    found = cgroups.hierarchies(proc)
    assert [(entry.own, entry.version) for entry in found] == [
        ("/sys/fs/cgroup/cpu,cpuacct/inner", 1),
        ("/sys/fs/cgroup/uni fied", 2),
    ]
    assert found[0].controllers == {"cpu", "cpuacct"}


def test_a_machine_without_cgroups_gets_a_driver_that_says_so(tmp_path):
    driver = cgroups.detect(_proc(tmp_path, "", "34 23 0:31 / /proc rw - proc proc rw\n"))
    assert not driver.available
    assert "no cgroup file system" in driver.detail
    assert driver.remedy
    with pytest.raises(OSError, match="only be frozen with cgroups"):
        driver.create("x", LIMITS).freeze()


# --- a place to divide


@needs_v2
def test_our_own_group_is_divided_and_its_processes_move_to_a_leaf(in_child):
    place = f"{_v2_directory()}/ringfence-test-{os.getpid()}"

    def work():
        os.mkdir(place)
        cgroup_base.write(f"{place}/cgroup.procs", "0")
        divided = cgroup_scope.make_room(place)
        procs = Path(place, "cgroup.procs").read_text()
        leaf = Path(place, "ringfence-engine", "cgroup.procs").read_text().split()
        again = cgroup_scope.make_room(f"{place}/ringfence-engine")
        cgroup_base.write(f"{_v2_directory()}/cgroup.procs", "0")
        return divided, procs, leaf == [str(os.getpid())], again

    try:
        assert in_child(work) == (place, "", True, place)
    finally:
        cgroup_base.remove_directory(f"{place}/ringfence-engine")
        assert cgroup_base.remove_directory(place)


@needs_v2
def test_a_group_with_other_peoples_processes_is_left_alone(in_child):
    place = f"{_v2_directory()}/ringfence-test-{os.getpid()}"
    os.mkdir(place)
    reader, writer = os.pipe()
    middle = os.fork()
    if middle == 0:  # a process whose parent is gone is nobody's family
        stranger = os.fork()
        if stranger == 0:
            cgroup_base.write(f"{place}/cgroup.procs", "0")
            os.write(writer, str(os.getpid()).encode())
            sleep_long()
        os._exit(0)
    stranger = int(os.read(reader, 20))
    os.waitpid(middle, 0)
    try:
        assert cgroup_scope.make_room(place) is None
        assert Path(place, "cgroup.procs").read_text().split() == [str(stranger)]
    finally:
        os.kill(stranger, signal.SIGKILL)
        until(lambda: cgroup_base.remove_directory(place))


def test_a_scope_is_asked_of_systemd(tmp_path, monkeypatch):
    record = tmp_path / "asked"
    fake = tmp_path / "busctl"
    fake.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" > {record}\nexit 1\n")
    fake.chmod(0o755)
    assert cgroup_scope.enter_scope(str(fake)) is False  # it refused
    pid = str(os.getpid())
    asked = record.read_text().split("\n")
    assert asked[0] == ("--system" if os.geteuid() == 0 else "--user")
    assert "StartTransientUnit" in asked
    assert asked[asked.index("PIDs") : asked.index("PIDs") + 4] == ["PIDs", "au", "1", pid]
    assert asked[asked.index("Delegate") : asked.index("Delegate") + 3] == ["Delegate", "b", "true"]


def test_without_systemd_there_is_no_scope(tmp_path):
    assert cgroup_scope.enter_scope(str(tmp_path / "absent")) is False


def test_start_times_tell_processes_apart():
    assert cgroup_base.is_alive(os.getpid(), cgroup_base.start_time(os.getpid()))
    assert not cgroup_base.is_alive(os.getpid(), 1)
    assert not cgroup_base.is_alive(*DEAD)
