"""The package indexes this machine is configured to use, as sandboxes get to know them.

Read from the settings of pip, uv and npm. Inside, the same indexes are configured by variables, without
credentials; indexes that are files of this machine stay outside.
"""

import base64
import netrc
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from ringfence.engine.egress.mirror.service import ADDRESS, Index
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
    """hosts: names and ports that installing packages takes. env: variables for the processes inside.

    mirror_env: the same for sandboxes that use the mirror. indexes: what that asks, with credentials.
    unverified: hosts whose certificates pip is told not to verify.
    """

    hosts: tuple[tuple[str, int], ...]
    env: dict[str, str]
    mirror_env: dict[str, str] = field(default_factory=dict)
    indexes: tuple[Index, ...] = field(default=(), repr=False)
    unverified: tuple[str, ...] = ()


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
    certificates = _certificate_variables(environ, pip)
    env = _python_variables(indexes) | certificates
    if registries and registries[0] != _NPM:
        env["NPM_CONFIG_REGISTRY"] = registries[0]
    if "trusted-host" in pip:
        env["PIP_TRUSTED_HOST"] = " ".join(pip["trusted-host"].split())
        env["UV_INSECURE_HOST"] = env["PIP_TRUSTED_HOST"]
    secret = _Credentials(environ, home)
    pairs = [
        *(
            Index("pypi", url, secret.of(text))
            for text in [main, *extra_texts]
            if (url := _public(text.strip()))
        ),
        *(Index("npm", url, secret.of_npm(text)) for text in npm_texts[:1] if (url := _public(text))),
    ]
    trusted = tuple(host.partition(":")[0].lower() for host in pip.get("trusted-host", "").split())
    return PackageIndexes(
        _hosts([*indexes, *registries]), env, _mirror_variables(pairs) | certificates, tuple(pairs), trusted
    )


def _mirror_variables(indexes: Sequence[Index]) -> dict[str, str]:
    count = sum(index.kind == "pypi" for index in indexes)
    env = _python_variables([f"{ADDRESS}/pypi/{number}/simple" for number in range(count)])
    if count < len(indexes):
        env["NPM_CONFIG_REGISTRY"] = f"{ADDRESS}/npm/"
    return env


class _Credentials:
    """What this user's pip and npm would identify themselves with."""

    def __init__(self, environ: Mapping[str, str], home: Path) -> None:
        self._npmrc = _npmrc(environ, home)
        self._netrc = Path(environ.get("NETRC") or home / ".netrc")

    def of(self, text: str) -> str:
        """The Authorization header for a Python index, from its address or from ``.netrc``; or nothing."""
        url = urlsplit(text.strip())
        if url.username is not None:
            return _basic(unquote(url.username), unquote(url.password or ""))
        try:
            found = netrc.netrc(self._netrc).authenticators(url.hostname or "")
        except (OSError, netrc.NetrcParseError):
            return ""
        return _basic(found[0], found[2] or "") if found else ""

    def of_npm(self, text: str) -> str:
        """The Authorization header for a registry, from its address or from ``.npmrc``; or nothing."""
        url = urlsplit(text)
        if url.username is not None:
            return _basic(unquote(url.username), unquote(url.password or ""))
        place = re.escape(f"//{url.netloc}{url.path}".rstrip("/"))
        for key, kind in (("_authToken", "Bearer"), ("_auth", "Basic")):
            if found := re.search(rf"(?m)^\s*{place}/?:{key}\s*=\s*(\S+)\s*$", self._npmrc):
                return f"{kind} {found[1]}"
        return ""


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _npm_registries(environ: Mapping[str, str], home: Path) -> list[str]:
    chosen = environ.get("NPM_CONFIG_REGISTRY") or environ.get("npm_config_registry")
    text = _npmrc(environ, home)
    main = re.search(r"(?m)^\s*registry\s*=\s*(\S+)\s*$", text)
    return [chosen or (main[1] if main else _NPM), *_REGISTRY.findall(text)]


def _npmrc(environ: Mapping[str, str], home: Path) -> str:
    try:
        return Path(environ.get("NPM_CONFIG_USERCONFIG") or home / ".npmrc").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


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
