"""Where packages come from: what the user configured for pip is passed on to uv, which does not read pip's
files.

Settings made for uv itself always win. Everything is handed over in the environment, never in an argument,
so that credentials in an index URL do not show in the list of processes.
"""

import configparser
import os
import sys
from collections.abc import Mapping
from pathlib import Path

# uv settings that would change what is installed, or run code of a package at build time, or install
# elsewhere.
_DROPPED = frozenset(
    {
        "CONDA_PREFIX",
        "PYTHONHOME",
        "PYTHONPATH",
        "UV_BREAK_SYSTEM_PACKAGES",
        "UV_BUILD_CONSTRAINT",
        "UV_COMPILE_BYTECODE",
        "UV_CONSTRAINT",
        "UV_EXCLUDE",
        "UV_EXCLUDE_NEWER",
        "UV_LINK_MODE",
        "UV_NO_BINARY",
        "UV_NO_BINARY_PACKAGE",
        "UV_NO_VERIFY_HASHES",
        "UV_OVERRIDE",
        "UV_PRERELEASE",
        "UV_PROJECT",
        "UV_PROJECT_ENVIRONMENT",
        "UV_PYTHON",
        "UV_RESOLUTION",
        "UV_SYSTEM_PYTHON",
        "UV_TORCH_BACKEND",
        "UV_WORKING_DIRECTORY",
        "VIRTUAL_ENV",
    }
)
SYSTEM_PIP_CONF = Path("/etc/pip.conf")
SYSTEM_UV_TOML = Path("/etc/uv/uv.toml")

_UV_INDEX_SETTINGS = (
    "UV_DEFAULT_INDEX",
    "UV_INDEX",
    "UV_INDEX_URL",
    "UV_EXTRA_INDEX_URL",
    "UV_FIND_LINKS",
    "UV_NO_INDEX",
)


def user_home() -> Path:
    """The user's home directory; for one who has none (in a container, say), a place with no files."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/nonexistent")


def uv_environment(environ: Mapping[str, str], home: Path) -> dict[str, str]:
    """The environment to run uv in: `environ` without what would lead it astray, with pip's index settings
    translated.
    """
    env = {name: value for name, value in environ.items() if name not in _DROPPED}
    env.update(UV_PYTHON_DOWNLOADS="never", UV_NO_PROGRESS="1", NO_COLOR="1")
    pip = pip_settings(environ, home)
    if not _uv_is_configured(environ, home):
        env.update(_as_uv_indexes(pip))
    if "cert" in pip and "SSL_CERT_FILE" not in env:
        env["SSL_CERT_FILE"] = pip["cert"]
    if "trusted-host" in pip:
        env.setdefault("UV_INSECURE_HOST", " ".join(pip["trusted-host"].split()))
    return env


def pip_settings(environ: Mapping[str, str], home: Path) -> dict[str, str]:
    """What pip would use: its files from the system's to the user's, then ``PIP_*`` variables. Lists are
    space-separated.
    """
    settings: dict[str, str] = {}
    for path in _pip_files(environ, home):
        settings.update(_read_pip_file(path))
    for name in ("index-url", "extra-index-url", "find-links", "no-index", "cert", "trusted-host"):
        if value := environ.get("PIP_" + name.upper().replace("-", "_")):
            settings[name] = value
    return settings


def _pip_files(environ: Mapping[str, str], home: Path) -> list[Path]:
    """The configuration files of pip, weakest first (pip's documentation, "Configuration", "Location")."""
    chosen = environ.get("PIP_CONFIG_FILE")
    if chosen == os.devnull:
        return []
    system = [
        Path(entry) / "pip" / "pip.conf"
        for entry in environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":")
        if entry
    ]
    user = Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf"
    files = [*reversed(system), SYSTEM_PIP_CONF, home / ".pip" / "pip.conf", user]
    if prefix := environ.get("VIRTUAL_ENV"):
        files.append(Path(prefix) / "pip.conf")
    return [*files, Path(chosen)] if chosen else files


def _read_pip_file(path: Path) -> dict[str, str]:
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, configparser.Error):
        return {}  # pip would say so itself; here it only means that the file sets nothing
    settings: dict[str, str] = {}
    for section in ("global", "install"):
        if parser.has_section(section):
            settings.update(parser.items(section))
    return settings


def _uv_is_configured(environ: Mapping[str, str], home: Path) -> bool:
    if any(environ.get(name) for name in _UV_INDEX_SETTINGS):
        return True
    user = Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "uv" / "uv.toml"
    chosen = environ.get("UV_CONFIG_FILE")
    return bool(chosen) or user.is_file() or SYSTEM_UV_TOML.is_file()


def _as_uv_indexes(pip: Mapping[str, str]) -> dict[str, str]:
    env: dict[str, str] = {}
    if "index-url" in pip:
        env["UV_DEFAULT_INDEX"] = pip["index-url"].strip()
    if "extra-index-url" in pip:
        env["UV_INDEX"] = " ".join(pip["extra-index-url"].split())
        env["UV_INDEX_STRATEGY"] = "unsafe-best-match"  # pip's own rule: all indexes are equals
    if "find-links" in pip:
        env["UV_FIND_LINKS"] = ",".join(pip["find-links"].split())
    if pip.get("no-index", "").strip().lower() in {"1", "true", "yes", "on"}:
        env["UV_NO_INDEX"] = "1"
    return env


if __name__ == "__main__":  # python indexes.py PROGRAM ARGUMENT...: run it in that environment
    os.execvpe(sys.argv[1], sys.argv[1:], uv_environment(os.environ, user_home()))  # noqa: S606
