"""The package indexes this machine is configured to use, as sandboxes get to know them.

Read from the settings of pip, uv and npm. Inside, the same indexes are configured by variables, without
credentials; indexes that are files of this machine stay outside.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from ringfence.engine.templates.indexes import pip_settings

_PYPI = "https://pypi.org/simple"
_NPM = "https://registry.npmjs.org/"
_PYPI_FILES = ("files.pythonhosted.org", 443)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_CA_INSIDE = "/etc/ssl/certs/ca-certificates.crt"
_CA_VARIABLES = ("PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
_REGISTRY = re.compile(r"(?m)^\s*(?:@[\w.-]+:)?registry\s*=\s*(\S+)\s*$")


@dataclass(frozen=True)
class PackageIndexes:
    """hosts: names and ports that installing packages takes. env: variables for the processes inside."""

    hosts: tuple[tuple[str, int], ...]
    env: dict[str, str]


def package_indexes(environ: Mapping[str, str], home: Path) -> PackageIndexes:
    """What this user's pip, uv and npm use."""
    pip = pip_settings(environ, home)
    main = environ.get("UV_DEFAULT_INDEX") or environ.get("UV_INDEX_URL") or pip.get("index-url") or _PYPI
    extra_texts = [
        *pip.get("extra-index-url", "").split(),
        *environ.get("UV_EXTRA_INDEX_URL", "").split(),
        *(text.rpartition("=")[2] for text in environ.get("UV_INDEX", "").split()),
    ]
    npm_texts = _npm_registries(environ, home)
    indexes = [url for url in map(_public, [main.strip(), *extra_texts]) if url]
    registries = [url for url in map(_public, npm_texts) if url]
    env = _python_variables(indexes) | _certificate_variables(environ, pip)
    if registries and registries[0] != _NPM:
        env["NPM_CONFIG_REGISTRY"] = registries[0]
    if "trusted-host" in pip:
        env["PIP_TRUSTED_HOST"] = " ".join(pip["trusted-host"].split())
        env["UV_INSECURE_HOST"] = env["PIP_TRUSTED_HOST"]
    return PackageIndexes(_hosts([*indexes, *registries]), env)


def _npm_registries(environ: Mapping[str, str], home: Path) -> list[str]:
    chosen = environ.get("NPM_CONFIG_REGISTRY") or environ.get("npm_config_registry")
    try:
        text = Path(environ.get("NPM_CONFIG_USERCONFIG") or home / ".npmrc").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        text = ""
    main = re.search(r"(?m)^\s*registry\s*=\s*(\S+)\s*$", text)
    return [chosen or (main[1] if main else _NPM), *_REGISTRY.findall(text)]


def _public(text: str) -> str | None:
    """An index's URL without credentials; None when it is not one that is reached over the network."""
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        return None
    if url.scheme not in _DEFAULT_PORTS or not url.hostname:
        return None
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    return SplitResult(url.scheme, host + (f":{port}" if port else ""), url.path, url.query, "").geturl()


def _hosts(urls: list[str]) -> tuple[tuple[str, int], ...]:
    hosts: dict[tuple[str, int], None] = {}
    for text in urls:
        url = urlsplit(text)
        name = (url.hostname or "").lower()
        hosts[name, url.port or _DEFAULT_PORTS[url.scheme]] = None
        if name == urlsplit(_PYPI).hostname:
            hosts[_PYPI_FILES] = None
    return tuple(hosts)


def _python_variables(indexes: list[str]) -> dict[str, str]:
    if not indexes or indexes == [_PYPI]:
        return {}
    main, *extra = indexes
    env = {"PIP_INDEX_URL": main, "UV_DEFAULT_INDEX": main}
    if extra:
        env["PIP_EXTRA_INDEX_URL"] = env["UV_INDEX"] = " ".join(extra)
        env["UV_INDEX_STRATEGY"] = "unsafe-best-match"  # pip's own rule: all indexes are equals
    return env


def _certificate_variables(environ: Mapping[str, str], pip: Mapping[str, str]) -> dict[str, str]:
    """Where this machine's programs are told which authorities to trust, the sandbox's are told the same:
    many bring a list of their own and do not look at the system's.
    """
    if "cert" in pip or any(environ.get(name) for name in _CA_VARIABLES):
        return dict.fromkeys(_CA_VARIABLES, _CA_INSIDE)
    return {}
