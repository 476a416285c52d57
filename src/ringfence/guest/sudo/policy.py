"""What sudo makes of a request: who runs what, where, with which variables."""

import os
import re
from dataclasses import dataclass, field, replace

from ringfence.guest.config import GuestConfig
from ringfence.guest.envd.spawn import Program, find_program
from ringfence.guest.envd.users import User, UserDatabase

SECURE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SUDO_GROUP = "sudo"
_ALWAYS_ALLOWED = (0, 1000)

# What passes from the caller without -E: sudo's own list, and what programs need to get through a proxy.
_KEPT = (
    *("COLORS", "COLORTERM", "DISPLAY", "LANG", "LANGUAGE", "LS_COLORS", "PS1", "PS2", "TERM", "TZ"),
    *("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"),
    *("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "ALL_PROXY", "NO_PROXY"),
)
_PLAIN = re.compile(r"[^A-Za-z0-9_\-$]")


class RefusedError(Exception):
    """sudo says no; the message is what it prints."""


@dataclass
class Request:
    """A request as it came from the client, unchecked. `environment` is the caller's."""

    options: dict[str, str] = field(default_factory=dict)
    keep: list[str] = field(default_factory=list)
    assignments: dict[str, str] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: bytes) -> "Request":
        """Read the items of a request. Raises `RefusedError` for what no client sends."""
        request = cls()
        for item in text.split(b"\0"):
            if not item:
                continue
            kind, value = item[:1], os.fsdecode(item[1:])
            name, _, content = value.partition("=")
            if kind == b"o":
                request.options[name] = content
            elif kind == b"k":
                request.keep.append(value)
            elif kind == b"v":
                request.assignments[name] = content
            elif kind == b"a":
                request.arguments.append(value)
            elif kind == b"e" and name:
                request.environment[name] = content
            else:
                raise RefusedError("sudo: the request cannot be read")
        return request

    def flag(self, name: str) -> bool:
        """Whether an option without a value was given."""
        return name in self.options

    def size(self) -> tuple[int, int] | None:
        """Columns and rows of the caller's terminal, None when it has none."""
        columns, x, rows = self.options.get("size", "").partition("x")
        if not x or not (columns + rows).isascii() or not (columns + rows).isdigit():
            return None
        return (int(columns[:5] or "80"), int(rows[:5] or "24"))


class Policy:
    """Decides for the sandbox of `config`, whose users are `users`."""

    def __init__(self, config: GuestConfig, users: UserDatabase) -> None:
        self._config = config
        self._users = users

    def program(self, request: Request, uid: int) -> Program:
        """The program that the user `uid` asks for. Raises `RefusedError`."""
        caller = self._caller(uid)
        target = self._target(request)
        argv = _argv(request, caller, target)
        environment = self._environment(request, caller, target)
        own = not request.flag("login") and not request.flag("chdir")
        cwd = request.options.get("cwd", "/") if own else target.home
        if request.flag("chdir"):
            cwd = os.path.join(request.options.get("cwd", "/"), request.options["chdir"])  # noqa: PTH118
        try:
            path = find_program(argv[0], environment["PATH"])
        except FileNotFoundError:
            raise RefusedError(f"sudo: {argv[0]}: command not found") from None
        environment["SUDO_COMMAND"] = " ".join([path, *argv[1:]])
        environment |= request.assignments
        if request.flag("login"):
            argv[0] = "-" + argv[0].rpartition("/")[2]
        return Program(path, argv, environment, cwd, target, not self._users.single_id, inherit_cwd=own)

    def _caller(self, uid: int) -> User:
        name = self._users.user_name(uid)
        user = self._users.find(name) or User(name, uid, uid, "/", "/bin/sh")
        if uid not in _ALWAYS_ALLOWED and not self._users.is_member(user, SUDO_GROUP):
            raise RefusedError(f"{name} is not in the sudoers file.")
        return user

    def _target(self, request: Request) -> User:
        name = request.options.get("user", "root")
        known = self._users.user_name(int(name[1:])) if re.fullmatch(r"#\d{1,10}", name) else name
        user = self._users.find(known)
        if user is None:
            raise RefusedError(f"sudo: unknown user {name}")
        group = request.options.get("group")
        if group is None:
            return user
        gid = self._users.group_id(group)
        if gid is None:
            raise RefusedError(f"sudo: unknown group {group}")
        return User(user.name, user.uid, gid, user.home, user.shell, (gid, *user.groups))

    def _environment(self, request: Request, caller: User, target: User) -> dict[str, str]:
        given = request.environment
        if request.flag("preserve"):
            env = dict(given)
        else:
            env = {name: given[name] for name in (*_KEPT, *request.keep) if name in given}
            env |= {name: value for name, value in given.items() if name.startswith("LC_")}
        if request.flag("login"):
            env = {name: value for name, value in env.items() if name not in ("PS1", "PS2")}
        if not request.flag("preserve") or request.flag("sethome") or request.flag("login"):
            env["HOME"] = target.home
        env.setdefault("HOME", target.home)
        env.setdefault("TERM", "unknown")
        return {
            **env,
            **self._config.marks,
            "PATH": SECURE_PATH,
            "SHELL": target.shell,
            "LOGNAME": target.name,
            "USER": target.name,
            "MAIL": f"/var/mail/{target.name}",
            "SUDO_USER": caller.name,
            "SUDO_UID": str(caller.uid),
            "SUDO_GID": str(caller.gid),
        }


def _argv(request: Request, caller: User, target: User) -> list[str]:
    if not (request.flag("login") or request.flag("shell")):
        if not request.arguments or not request.arguments[0]:
            raise RefusedError("sudo: no command was given")
        return list(request.arguments)
    shell = target.shell if request.flag("login") else request.environment.get("SHELL", caller.shell)
    if not request.arguments:
        return [shell]
    return [shell, "-c", " ".join(_escape(argument) for argument in request.arguments)]


def _escape(argument: str) -> str:
    """As sudo does for a shell: everything but letters, digits, underscore, hyphen and dollar sign."""
    return _PLAIN.sub(lambda match: "\\" + match[0], argument)


def explain(path: str, number: int, stage: str, cwd: str) -> str:
    """What sudo prints when the program could not be started."""
    reason = os.strerror(number)
    if stage == "chdir":
        return f"sudo: unable to change directory to {cwd}: {reason}"
    if reason == os.strerror(2):
        return f"sudo: {path}: command not found"
    return f"sudo: unable to execute {path}: {reason}"


def with_shell(program: Program) -> Program:
    """`program` as a script of ``/bin/sh``: for a file that the kernel cannot execute."""
    argv = ["/bin/sh", program.path, *program.argv[1:]]
    return replace(program, path="/bin/sh", argv=argv)
