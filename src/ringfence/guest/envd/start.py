"""From a Start request to a running process: user, directory, environment, pipes or terminal."""

import asyncio
import errno
import os
import signal
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from ringfence.guest.config import GuestConfig
from ringfence.guest.connect import ConnectError, Message
from ringfence.guest.envd import fields
from ringfence.guest.envd.paths import PathError, resolve
from ringfence.guest.envd.process import Process
from ringfence.guest.envd.spawn import (
    Program,
    SpawnError,
    find_program,
    read_report,
    set_window_size,
    spawn,
)
from ringfence.guest.envd.users import User, UserDatabase
from ringfence.guest.reaper import Reaper

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_SHORTAGES = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC}
_DEFAULT_COLUMNS, _DEFAULT_ROWS = 80, 24
_SHOWN_CHARACTERS = 200  # of a command in an error


@dataclass(frozen=True, slots=True)
class WindowSize:
    """Size of a terminal in characters."""

    columns: int
    rows: int

    @classmethod
    def from_pty(cls, pty: Message) -> "WindowSize":
        """Read the ``PTY`` message; absent or zero sizes become 80 by 24."""
        size = fields.submessage(pty, "size")
        return cls(
            fields.integer(size, "cols") or _DEFAULT_COLUMNS, fields.integer(size, "rows") or _DEFAULT_ROWS
        )


class Starter:
    """Starts processes of the sandbox."""

    def __init__(self, config: GuestConfig, users: UserDatabase, reaper: Reaper) -> None:
        """Start processes with the environment of `config`; `reaper` tells how they end."""
        self._config = config
        self._users = users
        self._reaper = reaper

    async def start(self, request: Message, user: User) -> Process:
        """Start what a ``StartRequest`` asks for. Raises `ConnectError` when it cannot be."""
        pty = fields.submessage(request, "pty") if fields.has(request, "pty") else None
        program = self._program(fields.submessage(request, "process"), user, terminal=pty is not None)
        try:
            if pty is not None:
                return await self._on_terminal(program, WindowSize.from_pty(pty))
            return await self._on_pipes(program, stdin=fields.flag(request, "stdin", True))
        except SpawnError as error:
            code = "resource_exhausted" if error.errno in _SHORTAGES else "invalid_argument"
            where = program.cwd if error.stage == "chdir" else program.path
            reason = f"{error.stage} {where}: {os.strerror(error.errno).lower()}"
            if error.errno == errno.EAGAIN and self._config.pids:
                reason += f" (the sandbox's limit is {self._config.pids} processes and threads)"
            message = f"error starting process '{' '.join(program.argv)[:_SHOWN_CHARACTERS]}': {reason}"
            raise ConnectError(code, message) from None
        except OSError as error:  # no descriptors or terminals left
            raise ConnectError("resource_exhausted", f"error starting process: {error}") from None

    def _program(self, process: Message, user: User, *, terminal: bool) -> Program:
        command, arguments = fields.text(process, "cmd"), fields.texts(process, "args")
        env = self.environment(user, fields.text_map(process, "envs"))
        if any("\0" in text for text in (command, *arguments)):
            raise ConnectError("invalid_argument", "an argument contains a NUL character")
        try:
            cwd = resolve(fields.text(process, "cwd"), user, self._config.default_workdir)
        except PathError as error:
            raise ConnectError("invalid_argument", str(error)) from None
        if not os.path.exists(cwd):  # noqa: PTH110  # of pathlib's, an unreadable parent raises
            raise ConnectError("invalid_argument", f"cwd '{cwd}' does not exist")
        try:
            path = find_program(command, env["PATH"])
        except FileNotFoundError as error:
            raise ConnectError("invalid_argument", f"error starting process '{command}': {error}") from None
        switch = not self._users.single_id
        return Program(path, [command, *arguments], env, cwd, user, switch, terminal)

    def environment(self, user: User, own: Mapping[str, str]) -> dict[str, str]:
        """The variables of a process: the user's, the sandbox's, then the request's `own`.

        Nothing of the guest's own environment is passed on. Raises `ConnectError` for impossible names.
        """
        for name, value in own.items():
            if not name or "=" in name or "\0" in name or "\0" in value:
                raise ConnectError("invalid_argument", f"invalid environment variable {name!r}")
        return {
            "PATH": DEFAULT_PATH,
            "HOME": user.home,
            "USER": user.name,
            "LOGNAME": user.name,
            "SHELL": user.shell,
            **self._config.variables,
            **own,
        }

    async def _on_pipes(self, program: Program, *, stdin: bool) -> Process:
        with ExitStack() as child, ExitStack() as parent:
            out, out_child = _pipe(parent, child)
            err, err_child = _pipe(parent, child)
            if stdin:
                in_child, source = os.pipe2(os.O_CLOEXEC)
                child.callback(os.close, in_child)
                parent.callback(os.close, source)
                os.set_blocking(source, False)
            else:
                in_child, source = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), -1
                child.callback(os.close, in_child)
            pid, status = await self._launch(program, (in_child, out_child, err_child))
            parent.pop_all()
        process = Process(pid, {out: "stdout", err: "stderr"}, source if stdin else None)
        status.add_done_callback(lambda future: process.reaped(future.result()))
        return process

    async def _on_terminal(self, program: Program, size: WindowSize) -> Process:
        with ExitStack() as child, ExitStack() as parent:
            master, slave = os.openpty()
            parent.callback(os.close, master)
            child.callback(os.close, slave)
            os.set_blocking(master, False)
            set_window_size(master, size.columns, size.rows)
            with suppress(OSError):  # the user may open it again by name
                os.fchown(slave, program.user.uid, program.user.gid)
                os.fchmod(slave, 0o620)
            pid, status = await self._launch(program, (slave, slave, slave))
            parent.pop_all()
        process = Process(pid, {master: "pty"}, None)
        status.add_done_callback(lambda future: process.reaped(future.result()))
        return process

    async def _launch(
        self, program: Program, standard: tuple[int, int, int]
    ) -> tuple[int, "asyncio.Future[int]"]:
        pid, report = spawn(program, standard)
        status = self._reaper.register(pid)
        try:
            error = read_report(await _read_when_ready(report))
        except asyncio.CancelledError:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # the client is gone, and nobody knows the process
            raise
        finally:
            os.close(report)
        if error is not None:
            raise error
        return pid, status


def _pipe(parent: ExitStack, child: ExitStack) -> tuple[int, int]:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    parent.callback(os.close, reader)
    child.callback(os.close, writer)
    os.set_blocking(reader, False)
    return reader, writer


def _settle(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


async def _read_when_ready(fd: int) -> bytes:
    """What comes through the pipe `fd` in one piece; nothing when the other end is closed."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, _settle, ready)
    try:
        await ready
    finally:
        loop.remove_reader(fd)
    return os.read(fd, 256)
