"""Settings: read once from the environment (and a ``.env`` file), validated, then handed on.

The backend follows from them (`Settings.choose_backend`):

=========  =====================================================  ==========================================
backend    chosen when                                            what answers
=========  =====================================================  ==========================================
remote     ``RINGFENCE_URL`` and ``RINGFENCE_API_KEY`` are set    a Ringfence server elsewhere
e2b        ``E2B_API_KEY`` is set and no Ringfence URL is         E2B's cloud (or what ``E2B_API_URL`` names)
local      nothing is set                                         a Ringfence server started for this process
=========  =====================================================  ==========================================

``RINGFENCE_BACKEND`` makes the choice explicit; what it then lacks is an error, never another backend.
``RINGFENCE_BACKEND_POLICY`` names a file of rules by which sessions go to several backends
(`ringfence.core.placement`).
"""

import os
from pathlib import Path
from typing import Annotated, Literal

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from ringfence.core.errors import ConfigurationError
from ringfence.core.placement import BackendName, Policy, load_policy

# (address variable, key variable). A key is only sent to an address that comes from the same place: a
# `.env` file
# in a project that somebody else wrote must not be able to send the user's own key elsewhere.
_ADDRESS_AND_KEY = (
    ("RINGFENCE_URL", "RINGFENCE_API_KEY"),
    ("E2B_API_URL", "E2B_API_KEY"),
    ("E2B_SANDBOX_URL", "E2B_API_KEY"),
    ("E2B_DOMAIN", "E2B_API_KEY"),
)


