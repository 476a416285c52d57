import os
from pathlib import Path

import pytest

from ringfence.core.config import Settings, load_settings
from ringfence.core.errors import ConfigurationError


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("RINGFENCE_", "E2B_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_nothing_set_means_the_embedded_engine() -> None:
    assert load_settings().choose_backend() == "local"


@pytest.mark.parametrize(
    ("variables", "backend"),
    [
        ({"E2B_API_KEY": "e2b_00"}, "e2b"),
        ({"RINGFENCE_URL": "http://h:3000", "RINGFENCE_API_KEY": "e2b_00"}, "remote"),
        (
            {"RINGFENCE_URL": "http://h:3000", "RINGFENCE_API_KEY": "e2b_00", "E2B_API_KEY": "e2b_01"},
            "remote",
        ),
        ({"RINGFENCE_BACKEND": "local", "E2B_API_KEY": "e2b_00"}, "local"),
        ({"RINGFENCE_BACKEND": "e2b", "E2B_API_KEY": "e2b_00", "RINGFENCE_URL": "http://h"}, "e2b"),
        ({"E2B_API_KEY": "", "RINGFENCE_URL": ""}, "local"),
    ],
)
def test_choice_of_backend(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], backend: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert load_settings().choose_backend() == backend


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RINGFENCE_BACKEND": "e2b"}, "E2B_API_KEY is not set"),
        ({"RINGFENCE_BACKEND": "remote"}, "RINGFENCE_URL is not set"),
        ({"RINGFENCE_URL": "http://h"}, "RINGFENCE_API_KEY is not"),
        ({"RINGFENCE_API_KEY": "e2b_00"}, "RINGFENCE_URL is not"),
    ],
)
def test_contradictions_are_named(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=message):
        load_settings().choose_backend()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RINGFENCE_URL", "h:3000"),
        ("RINGFENCE_EXEC_TIMEOUT", "0"),
        ("RINGFENCE_LEASE", "soon"),
        ("RINGFENCE_BACKEND", "docker"),
    ],
)
def test_a_wrong_value_names_its_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=name):
        load_settings()


def test_dot_env_is_read_and_the_environment_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("E2B_API_KEY=e2b_file\nRINGFENCE_EXEC_TIMEOUT=5\n")
    monkeypatch.setenv("RINGFENCE_EXEC_TIMEOUT", "7")
    settings = load_settings()
    assert settings.e2b_api_key is not None
    assert settings.e2b_api_key.get_secret_value() == "e2b_file"
    assert settings.exec_timeout == 7


def test_a_key_of_the_environment_is_not_sent_where_a_file_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("E2B_API_URL=http://elsewhere.example\n")
    monkeypatch.setenv("E2B_API_KEY", "e2b_00")
    with pytest.raises(ConfigurationError, match="E2B_API_URL comes from"):
        load_settings()


def test_keys_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("E2B_API_KEY", "e2b_5ec3e7")
    assert "5ec3e7" not in repr(load_settings())


def test_roots_are_a_list_of_directories(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RINGFENCE_MCP_ROOTS", f"{tmp_path}{os.pathsep}/data")
    assert load_settings().mcp_roots == (tmp_path, Path("/data"))


def test_settings_can_be_made_in_a_program() -> None:
    settings = Settings(_env_file=None, backend="local", exec_timeout=3)  # type: ignore[call-arg]
    assert settings.choose_backend() == "local"
    assert settings.exec_timeout == 3
