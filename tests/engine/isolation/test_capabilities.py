import os
import subprocess
from pathlib import Path

import pytest

from ringfence.engine.isolation import capabilities, linux

KEPT = frozenset(capabilities.NUMBERS[name] for name in ("CHOWN", "KILL", "SETPCAP"))
MASK = sum(1 << number for number in KEPT)


def status_sets():
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line[:6]: int(line.split()[1], 16) for line in lines if line.startswith("Cap")}


def test_what_is_kept_is_all_there_is(as_user, user_namespace):
    def work():
        user_namespace()
        before = status_sets()
        capabilities.drop(KEPT)
        return before, status_sets()

    before, after = as_user(work)
    assert before["CapEff"] & ~MASK  # there was something to drop
    assert after == {"CapInh": 0, "CapPrm": MASK, "CapEff": MASK, "CapBnd": MASK, "CapAmb": 0}


def test_nothing_comes_back_with_a_program_run_by_root(as_user, user_namespace):
    def work(drop):
        user_namespace()
        if drop:
            capabilities.drop(KEPT)
        output = subprocess.run(["/bin/grep", "CapEff", "/proc/self/status"], capture_output=True, check=True)
        return int(output.stdout.split()[1], 16)

    assert as_user(work, True) == MASK
    assert as_user(work, False) & ~MASK  # so this test can fail


def test_what_was_dropped_cannot_be_taken_back(as_user, user_namespace):
    def work():
        user_namespace()
        capabilities.drop(KEPT)
        everything = (1 << 41) - 1
        try:
            linux.capset(everything, everything, 0)
        except PermissionError:
            return "refused"
        return "granted"

    assert as_user(work) == "refused"


def test_without_the_drop_a_mount_goes_through_and_with_it_not(as_user, user_namespace):
    def work(drop):
        user_namespace(linux.CLONE_NEWNS)
        if drop:
            capabilities.drop()
        try:
            linux.mount("tmpfs", "/mnt", "tmpfs")
        except PermissionError:
            return "refused"
        return "mounted"

    assert as_user(work, False) == "mounted"
    assert as_user(work, True) == "refused"


def test_dropping_twice_keeps_the_intersection(as_user, user_namespace):
    def work():
        user_namespace()
        capabilities.drop(KEPT)
        capabilities.drop(frozenset({capabilities.NUMBERS["KILL"]}))
        capabilities.drop(frozenset({capabilities.NUMBERS["KILL"]}))
        return capabilities.names(linux.capget()[0]), capabilities.names(capabilities.bounding())

    assert as_user(work) == (["KILL"], ["KILL"])


def test_a_capability_that_was_not_held_is_not_gained(as_user):
    def work():
        before = linux.capget()[1]
        try:
            capabilities.drop(KEPT)
        except PermissionError as error:
            return before, linux.capget()[1], str(error)
        return before, linux.capget()[1], "no error"

    before, after, error = as_user(work)
    assert (before, after) == (0, 0)
    assert "prctl" in error  # the bounding set is not ours to shrink, and that is no secret


@pytest.mark.skipif(os.geteuid() != 0, reason="su has to be possible to show that it is not any more")
def test_no_new_privs_makes_set_user_id_programs_inert(in_child, public_dir):
    program = public_dir / "id"
    program.write_bytes(Path("/usr/bin/id").read_bytes())
    program.chmod(0o4755)

    def work(inert):
        os.setgroups([])
        os.setresuid(65534, 65534, 65534)
        if inert:
            capabilities.no_new_privs()
        return subprocess.run([program, "-u"], capture_output=True, check=True).stdout.strip()

    assert in_child(work, False) == b"0"
    assert in_child(work, True) == b"65534"


def test_names_and_numbers():
    assert capabilities.NUMBERS["SYS_ADMIN"] == 21
    assert capabilities.NUMBERS["CHECKPOINT_RESTORE"] == 40
    assert capabilities.names(1 << 21 | 1 << 63) == ["SYS_ADMIN", "63"]
