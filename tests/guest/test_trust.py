"""Where a sandbox's programs find the authority, and what is left alone."""

import os
import resource
from pathlib import Path

import pytest

from ringfence.guest.trust import BUNDLE, forget, trust

OURS = "-----BEGIN CERTIFICATE-----\nours\n-----END CERTIFICATE-----\n"
NEXT = OURS.replace("ours", "next")
THEIRS = b"-----BEGIN CERTIFICATE-----\ntheirs\n-----END CERTIFICATE-----\n"
CERTIFI = "lib/python3.11/site-packages/certifi/cacert.pem"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for path in (BUNDLE[1:], f"usr/local/{CERTIFI}", f"home/user/.local/{CERTIFI}", f"opt/mine/{CERTIFI}"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_bytes(THEIRS)
    return tmp_path


def having(root: Path, text: str) -> set[str]:
    return {
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file() and text.encode() in path.read_bytes()
    }


def test_the_users_own_files_are_left_alone(root: Path) -> None:
    trust(OURS, root=root)
    assert having(root, OURS) == {BUNDLE[1:], f"usr/local/{CERTIFI}", f"opt/mine/{CERTIFI}"}


def test_nothing_is_made_in_a_volume(tmp_path: Path) -> None:
    (tmp_path / "etc/ssl").mkdir(parents=True)
    trust(OURS, ["/etc/ssl"], tmp_path)
    assert list((tmp_path / "etc/ssl").iterdir()) == []


@pytest.mark.parametrize("volume", ["/opt", "/opt/mine", "/opt/mine/lib/python3.11/site-packages/certifi"])
def test_a_volume_is_left_alone(root: Path, volume: str) -> None:
    trust(OURS, [volume], root)
    assert having(root, OURS) == {BUNDLE[1:], f"usr/local/{CERTIFI}"}


def test_a_volume_behind_a_link_is_left_alone(root: Path) -> None:
    (root / "data").mkdir()
    os.rename(root / "opt/mine", root / "data/mine")
    (root / "opt/mine").symlink_to("../data/mine")
    trust(OURS, ["/data"], root)
    assert having(root, OURS) == {BUNDLE[1:], f"usr/local/{CERTIFI}"}


def test_a_copy_is_rid_of_it(root: Path) -> None:
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    trust(OURS, root=root)
    trust(NEXT, root=root)
    assert having(root, OURS) == set()
    assert len(having(root, NEXT)) == 3
    forget(root=root)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_a_bundle_that_was_made_is_taken_back(tmp_path: Path) -> None:
    trust(OURS, root=tmp_path)
    assert having(tmp_path, OURS) == {BUNDLE[1:]}
    forget(root=tmp_path)
    assert not (tmp_path / BUNDLE[1:]).exists()


def test_what_somebody_added_afterwards_stays(root: Path) -> None:
    trust(OURS, root=root)
    with (root / BUNDLE[1:]).open("ab") as file:
        file.write(b"# mine\n")
    trust(NEXT, root=root)
    forget(root=root)
    assert (root / BUNDLE[1:]).read_bytes() == THEIRS + b"# mine\n"


def test_a_full_disk_spoils_no_bundle(root: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(THEIRS) + 40, limits[1]))
    try:
        trust(OURS, root=root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (root / BUNDLE[1:]).read_bytes() == THEIRS
