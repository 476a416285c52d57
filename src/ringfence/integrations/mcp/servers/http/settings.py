"""Settings of the HTTP transport: read once from the environment and a ``.env`` file, like all others."""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from ringfence.core.config import Settings
from ringfence.core.errors import ConfigurationError

AuthKind = Literal["none", "tokens", "keys", "oauth"]
_LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
_MIN_TOKEN = 20
_NAMED = re.compile(r"[A-Za-z0-9_.-]{1,64}=")


class HttpSettings(BaseSettings):
    """Who may call over HTTP, under which names the server is reached, and its limits.

    tokens: ``name=token`` or ``token``, separated by commas; each is a caller with sessions of its own.
    oauth_issuer: the authorization server whose JWTs are accepted; `public_url` is then the resource.
    public_url: the address under which clients reach the server, without ``/mcp``.
    drain_s: seconds that running calls get when the server is told to end.
    """

    model_config = SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        populate_by_name=True,
    )

    auth: Literal["auto", "none", "tokens", "keys", "oauth"] = Field(
        "auto", validation_alias="RINGFENCE_MCP_AUTH"
    )
    tokens: SecretStr | None = Field(None, validation_alias="RINGFENCE_MCP_TOKENS")
    oauth_issuer: str | None = Field(None, validation_alias="RINGFENCE_MCP_OAUTH_ISSUER")
    oauth_scopes: Annotated[tuple[str, ...], NoDecode] = Field(
        (), validation_alias="RINGFENCE_MCP_OAUTH_SCOPES"
    )
    public_url: str | None = Field(None, validation_alias="RINGFENCE_MCP_PUBLIC_URL")
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (), validation_alias="RINGFENCE_MCP_ALLOWED_HOSTS"
    )
    allowed_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), validation_alias="RINGFENCE_MCP_ALLOWED_ORIGINS"
    )
    max_request_body: int = Field(
        16 * 1024**2, validation_alias="RINGFENCE_MCP_MAX_REQUEST", ge=64 * 1024, le=256 * 1024**2
    )
    max_upload: int = Field(2 * 1024**3, validation_alias="RINGFENCE_MCP_MAX_UPLOAD", ge=1024)
    max_connections: int = Field(500, validation_alias="RINGFENCE_MCP_MAX_CONNECTIONS", ge=1, le=100_000)
    drain_s: int = Field(5, validation_alias="RINGFENCE_MCP_DRAIN", ge=0, le=600)

    @field_validator("oauth_scopes", "allowed_hosts", "allowed_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part for part in re.split(r"[,\s]+", value) if part)
        return value

    @field_validator("public_url", "oauth_issuer")
    @classmethod
    def _check_url(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("must start with http:// or https://")
        return value.removesuffix("/").removesuffix("/mcp") if value else None

    def named_tokens(self) -> dict[str, str]:
        """The callers' names by their tokens. A `ConfigurationError` for one that is too easy to guess."""
        given = self.tokens.get_secret_value() if self.tokens is not None else ""
        found: dict[str, str] = {}
        for number, part in enumerate((part.strip() for part in given.split(",") if part.strip()), 1):
            match = _NAMED.match(part)
            name, token = (
                (part[: match.end() - 1], part[match.end() :]) if match else (f"token{number}", part)
            )
            if len(token) < _MIN_TOKEN or not token.isascii() or not token.isprintable():
                raise ConfigurationError(
                    f"RINGFENCE_MCP_TOKENS: the token of {name} must have at least {_MIN_TOKEN} printable "
                    f'ASCII characters; make one with: python3 -c "import secrets; '
                    f'print(secrets.token_hex(20))"'
                )
            found[token] = name
        return found


def load_http_settings(env_file: Path | None = Path(".env")) -> HttpSettings:
    """Read the settings; a `ConfigurationError` names the variable that is wrong, never its value."""
    try:
        return HttpSettings(_env_file=env_file)  # type: ignore[call-arg]
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in e['loc'])}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors(include_input=False)
        )
        raise ConfigurationError(f"wrong setting: {problems}") from None


def parse_address(text: str) -> tuple[str, int]:
    """``HOST:PORT`` (an IPv6 host in brackets), or ``PORT`` alone for loopback."""
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise ConfigurationError(f"--http wants HOST:PORT, for example 127.0.0.1:8931, not {text!r}")
    return host.strip("[]") or "127.0.0.1", int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to what listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def choose_auth(http: HttpSettings, settings: Settings, host: str) -> AuthKind:
    """How callers prove who they are. A `ConfigurationError` when the server would be open to others."""
    kind: AuthKind
    if http.auth != "auto":
        kind = http.auth
    elif http.oauth_issuer is not None:
        kind = "oauth"
    elif http.tokens is not None:
        kind = "tokens"
    elif settings.url is not None and (settings.api_key is None or not is_loopback(host)):
        kind = "keys"
    else:
        kind = "none"
    _check(kind, http, settings, host)
    return kind


def _check(kind: AuthKind, http: HttpSettings, settings: Settings, host: str) -> None:
    if kind == "none" and not is_loopback(host):
        raise ConfigurationError(
            f"{host} can be reached from other machines, so callers need a token: set RINGFENCE_MCP_TOKENS "
            "(or RINGFENCE_URL, to accept that server's API keys, or RINGFENCE_MCP_OAUTH_ISSUER), or listen "
            "on 127.0.0.1"
        )
    if kind == "tokens" and not http.named_tokens():
        raise ConfigurationError("RINGFENCE_MCP_AUTH is tokens, but RINGFENCE_MCP_TOKENS is not set")
    if kind == "keys" and settings.url is None:
        raise ConfigurationError("RINGFENCE_MCP_AUTH is keys, but RINGFENCE_URL is not set")
    if kind == "oauth" and (http.oauth_issuer is None or http.public_url is None):
        raise ConfigurationError(
            "OAuth needs RINGFENCE_MCP_OAUTH_ISSUER (the authorization server) and RINGFENCE_MCP_PUBLIC_URL "
            "(the address that tokens are issued for)"
        )


def allowed_names(http: HttpSettings, host: str, port: int) -> tuple[list[str], list[str]]:
    """The values of `Host` and of `Origin` that are answered; everything else is refused.

    A `ConfigurationError` when the server listens on all addresses and was not told its names.
    """
    hosts, origins = list(http.allowed_hosts), list(http.allowed_origins)
    if http.public_url is not None:
        parts = urlsplit(http.public_url)
        hosts.append(parts.netloc)
        origins.append(f"{parts.scheme}://{parts.netloc}")
    if is_loopback(host):
        hosts += [f"{name}:*" for name in _LOOPBACK_NAMES]
        origins += [f"http://{name}:*" for name in _LOOPBACK_NAMES]
    elif host not in ("0.0.0.0", "::", ""):  # noqa: S104 - compared, not bound
        name = f"[{host}]" if ":" in host else host
        hosts.append(f"{name}:{port}")
    if not hosts:
        raise ConfigurationError(
            "listening on all addresses needs the names under which clients reach the server: set "
            "RINGFENCE_MCP_PUBLIC_URL (https://…), or RINGFENCE_MCP_ALLOWED_HOSTS (host:port, …)"
        )
    return hosts, origins
