"""Settings for pip, as users have them, reach uv; uv's own win; what would change the result is dropped."""

from pathlib import Path

import pytest

from ringfence.core.config import load_settings
from ringfence.core.errors import ConfigurationError
from ringfence.engine.settings import default_cache_dir
from ringfence.engine.templates.indexes import pip_settings, user_home, uv_environment
from ringfence.server.settings import ServeSettings


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory without settings; the system's own pip.conf is kept out by a file of the test's."""
    monkeypatch.setattr("ringfence.engine.templates.indexes.SYSTEM_PIP_CONF", tmp_path / "system.conf")
    monkeypatch.setattr("ringfence.engine.templates.indexes.SYSTEM_UV_TOML", tmp_path / "system.toml")
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def write_pip_conf(home: Path, text: str) -> None:
    path = home / ".config" / "pip" / "pip.conf"
    path.parent.mkdir(parents=True)
    path.write_text(text)


def test_nothing_configured_adds_no_index(home: Path) -> None:
    env = uv_environment({"PATH": "/bin", "XDG_CONFIG_DIRS": "/nowhere"}, home)

    assert env["PATH"] == "/bin"
    assert not {"UV_DEFAULT_INDEX", "UV_INDEX", "UV_FIND_LINKS", "UV_NO_INDEX", "SSL_CERT_FILE"} & env.keys()
    assert env["UV_PYTHON_DOWNLOADS"] == "never"


def test_the_users_pip_conf_is_translated(home: Path) -> None:
    write_pip_conf(
        home,
        "[global]\nindex-url = https://u:p@mirror.example/simple\n"
        "extra-index-url = https://a.example/simple\n    https://b.example/simple\n"
        "cert = /etc/corp.pem\ntrusted-host = a.example\n[install]\nfind-links = /srv/wheels\n",
    )

    env = uv_environment({"XDG_CONFIG_DIRS": "/nowhere"}, home)

    assert env["UV_DEFAULT_INDEX"] == "https://u:p@mirror.example/simple"
    assert env["UV_INDEX"] == "https://a.example/simple https://b.example/simple"
    assert env["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert env["UV_FIND_LINKS"] == "/srv/wheels"
    assert env["SSL_CERT_FILE"] == "/etc/corp.pem"
    assert env["UV_INSECURE_HOST"] == "a.example"


def test_pips_variables_beat_its_files(home: Path) -> None:
    write_pip_conf(home, "[global]\nindex-url = https://file.example/simple\n")
    environ = {
        "PIP_INDEX_URL": "https://variable.example/simple",
        "PIP_NO_INDEX": "0",
        "XDG_CONFIG_DIRS": "/nowhere",
    }

    assert uv_environment(environ, home)["UV_DEFAULT_INDEX"] == "https://variable.example/simple"
    assert "UV_NO_INDEX" not in uv_environment(environ, home)


def test_a_chosen_pip_file_is_the_strongest_and_dev_null_means_none(home: Path, tmp_path: Path) -> None:
    write_pip_conf(home, "[global]\nindex-url = https://file.example/simple\n")
    (tmp_path / "chosen.conf").write_text("[global]\nindex-url = https://chosen.example/simple\n")

    chosen = {"PIP_CONFIG_FILE": str(tmp_path / "chosen.conf"), "XDG_CONFIG_DIRS": "/nowhere"}

    assert pip_settings(chosen, home) == {"index-url": "https://chosen.example/simple"}
    assert pip_settings({"PIP_CONFIG_FILE": "/dev/null"}, home) == {}


def test_settings_made_for_uv_win(home: Path) -> None:
    write_pip_conf(home, "[global]\nindex-url = https://file.example/simple\n")

    env = uv_environment({"UV_DEFAULT_INDEX": "https://uv.example/simple"}, home)

    assert env["UV_DEFAULT_INDEX"] == "https://uv.example/simple"

    (home / ".config" / "uv").mkdir()
    (home / ".config" / "uv" / "uv.toml").write_text("")
    assert "UV_DEFAULT_INDEX" not in uv_environment({}, home)


def test_a_broken_pip_conf_sets_nothing(home: Path) -> None:
    write_pip_conf(home, "not an ini file\n")

    assert pip_settings({"XDG_CONFIG_DIRS": "/nowhere"}, home) == {}


def test_what_would_change_the_result_is_dropped(home: Path) -> None:
    misleading = {"VIRTUAL_ENV": "/v", "PYTHONPATH": "/p", "UV_OVERRIDE": "/o", "UV_LINK_MODE": "symlink"}

    assert not misleading.keys() & uv_environment(misleading, home).keys()


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: int) -> object:
        raise KeyError

    for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "RINGFENCE_CACHE_DIR", "RINGFENCE_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert not user_home().exists()
    with pytest.raises(ConfigurationError, match="RINGFENCE_CACHE_DIR"):
        default_cache_dir()
    with pytest.raises(ConfigurationError, match="RINGFENCE_DATA_DIR"):
        ServeSettings()
    with pytest.raises(ConfigurationError, match="RINGFENCE_MCP_ROOTS"):
        monkeypatch.setenv("RINGFENCE_MCP_ROOTS", "~/data")
        load_settings(None)
