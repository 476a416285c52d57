"""Rules by which sessions go to one of several backends."""

from pathlib import Path

import pytest

from ringfence.core.config import Settings
from ringfence.core.errors import ConfigurationError
from ringfence.core.placement import Policy, Wish, load_policy, place

POLICY = """
version: 1
default: local
resident: [patients]
rules:
  - {use: remote, resident: true, memory_over_mb: 2048}
  - {use: e2b, memory_over_mb: 2048, template: large}
  - {use: e2b, sandboxes_over: 3}
"""


def policy(tmp_path: Path, text: str = POLICY) -> Policy:
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    return load_policy(file)


@pytest.mark.parametrize(
    ("wish", "running", "backend", "reason"),
    [
        (Wish(), 2, "local", "the policy's default"),
        (Wish(), 3, "e2b", "rule 3: more than 3 sandboxes at once"),
        (Wish(memory_mb=2048), 0, "local", "the policy's default"),
        (Wish(memory_mb=2049), 0, "e2b", "rule 2: more than 2048 MiB of memory"),
        (Wish(resident=True), 50, "local", "the policy's default"),
        (Wish(4096, resident=True), 50, "remote", "rule 1: more than 2048 MiB of memory, data that stays"),
    ],
)
async def test_the_first_rule_that_applies_wins(
    tmp_path: Path, wish: Wish, running: int, backend: str, reason: str
) -> None:
    asked = []

    async def count(name: str, enough: int) -> int:
        asked.append((name, enough))
        return running

    placement = await place(policy(tmp_path), wish, count)

    assert (placement.backend, placement.reason) == (backend, reason)
    assert placement.template == ("large" if "rule 2" in reason else None)
    assert all(question == ("local", 3) for question in asked)


async def test_data_that_must_stay_never_goes_to_the_cloud(tmp_path: Path) -> None:
    async def count(name: str, enough: int) -> int:
        return 0

    rules = "rules: [{use: remote, memory_over_mb: 9}]"
    with pytest.raises(ConfigurationError, match="must stay"):
        await place(policy(tmp_path, f"version: 1\ndefault: e2b\n{rules}"), Wish(resident=True), count)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version: 1\ndefault: cloud", "default: Input should be"),
        ("version: 1\ndefault: local\nrules: [{use: e2b}]", "rules.0: needs a condition"),
        ("version: 1\ndefault: local\nrules: [{use: e2b, resident: true}]", "rules.0: data that must stay"),
        ("version: 1\ndefault: local\nrules: [{use: e2b, memory: 3}]", "rules.0.memory: Extra inputs"),
        ("version: 1\ndefault: [", "cannot be read"),
    ],
)
def test_errors_name_the_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as raised:
        policy(tmp_path, text)
    assert "policy.yaml" in str(raised.value)


def test_files_that_stay_are_known_by_where_they_really_are(tmp_path: Path) -> None:
    (tmp_path / "patients").mkdir()
    (tmp_path / "link.csv").symlink_to(tmp_path / "patients" / "a.csv")
    kept = policy(tmp_path, f"version: 1\ndefault: local\nresident: [{tmp_path / 'patients'}]")
    assert kept.keeps(tmp_path / "patients" / "b" / "c.csv")
    assert kept.keeps(tmp_path / "link.csv")
    assert not kept.keeps(tmp_path / "other.csv")


def test_what_a_policy_names_must_be_configured(tmp_path: Path) -> None:
    policy(tmp_path)
    file = tmp_path / "policy.yaml"
    with pytest.raises(ConfigurationError, match="names e2b, but E2B_API_KEY is not set"):
        Settings(_env_file=None, backend_policy=file).choose_backend()  # type: ignore[call-arg]
    with pytest.raises(ConfigurationError, match="Unset one of them"):
        Settings(_env_file=None, backend_policy=file, backend="local").policy()  # type: ignore[call-arg]
