import errno
import os
import resource
import signal
import time

from ringfence.engine.isolation import linux, rlimits

LIMITS = {"memory_mb": 256, "cpus": 1.0, "pids": 32, "disk_mb": 8, "inodes": 1000, "open_files": 64}


def test_every_limit_of_the_plan_is_in_force(as_user):
    def work():
        rlimits.apply(LIMITS)
        return {kind: resource.getrlimit(kind) for kind in rlimits.plan(LIMITS)}

    assert as_user(work) == rlimits.plan(LIMITS)


def test_open_files_end_at_the_limit(as_user):
    def work():
        rlimits.apply(LIMITS)
        opened = []
        try:
            while True:
                opened.append(os.dup(0))
        except OSError as error:
            return max(opened), error.errno

    assert as_user(work) == (63, errno.EMFILE)


def test_a_file_cannot_grow_without_end(as_user):
    def work(limited):
        if limited:
            rlimits.apply(LIMITS)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        fd = os.memfd_create("sparse")
        try:
            os.ftruncate(fd, 1 << 40)
        except OSError as error:
            return error.errno
        return 0

    assert as_user(work, False) == 0
    assert as_user(work, True) == errno.EFBIG


def test_processes_end_at_the_limit_of_a_user_namespace(as_user, user_namespace):
    def work():
        user_namespace()
        rlimits.apply({**LIMITS, "pids": 5})
        made = 0
        try:
            while made < 20:
                if os.fork() == 0:
                    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
                    time.sleep(60)
                    os._exit(0)
                made += 1
        except BlockingIOError:
            return made
        return made

    assert as_user(work) == 4  # and itself is the fifth


def test_a_lower_limit_that_is_in_force_already_stays(as_user):
    def work():
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        rlimits.apply(LIMITS)
        return resource.getrlimit(resource.RLIMIT_NOFILE)

    assert as_user(work) == (40, 40)


def test_memory_is_bounded_per_process_where_there_are_no_cgroups(as_user):
    def work(bounded):
        rlimits.apply(LIMITS, bound_memory=bounded)
        try:
            return len(bytearray(400 << 20)) > 0
        except MemoryError:
            return "MemoryError"

    assert as_user(work, True) == "MemoryError"
    assert as_user(work, False) is True
