"""Bodies of control-plane requests, as E2B's OpenAPI defines them; both generations of create and connect."""

import ipaddress
import re
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

_ENV_NAME = re.compile(r"^[^=\0]+$")
_MAX_ENV_BYTES = 48 * 1024
_MAX_METADATA_BYTES = 64 * 1024


def _none_as_empty(value: object) -> object:
    return {} if value is None else value


StringMap = Annotated[dict[str, str], BeforeValidator(_none_as_empty)]


class Body(BaseModel):
    """A request body: camelCase on the wire; keys this server does not know are left alone."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore")


class AutoResume(Body):
    """Whether traffic resumes a paused sandbox."""

    enabled: bool = False


class NetworkTransform(Body):
    """What is changed in a request. Keys that are not known are kept, so that they can be refused."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="allow")

    headers: StringMap = {}


class NetworkRule(Body):
    """One rule for a host. Keys that are not known are kept, so that they can be refused."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="allow")

    transform: NetworkTransform | None = None


class Network(Body):
    """Network options. Keys that are not known are kept, so that they can be refused rather than ignored."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="allow")

    allow_public_traffic: bool | None = None
    allow_out: list[str] | None = None
    deny_out: list[str] | None = None
    dns_servers: Annotated[list[ipaddress.IPv4Address], Field(max_length=10)] | None = None
    mask_request_host: str | None = Field(None, max_length=255, pattern=r"^[A-Za-z0-9.:\-_${}\[\]]+$")
    https_ports: list[int] | None = None
    rules: dict[str, list[NetworkRule]] | None = None
    egress_proxy: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check_deny(self) -> Self:
        for entry in self.deny_out or ():
            try:
                ipaddress.ip_network(entry, strict=False)
            except ValueError:
                raise ValueError("denyOut takes IP addresses and CIDR blocks only") from None
        return self

    def described(self) -> dict[str, Any]:
        """The options as they were given, for the sandbox's info."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class NetworkUpdate(Network):
    """The body of ``PUT /sandboxes/{id}/network``, which replaces all egress rules."""

    allow_internet_access: Annotated[bool | None, Field(alias="allow_internet_access")] = None


class RequestedMount(Body):
    """A volume, by its name, and where it is to be mounted."""

    name: str
    path: str


class NewVolume(Body):
    """``POST /volumes``."""

    name: str


class EntryChange(Body):
    """``PATCH /volumecontent/{id}/path``."""

    uid: int | None = None
    gid: int | None = None
    mode: int | None = None


class NewSandbox(Body):
    """``POST /v2/sandboxes``, and with `secure` also ``POST /sandboxes``. `timeout` is in seconds."""

    template_id: Annotated[str, Field(alias="templateID", min_length=1, max_length=256)]
    timeout: Annotated[int | None, Field(gt=0)] = None
    metadata: StringMap = {}
    env_vars: StringMap = {}
    secure: bool | None = None
    allow_internet_access: Annotated[bool | None, Field(alias="allow_internet_access")] = None
    network: Network | None = None
    auto_pause: bool | None = None
    auto_pause_memory: bool | None = None
    auto_resume: AutoResume | None = None
    mcp: dict[str, Any] | None = None
    iam: dict[str, Any] | None = None
    volume_mounts: list[RequestedMount] | None = None

    @model_validator(mode="after")
    def _check_maps(self) -> Self:
        _check_size("envVars", self.env_vars, _MAX_ENV_BYTES)
        _check_size("metadata", self.metadata, _MAX_METADATA_BYTES)
        for name, value in self.env_vars.items():
            if not _ENV_NAME.match(name) or "\0" in value:
                raise ValueError("envVars: a name must not be empty or hold '=', and nothing may hold a NUL")
        return self

    @model_validator(mode="after")
    def _check_lifecycle(self) -> Self:
        if self.auto_pause_memory is False:
            if not self.auto_pause:
                raise ValueError("autoPauseMemory=false needs autoPause")
            if self.auto_resume is not None and self.auto_resume.enabled:
                raise ValueError("autoPauseMemory=false cannot be combined with autoResume")
        public = self.network.allow_public_traffic if self.network else None
        if public is False and self.secure is False:
            raise ValueError("allowPublicTraffic=false needs a secure sandbox")
        return self


def _check_size(name: str, values: dict[str, str], limit: int) -> None:
    try:
        size = sum(len(key.encode()) + len(value.encode()) + 2 for key, value in values.items())
    except UnicodeEncodeError:
        raise ValueError(f"{name}: not valid Unicode") from None
    if size > limit:
        raise ValueError(f"{name}: larger than {limit} bytes together")


class Connect(Body):
    """``POST /sandboxes/{id}/connect``; the first generation requires `timeout` (seconds)."""

    timeout: Annotated[int | None, Field(gt=0)] = None
    memory: bool | None = None


class Resume(Body):
    """``POST /sandboxes/{id}/resume``, of the first SDKs. `timeout` in seconds."""

    timeout: Annotated[int | None, Field(gt=0)] = None


class Pause(Body):
    """``POST /sandboxes/{id}/pause``. memory: false keeps the files only."""

    memory: bool | None = None
    require_healthy_guest: Annotated[bool | None, Field(alias="require_healthy_guest")] = None


class NewSnapshot(Body):
    """``POST /sandboxes/{id}/snapshots``. memory: false keeps the files only, not Python's variables."""

    name: Annotated[str | None, Field(max_length=256)] = None
    memory: bool | None = None


class Fork(Body):
    """``POST /sandboxes/{id}/fork``: `count` new sandboxes that live `timeout` seconds."""

    timeout: Annotated[int, Field(gt=0)] = 15
    count: Annotated[int, Field(ge=1, le=20)] = 1


class Timeout(Body):
    """``POST /sandboxes/{id}/timeout``. Zero or less ends the sandbox at once."""

    timeout: int


class Refresh(Body):
    """``POST /sandboxes/{id}/refreshes``: keep alive for at least `duration` seconds."""

    duration: Annotated[int, Field(ge=0, le=3600)] = 15


class NewSecret(Body):
    """``POST /secrets``."""

    name: str
    value: str = Field(repr=False)
    metadata: StringMap = {}


class SecretUpdate(Body):
    """``POST /secrets/{id}``: a new value; `metadata` replaces what is there when it is given."""

    value: str = Field(repr=False)
    metadata: dict[str, str] | None = None
