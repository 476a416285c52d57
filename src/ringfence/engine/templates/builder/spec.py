"""What a template is built from, and what a build keeps from step to step."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ringfence.core.errors import TemplateError
from ringfence.engine.model import Limits
from ringfence.engine.templates.cache import digest

BASE_STEP = "base"
FINALIZE_STEP = "finalize"

Log = Callable[[str, str, str], None]
"""Called with a level (``debug``, ``info``, ``warn``, ``error``), the step's name and a line."""


class BuildError(TemplateError):
    """A build failed at `step`: ``base``, ``finalize`` or the number of the step, counted from one."""

    def __init__(self, message: str, step: str) -> None:
        super().__init__(message)
        self.step = step


@dataclass(frozen=True)
class Step:
    """One instruction. `kind` is RUN, COPY, WORKDIR, USER or ENV; `args` as E2B's API has them.

    files_hash: names the archive with the files of a COPY. force: do not take this or a later step from the
    cache.
    """

    kind: str
    args: tuple[str, ...]
    files_hash: str | None = None
    force: bool = False

    def describe(self) -> str:
        """The step as a line of a Dockerfile, for logs."""
        shown = self.args[:2] if self.kind == "COPY" else self.args[:1] if self.kind == "RUN" else self.args
        return " ".join((self.kind, *shown))


@dataclass(frozen=True)
class Credentials:
    """A user name and a password for an image registry. They are not kept."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class BuildSpec:
    """A whole build. One of `from_template` (the name in `Engine`) and `from_image` is given.

    scope: builds with the same scope share cached layers: whose build it is.
    files: where the archive of a `Step.files_hash` lies, None when it was never uploaded.
    """

    scope: str
    steps: tuple[Step, ...]
    files: Callable[[str], Path | None]
    from_template: str | None = None
    from_image: str | None = None
    credentials: Credentials | None = None
    start_cmd: str = ""
    ready_cmd: str = ""
    force: bool = False
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Context:
    """What steps leave for later steps besides files: user, working directory and variables."""

    user: str = "user"
    workdir: str | None = None
    env: tuple[tuple[str, str], ...] = ()

    def with_env(self, pairs: tuple[str, ...]) -> "Context":
        """With variables added: name, value, name, value, …"""
        if len(pairs) % 2:
            raise TemplateError("ENV takes pairs of a name and a value")
        added = dict(zip(pairs[::2], pairs[1::2], strict=True))
        return replace(self, env=tuple({**dict(self.env), **added}.items()))

    def key(self, parent: str, step: Step) -> str:
        """Names the layer of `step` on a parent's: equal when the outcome may be taken for equal."""
        return digest(parent, step.kind, *step.args, step.files_hash, self.user, self.workdir, self.env)