class Settings(BaseSettings):
    """Everything the MCP server, the agents and the command line need to know to get a sandbox.

    Three timeouts, all in seconds, that never share a name:

    - `lease`: how long an unused sandbox lives; renewed at each use.
    - `exec_timeout`: how long one execution may take before it is interrupted.
    - `request_timeout`: how long one HTTP request that is not an execution may take.
    """

    model_config = SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        populate_by_name=True,
    )

    e2b_api_key: SecretStr | None = Field(None, validation_alias="E2B_API_KEY")
    e2b_domain: str | None = Field(None, validation_alias="E2B_DOMAIN")
    e2b_api_url: str | None = Field(None, validation_alias="E2B_API_URL")
    e2b_sandbox_url: str | None = Field(None, validation_alias="E2B_SANDBOX_URL")
    url: str | None = Field(None, validation_alias="RINGFENCE_URL")
    api_key: SecretStr | None = Field(None, validation_alias="RINGFENCE_API_KEY")
    backend: Literal["auto", "local", "e2b", "remote"] = Field("auto", validation_alias="RINGFENCE_BACKEND")
    backend_policy: Path | None = Field(None, validation_alias="RINGFENCE_BACKEND_POLICY")
    """A file of rules by which new sessions are placed on several backends."""
    template: str | None = Field(None, validation_alias="RINGFENCE_TEMPLATE")
    lease: int = Field(1800, validation_alias="RINGFENCE_LEASE", ge=10, le=86_400)
    exec_timeout: float = Field(60, validation_alias="RINGFENCE_EXEC_TIMEOUT", gt=0, le=86_400)
    request_timeout: float = Field(60, validation_alias="RINGFENCE_REQUEST_TIMEOUT", gt=0, le=3600)
    start_timeout: float = Field(1800, validation_alias="RINGFENCE_START_TIMEOUT", gt=0, le=86_400)
    """How long the embedded server may take to be ready, in seconds; the first start builds the template."""
    mcp_roots: Annotated[tuple[Path, ...] | None, NoDecode] = Field(
        None, validation_alias="RINGFENCE_MCP_ROOTS"
    )
    """Host directories that MCP tools may read and write, separated by ``:``. None: the working
    directory, if safe."""
    mcp_network: str = Field("packages", validation_alias="RINGFENCE_MCP_NETWORK")
    """What MCP sessions may reach: ``none``, ``packages``, ``internet``, or names and blocks by commas."""
    mcp_structured: Literal["auto", "always", "never"] = Field(
        "auto", validation_alias="RINGFENCE_MCP_STRUCTURED"
    )
    """When results carry ``structuredContent``; ``auto``: unless there is an image, which some clients
    then drop."""
    mcp_patience: float = Field(50, validation_alias="RINGFENCE_MCP_PATIENCE", gt=0, le=86_400)
    """Seconds after which a call of ``execute_code`` answers and its code goes on; clients give up at 60."""
    mcp_journal_dir: Path | None = Field(None, validation_alias="RINGFENCE_MCP_JOURNAL_DIR")
    """Where MCP sessions' journals are kept, so that sessions can be rebuilt after the server's end; None:
    in memory only."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "WARNING", validation_alias="RINGFENCE_LOG_LEVEL"
    )

    @field_validator("mcp_roots", mode="before")
    @classmethod
    def _split_roots(cls, value: object) -> object:
        if isinstance(value, str):
            try:
                return tuple(Path(part).expanduser() for part in value.split(os.pathsep) if part)
            except RuntimeError as error:  # "~" of nobody
                raise ValueError(str(error)) from error
        return value

    @field_validator("url", "e2b_api_url", "e2b_sandbox_url")
    @classmethod
    def _check_url(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("must start with http:// or https://")
        return value.rstrip("/") if value else None

    def choose_backend(self) -> BackendName:
        """The backend these settings select.

        A `ConfigurationError` says which settings contradict each other and what to do.
        """
        policy = self.policy()
        if policy is not None:
            return policy.default
        if self.backend == "auto":
            return self._derive_backend()
        self._require(self.backend, f"RINGFENCE_BACKEND is {self.backend}")
        return self.backend

    def policy(self) -> Policy | None:
        """The rules for several backends, if there are any; all that they name are configured.

        A `ConfigurationError` says what is wrong with them.
        """
        if self.backend_policy is None:
            return None
        if self.backend != "auto":
            raise ConfigurationError(
                f"RINGFENCE_BACKEND is {self.backend}, but RINGFENCE_BACKEND_POLICY has rules for several. "
                "Unset one of them."
            )
        policy = load_policy(self.backend_policy.expanduser())
        for name in sorted(policy.backends()):
            self._require(name, f"{self.backend_policy} names {name}")
        return policy

    def _require(self, backend: BackendName, said: str) -> None:
        if backend == "e2b" and self.e2b_api_key is None:
            raise ConfigurationError(f"{said}, but E2B_API_KEY is not set. Set it to your E2B key.")
        if backend == "remote":
            self._require_remote(said)

    def _derive_backend(self) -> BackendName:
        if self.url is not None:
            self._require_remote()
            return "remote"
        if self.api_key is not None:
            raise ConfigurationError(
                "RINGFENCE_API_KEY is set but RINGFENCE_URL is not, so it is unclear which server is meant. "
                "Set RINGFENCE_URL to use that server, or RINGFENCE_BACKEND=local (or e2b) to use "
                "another backend."
            )
        return "e2b" if self.e2b_api_key is not None else "local"

    def _require_remote(self, said: str = "") -> None:
        if self.url is None:
            raise ConfigurationError(f"{said}, but RINGFENCE_URL is not set. Set it to the server's address.")
        if self.api_key is None:
            raise ConfigurationError(
                "RINGFENCE_URL is set, but RINGFENCE_API_KEY is not. Set it to a key of that server."
            )


def load_settings(env_file: Path | None = Path(".env")) -> Settings:
    """Read the settings from the environment and from `env_file`; the environment wins.

    A `ConfigurationError` names the variable that is wrong (never a secret), or says that a key of the
    environment
    would be sent to an address from the file.
    """
    _check_sources(env_file)
    try:
        return Settings(_env_file=env_file)  # type: ignore[call-arg]
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in e['loc'])}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors(include_input=False)
        )
        raise ConfigurationError(f"wrong setting: {problems}") from None


def _check_sources(env_file: Path | None) -> None:
    if env_file is None or not env_file.is_file():
        return
    from_file = dotenv_values(env_file)
    for address, key in _ADDRESS_AND_KEY:
        if from_file.get(address) and not os.environ.get(address) and os.environ.get(key):
            raise ConfigurationError(
                f"{address} comes from {env_file} but {key} from the environment; a key is not sent "
                f"to an address "
                f"that a file in the working directory names. Set both in one place."
            )
