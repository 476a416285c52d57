"""API keys: which are accepted, whose they are, and what is kept of them."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringfence.core.errors import ConfigurationError
from ringfence.core.ids import new_api_key
from ringfence.server.keys import Keys, keep_key, load_keys
from ringfence.server.store import Store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "ringfence.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    opened = Store(path)
    yield opened
    opened.close()


def test_a_key_is_made_when_there_is_none(store: Store) -> None:
    keys, made = load_keys(store, ())
    assert made is not None
    assert keys.owner(made)
    assert keys.owner(new_api_key()) is None


def test_a_kept_key_is_accepted_later_and_no_other_is_made(store: Store) -> None:
    keys, made = load_keys(store, ())
    assert made is not None
    keep_key(store, made)
    again, another = load_keys(store, ())
    assert another is None
    assert again.owner(made) == keys.owner(made)


def test_a_key_that_was_not_kept_is_not_accepted_later(store: Store) -> None:
    _, lost = load_keys(store, ())
    keys, made = load_keys(store, ())
    assert lost is not None
    assert made != lost
    assert keys.owner(lost) is None


def test_presets_are_different_owners_and_are_not_stored(store: Store) -> None:
    one, two = new_api_key(), new_api_key()
    keys, made = load_keys(store, (one, two))
    assert made is None
    assert keys.owner(one) != keys.owner(two)
    assert list(store.keys()) == []


@pytest.mark.parametrize("preset", ["short", "x" * 19, "é" * 30, "a" * 30 + "\n"])
def test_a_weak_preset_is_refused(store: Store, preset: str) -> None:
    with pytest.raises(ConfigurationError, match="RINGFENCE_API_KEY"):
        load_keys(store, (preset,))


def test_only_the_digest_is_on_disk_and_only_for_the_owner(store: Store, path: Path) -> None:
    _, made = load_keys(store, ())
    assert made is not None
    keep_key(store, made)
    store.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for file in path.parent.iterdir():
        assert made.encode() not in file.read_bytes()


def test_a_newer_database_is_not_touched(path: Path) -> None:
    store = Store(path)
    store._database.execute("PRAGMA user_version = 99")
    store.close()
    with pytest.raises(ConfigurationError, match="newer Ringfence"):
        Store(path)


def test_no_keys_accept_nothing() -> None:
    assert Keys().owner("") is None
