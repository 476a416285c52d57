"""What each kind of step does in a sandbox and to the context of the steps after it."""

import posixpath
import re
import shlex
from collections.abc import Awaitable, Callable
from dataclasses import replace
from importlib import resources

from ringfence.core.errors import TemplateError
from ringfence.engine.templates.builder.guest import Command, Guest, GuestError, OnLine
from ringfence.engine.templates.builder.spec import BuildSpec, Context, Step

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OWNER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?")
_MODE = re.compile(r"[0-7]{1,5}")
_FILES_INSIDE = "/tmp/.ringfence-copy"  # noqa: S108 (inside a sandbox)
_GZIP = b"\x1f\x8b"


def next_context(step: Step, context: Context) -> Context:
    """The context after `step`. Raises TemplateError when its arguments are wrong."""
    if step.kind == "ENV":
        for name in step.args[::2]:
            if not _VARIABLE.fullmatch(name):
                raise TemplateError(f"ENV {name!r} is not a variable's name")
        return context.with_env(step.args)
    if step.kind == "WORKDIR":
        return replace(context, workdir=_inside(_argument(step, 0), context))
    if step.kind == "USER":
        name = _argument(step, 0)
        if not _NAME.fullmatch(name):
            raise TemplateError(f"USER {name!r} is not a user's name")
        return replace(context, user=name)
    if step.kind == "RUN":
        _argument(step, 0)
        return context
    if step.kind == "COPY":
        _check_copy(step)
        return context
    raise TemplateError(f"there is no instruction {step.kind!r}; there are RUN, COPY, WORKDIR, USER and ENV")


def touches_files(step: Step) -> bool:
    """Whether the step may write files, and so makes a layer."""
    return step.kind != "ENV"


async def execute(
    guest: Guest, step: Step, context: Context, spec: BuildSpec, shell: str, tell: OnLine
) -> None:
    """Do `step` in a sandbox. Raises TemplateError, whose message is the build's."""
    await _DOERS[step.kind](guest, step, context, spec, shell, tell)


def home_of(user: str) -> str:
    """Where a user's home is by convention."""
    return "/root" if user == "root" else f"/home/{user}"


def _argument(step: Step, number: int) -> str:
    if len(step.args) <= number or not step.args[number]:
        raise TemplateError(f"{step.kind} lacks an argument")
    return step.args[number]


def _inside(path: str, context: Context) -> str:
    """`path` made absolute; a slash at its end, which means a directory, stays."""
    home = home_of(context.user)
    if path == "~" or path.startswith("~/"):
        path = home + path[1:]
    joined = posixpath.join(context.workdir or home, path)
    trailing = "/" if joined.endswith(("/", "/.")) else ""
    return (posixpath.normpath(joined).rstrip("/") + trailing) or "/"


def _check_copy(step: Step) -> None:
    _argument(step, 0)
    _argument(step, 1)
    owner, mode = (*step.args[2:4], "", "")[:2]
    if owner and not _OWNER.fullmatch(owner):
        raise TemplateError(f"COPY: {owner!r} is not a user")
    if mode and not _MODE.fullmatch(mode):
        raise TemplateError(f"COPY: {mode!r} is not an octal mode")
    if not step.files_hash:
        raise TemplateError("COPY lacks the hash of its files")


async def _run(guest: Guest, step: Step, context: Context, _: BuildSpec, shell: str, tell: OnLine) -> None:
    line = step.args[0]
    user = step.args[1] if len(step.args) > 1 and step.args[1] else context.user
    try:
        problem = await guest.run(Command(line, user, context.workdir, dict(context.env), shell), tell)
    except GuestError as error:
        problem = str(error)
    if problem:
        raise TemplateError(f"failed to run command '{line}': command failed: {problem}")


async def _copy(
    guest: Guest, step: Step, context: Context, spec: BuildSpec, shell: str, tell: OnLine
) -> None:
    source, target = step.args[:2]
    owner, mode = (*step.args[2:4], "", "")[:2]
    archive = spec.files(step.files_hash or "")
    if archive is None:
        raise TemplateError(f"failed to copy '{source}': its files were not uploaded")
    owner = owner or context.user
    with archive.open("rb") as file:
        gzip = file.read(2) == _GZIP
    await guest.upload(archive, f"{_FILES_INSIDE}/archive")
    variables = {
        "archive": f"{_FILES_INSIDE}/archive",
        "gzip": "1" if gzip else "0",
        "source": source,
        "target": _inside(target, context),
        "owner": owner if ":" in owner else f"{owner}:",
        "mode": mode,
    }
    await _script(guest, "copy", variables, shell, tell, f"failed to copy '{source}' to '{target}'")


async def _workdir(
    guest: Guest, step: Step, context: Context, _: BuildSpec, shell: str, tell: OnLine
) -> None:
    variables = {"path": _inside(step.args[0], context), "owner": f"{context.user}:"}
    await _script(
        guest, "workdir", variables, shell, tell, f"failed to set the working directory '{step.args[0]}'"
    )


async def _user(guest: Guest, step: Step, _: Context, __: BuildSpec, shell: str, tell: OnLine) -> None:
    sudo = "1" if len(step.args) > 1 and step.args[1] == "true" else "0"
    await _script(
        guest,
        "user",
        {"name": step.args[0], "sudo": sudo},
        shell,
        tell,
        f"failed to set the user '{step.args[0]}'",
    )


async def _script(
    guest: Guest, name: str, variables: dict[str, str], shell: str, tell: OnLine, failure: str
) -> None:
    """Run one of our scripts as root. The variables are quoted by the shell's own rules and set before it."""
    text = (resources.files(__package__) / "scripts" / f"{name}.sh").read_text("utf-8")
    settings = "\n".join(f"{key}={shlex.quote(value)}" for key, value in variables.items())
    last: list[str] = []

    def keep(stream: str, line: str) -> None:
        last[:] = [line]
        tell(stream, line)

    problem = await guest.run(Command(f"{settings}\n{text}", cwd="/", shell=shell), keep)
    if problem:
        raise TemplateError(f"{failure}: {last[0] if last else problem}")


_Doer = Callable[[Guest, Step, Context, BuildSpec, str, OnLine], Awaitable[None]]
_DOERS: dict[str, _Doer] = {"RUN": _run, "COPY": _copy, "WORKDIR": _workdir, "USER": _user}
