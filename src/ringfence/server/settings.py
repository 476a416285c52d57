"""Settings of ``ringfence serve``: arguments, or ``RINGFENCE_…`` variables."""

from pathlib import Path
from typing import Annotated, Literal

from platformdirs import user_data_path
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from ringfence.core.places import of_the_user

DEFAULT_TEMPLATES = ("base", "code-interpreter-v1")


class ServeSettings(BaseSettings):
    """How a server is to run. Every field may also be given as a variable, e.g. ``RINGFENCE_PORT=3000``."""

    model_config = SettingsConfigDict(
        env_prefix="RINGFENCE_", env_ignore_empty=True, extra="ignore", frozen=True
    )

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(3000, ge=0, le=65535, description="Port to listen on; 0 takes any free one.")
    data_dir: Path = Field(
        default_factory=lambda: of_the_user(user_data_path, "RINGFENCE_DATA_DIR"),
        description="Where keys and state are kept.",
    )
    api_key: SecretStr | None = Field(
        None, description="API key, or several separated by commas; each is an owner of its own sandboxes."
    )
    domain: str | None = Field(
        None,
        description="Domain under which <port>-<sandbox id>.<domain> reaches sandboxes; may carry a port.",
    )
    tls_cert: Path | None = Field(None, description="Certificate chain (PEM) to serve HTTPS with.")
    tls_key: Path | None = Field(None, description="Private key (PEM) of the certificate.")
    tls: bool = Field(False, description="Serve HTTPS with a certificate made for local use.")
    plain_http: bool = Field(
        False,
        description="Serve beyond loopback without TLS: behind a proxy with TLS, or in a network you trust.",
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Further host names under which the API may be addressed, separated by commas."
    )
    templates: Annotated[tuple[str, ...], NoDecode] = Field(
        DEFAULT_TEMPLATES, description="Templates to warm and serve, separated by commas."
    )
    cache_dir: Path | None = Field(None, description="Where built templates are cached.")
    runtime_dir: Path | None = Field(
        None, description="Where sandboxes' sockets are (a short path); unset: a fresh directory."
    )
    image_dir: Path | None = Field(
        None, description="Directory whose OCI layouts and image archives templates may be built from."
    )
    image_registries: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Registries (host or host:port) that may be used though their addresses are private."
    )
    level: Literal["best-effort", "standard", "strict"] = Field(
        "best-effort", description="Isolation that must be in force, at least, for the server to start."
    )
    isolation: Literal["process", "gvisor"] = Field(
        "process", description="Tier that every sandbox has at least; gvisor needs runsc."
    )
    gvisor_platform: Literal["auto", "systrap", "ptrace", "kvm"] = Field(
        "auto", description="How gVisor catches system calls; auto: systrap where runsc has it, else ptrace."
    )
    max_sandboxes: int = Field(100, ge=1, description="Sandboxes that may run at once.")
    max_paused: int = Field(100, ge=0, description="Sandboxes that may be paused at once, beside those.")
    max_snapshots: int = Field(100, ge=0, description="Snapshots that may be kept.")
    max_volumes: int = Field(20, ge=0, description="Volumes that one owner may have.")
    volume_size_mb: int = Field(
        1024,
        ge=16,
        le=16_777_216,
        description="Size of a volume in MiB; its space is set aside when it is made.",
    )
    unbounded_volumes: bool = Field(
        False,
        description="Allow volumes without a limit where none can be enforced; they can fill the disk.",
    )
    max_memory_mb: int | None = Field(
        None, ge=64, description="Ceiling of one sandbox's memory in MiB; unset: the template's own limit."
    )
    total_memory_mb: int | None = Field(
        None,
        ge=64,
        description="Memory of all sandboxes together in MiB; unset: nine tenths of the machine's.",
    )
    total_cpus: float | None = Field(
        None,
        gt=0,
        description="Processors of all sandboxes together; unset: all, after the server's own work.",
    )
    total_pids: int | None = Field(
        None,
        ge=64,
        description="Processes and threads of all sandboxes together; unset: half of the machine's.",
    )
    rotate_after: int = Field(
        1000,
        ge=0,
        description="Replace the warmed interpreters after this many sandboxes; 0: never.",
    )
    rotate_minutes: float = Field(
        720, ge=0, description="Replace them after this many minutes too, when they were used; 0: never."
    )
    seccomp_log: bool = Field(
        False, description="Have the kernel log each refused system call (audit log, dmesg)."
    )
    fresh_kernels: bool = Field(
        False,
        description="Start each kernel as a new program, with its own hash seed and memory layout; slower.",
    )
    max_timeout: int = Field(86_400, ge=1, description="Longest lease a request may ask for, in seconds.")
    max_upload_mb: int = Field(2048, ge=1, description="Largest body of one request to a sandbox, in MiB.")
    gradual_warmup: bool = Field(
        False, description="Be ready before the templates are fully warmed, and go on warming when idle."
    )
    network_default: str = Field(
        "internet",
        description="What sandboxes may reach by default: none, packages, internet, or names and blocks.",
    )
    network_ceiling: str = Field(
        "internet", description="What no sandbox may go past, in the same form as the default."
    )
    network_allow_private: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Private, reserved or own addresses and blocks, with or without a port, that policies "
        "may allow nevertheless, separated by commas.",
    )
    network_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Fixed addresses of names, as name=address, separated by commas."
    )
    network_roots: Path | None = Field(
        None,
        description="PEM file of authorities to trust, beside this machine's, where headers are changed.",
    )
    network_connections: int = Field(256, ge=1, description="Connections a sandbox may have at a time.")
    network_connections_per_second: int = Field(
        100, ge=1, description="New connections a sandbox may open per second, on average."
    )
    package_cache_mb: int = Field(
        4096,
        ge=0,
        description="Size of the cache of packages that sandboxes share, in MiB; 0: they use the indexes "
        "directly.",
    )
    ready_fd: int | None = Field(
        None, ge=0, description="Descriptor that gets one line of JSON when the server is ready."
    )
    lifeline_fd: int | None = Field(
        None,
        ge=0,
        description="Descriptor whose end of file stops the server; its owner holds the other end.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "WARNING"

    @field_validator(
        "allowed_hosts",
        "templates",
        "image_registries",
        "network_allow_private",
        "network_hosts",
        mode="before",
    )
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("host")
    @classmethod
    def _strip_brackets(cls, value: str) -> str:
        return value.removeprefix("[").removesuffix("]")

    def preset_keys(self) -> tuple[str, ...]:
        """The API keys given by the operator; empty when the server is to make one."""
        if self.api_key is None:
            return ()
        parts = self.api_key.get_secret_value().split(",")
        return tuple(part.strip() for part in parts if part.strip())
