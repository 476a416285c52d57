"""Bodies of the template operations, as E2B's OpenAPI defines them."""

from typing import Literal

from pydantic import Field, field_validator

from ringfence.server.models import Body

_MAX_STEPS = 200
_MAX_TEXT = 64 * 1024


class NewTemplate(Body):
    """``POST /v3/templates``. `alias` is what older SDKs say for `name`. Memory and disk in MiB."""

    name: str = ""
    alias: str = ""
    tags: list[str] = Field(default_factory=list, max_length=64)
    cpu_count: int | None = Field(None, ge=1)
    memory_mb: int | None = Field(None, ge=128, alias="memoryMB")
    min_free_disk_mb: int | None = Field(None, ge=0)

    @field_validator("tags", mode="before")
    @classmethod
    def _none_is_empty(cls, value: object) -> object:
        return [] if value is None else value


class NewStep(Body):
    """One instruction of a build."""

    type: Literal["RUN", "COPY", "WORKDIR", "USER", "ENV"]
    args: list[str] = Field(default_factory=list, max_length=1000)
    files_hash: str | None = None
    force: bool = False

    @field_validator("force", mode="before")
    @classmethod
    def _none_is_false(cls, value: object) -> object:
        return False if value is None else value


class Registry(Body):
    """``fromImageRegistry``: how to log in to the registry of an image."""

    type: str
    username: str = ""
    password: str = Field("", repr=False)


class NewBuild(Body):
    """``POST /v2/templates/{id}/builds/{buildID}``."""

    from_image: str | None = None
    from_template: str | None = None
    from_image_registry: Registry | None = None
    steps: list[NewStep] = Field(default_factory=list, max_length=_MAX_STEPS)
    start_cmd: str | None = Field(None, max_length=_MAX_TEXT)
    ready_cmd: str | None = Field(None, max_length=_MAX_TEXT)
    force: bool = False

    @field_validator("steps", mode="before")
    @classmethod
    def _none_is_empty(cls, value: object) -> object:
        return [] if value is None else value


class TemplateChange(Body):
    """``PATCH /templates/{id}``."""

    public: bool | None = None


class NewTags(Body):
    """``POST /templates/tags``: `target` is ``name:tag``."""

    target: str
    tags: list[str] = Field(min_length=1, max_length=64)


class OldTags(Body):
    """``DELETE /templates/tags``."""

    name: str
    tags: list[str] = Field(min_length=1, max_length=64)
