"""Which of several backends a new session goes to: rules in a file, of which the first that applies wins.

::

    version: 1
    default: local
    resident: [~/patients]          # files below these never go to E2B's cloud
    rules:
      - {use: local, resident: true}
      - {use: e2b, memory_over_mb: 2048, template: large}
      - {use: e2b, sandboxes_over: 20}

A backend that the rules choose and that does not answer is an error: no session is ever moved to another one.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ringfence.core.errors import ConfigurationError

BackendName = Literal["local", "e2b", "remote"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Rule(_Part):
    """Where a session goes when all the conditions that are given hold.

    memory_over_mb: it asks for more memory than this, MiB. sandboxes_over: more sandboxes than this would run
    on the default backend with it (a burst). resident: its data must (or need not) stay with the operator.
    template: the template to use there instead of ``RINGFENCE_TEMPLATE``.
    """

    use: BackendName
    memory_over_mb: int | None = Field(None, ge=1)
    sandboxes_over: int | None = Field(None, ge=0)
    resident: bool | None = None
    template: str | None = None

    @model_validator(mode="after")
    def _has_a_condition(self) -> "Rule":
        if self.memory_over_mb is None and self.sandboxes_over is None and self.resident is None:
            raise ValueError("needs a condition: memory_over_mb, sandboxes_over or resident")
        if self.use == "e2b" and self.resident:
            raise ValueError("data that must stay cannot go to e2b")
        return self

    def describe(self) -> str:
        """The conditions, in words."""
        parts = []
        if self.memory_over_mb is not None:
            parts.append(f"more than {self.memory_over_mb} MiB of memory")
        if self.sandboxes_over is not None:
            parts.append(f"more than {self.sandboxes_over} sandboxes at once")
        if self.resident is not None:
            parts.append("data that stays" if self.resident else "data that need not stay")
        return ", ".join(parts)


class Policy(_Part):
    """A file of rules. resident: directories whose files only go to sessions that are not in E2B's cloud."""

    version: Literal[1]
    default: BackendName
    rules: tuple[Rule, ...] = ()
    resident: tuple[Path, ...] = ()

    @field_validator("resident")
    @classmethod
    def _resolve(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        return tuple(path.expanduser().resolve() for path in value)

    def backends(self) -> set[BackendName]:
        """Every backend that may be chosen."""
        return {self.default, *(rule.use for rule in self.rules)}

    def keeps(self, path: Path) -> bool:
        """Whether the file is one of those that must stay."""
        real = path.resolve()
        return any(real.is_relative_to(directory) for directory in self.resident)


@dataclass(frozen=True)
class Wish:
    """What is asked of a session: memory in MiB (None: the template's), and whether its data must stay."""

    memory_mb: int | None = None
    resident: bool = False


@dataclass(frozen=True)
class Placement:
    """Where a session goes, and why; `template` None is the settings'."""

    backend: BackendName
    reason: str
    template: str | None = None


CountSandboxes = Callable[[BackendName, int], Awaitable[int]]
"""How many sandboxes run on a backend; it may stop counting above the number that is given."""


async def place(policy: Policy, wish: Wish, count: CountSandboxes) -> Placement:
    """Where a session goes. A `ConfigurationError` when its data must stay and only E2B's cloud is left."""
    for number, rule in enumerate(policy.rules, 1):
        if wish.resident and rule.use == "e2b":
            continue
        if await _applies(policy, rule, wish, count):
            return Placement(rule.use, f"rule {number}: {rule.describe()}", rule.template)
    if wish.resident and policy.default == "e2b":
        raise ConfigurationError(
            "the session's data must stay, the policy's default is e2b, and no rule names another backend "
            "for it: add a rule with `resident: true`"
        )
    return Placement(policy.default, "the policy's default")


async def _applies(policy: Policy, rule: Rule, wish: Wish, count: CountSandboxes) -> bool:
    if rule.resident is not None and rule.resident != wish.resident:
        return False
    if rule.memory_over_mb is not None and (wish.memory_mb or 0) <= rule.memory_over_mb:
        return False
    if rule.sandboxes_over is None:
        return True
    return await count(policy.default, rule.sandboxes_over) >= rule.sandboxes_over


def load_policy(path: Path) -> Policy:
    """The policy in `path`. A `ConfigurationError` names the file and the place in it."""
    import yaml  # only where there is a policy

    try:
        parsed = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"the backend policy {path} cannot be read: {error}") from error
    try:
        return Policy.model_validate(parsed)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc']) or 'file'}: "
            f"{problem['msg'].removeprefix('Value error, ')}"
            for problem in error.errors(include_input=False)
        )
        raise ConfigurationError(f"{path}: {problems}") from None
