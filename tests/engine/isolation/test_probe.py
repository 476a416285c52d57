import os
from pathlib import Path

import pytest

from ringfence.engine.isolation import capabilities, linux, probe, seccomp

NAMES = (
    "user namespaces",
    "namespaces",
    "tmpfs and overlay in a user namespace",
    "a new /proc in a PID namespace",
    "id-mapped mounts",
    "seccomp filters",
    "Landlock",
    "pidfd",
    "openat2",
    "close_range",
    "new mount API",
    "transparent TCP in a network namespace",
    "cgroups",
)


def by_name():
    return {feature.name: feature for feature in probe.detect_features()}


def missing():
    return {name for name, feature in by_name().items() if not feature.available}


def test_every_feature_is_told_with_evidence_and_a_remedy_when_it_is_missing(in_child):
    features = in_child(probe.detect_features)
    assert tuple(feature.name for feature in features) == NAMES
    for feature in features:
        assert feature.detail
        assert bool(feature.remedy) is not feature.available, feature


def test_an_ordinary_user_may_have_less_but_never_id_mapped_mounts(as_user):
    feature = as_user(by_name)["id-mapped mounts"]
    assert (feature.available, feature.detail) == (False, "only root can make them")


def test_nothing_is_left_behind(in_child):
    def work():
        def look():
            return os.listdir("/proc/self/fd"), Path("/proc/self/mountinfo").read_text(), os.getcwd()

        before = look()
        probe.detect_features()
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)
        return before == look()

    assert in_child(work)


def test_under_a_filter_that_refuses_the_features_are_missing(in_child):
    def work():
        capabilities.no_new_privs()
        seccomp.install(seccomp.build())
        return missing()

    assert in_child(work) >= {
        "user namespaces",
        "namespaces",
        "tmpfs and overlay in a user namespace",
        "a new /proc in a PID namespace",
        "new mount API",
    }
    assert not in_child(work) & {"pidfd", "openat2", "close_range", "seccomp filters"}


def test_a_limit_on_user_namespaces_is_named_with_its_remedy(as_user, user_namespace):
    def work():
        user_namespace(inside=1000)
        Path("/proc/sys/user/max_user_namespaces").write_text("0")
        return by_name()["user namespaces"]

    feature = as_user(work)
    assert not feature.available
    assert "No space left on device" in feature.detail
    assert feature.remedy == "set user.max_user_namespaces to 15000 or more"


def test_a_covered_proc_is_found_out(as_user, user_namespace):
    def work():
        user_namespace(linux.CLONE_NEWNS)
        linux.mount("tmpfs", "/proc/sys", "tmpfs")
        return by_name()["a new /proc in a PID namespace"]

    feature = as_user(work)
    assert not feature.available
    assert "Operation not permitted" in feature.detail
    assert "systempaths=unconfined" in feature.remedy
