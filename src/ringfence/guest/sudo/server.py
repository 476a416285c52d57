"""PID 1's end of sudo: a Unix socket that every process of the sandbox may connect to.

A request is a list of items, each ended by NUL, the list by an empty one, with the caller's standard streams
attached: ``oNAME=VALUE`` option, ``kNAME`` variable to keep, ``vNAME=VALUE`` variable to set, ``aTEXT``
argument, ``eNAME=VALUE`` the caller's variable. Answers are lines: ``eTEXT`` refused, or ``p`` started (with
the terminal's master end attached, if the caller's input is a terminal), then ``xSTATUS`` the wait status.
Meanwhile the client may send ``sNUMBER`` lines: signals for the program. When it hangs up, as after a
SIGKILL, the program is killed. Who asks is what the kernel says (SO_PEERCRED).
"""

import array
import asyncio
import contextlib
import dataclasses
import errno
import os
import signal
import socket
import struct
from pathlib import Path

from ringfence.guest.config import GuestConfig
from ringfence.guest.envd.process import kill_session
from ringfence.guest.envd.spawn import Program, SpawnError, read_report, set_window_size, spawn
from ringfence.guest.envd.users import UserDatabase
from ringfence.guest.reaper import Reaper
from ringfence.guest.sudo.policy import Policy, RefusedError, Request, explain, with_shell
from ringfence.guest.waiting import readable

SOCKET = Path("/run/ringfence/sudo.sock")

_MAX_REQUEST = 4 << 20
_MAX_AT_ONCE = 64
_REQUEST_SECONDS = 10.0
_STREAMS = 3
_SIGNALS = frozenset(
    (
        signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1,
        signal.SIGUSR2, signal.SIGALRM, signal.SIGTERM, signal.SIGCONT,
    )
)  # fmt: skip


def listen(path: Path = SOCKET) -> socket.socket:
    """The listening socket, open to everybody in the sandbox."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o666)
    listener.listen(_MAX_AT_ONCE)
    listener.setblocking(False)
    return listener


class SudoServer:
    """Serves requests of sudo in the sandbox of `config`."""

    def __init__(self, config: GuestConfig, users: UserDatabase, reaper: Reaper) -> None:
        self._policy = Policy(config, users)
        self._reaper = reaper
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, listener: socket.socket) -> None:
        """Begin to accept, on the running event loop."""
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        if len(self._tasks) >= _MAX_AT_ONCE:
            connection.close()
            return
        connection.setblocking(False)
        task = asyncio.get_running_loop().create_task(self._serve(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError), contextlib.ExitStack() as owned:
            uid = struct.unpack("iii", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
            try:
                async with asyncio.timeout(_REQUEST_SECONDS):
                    request, streams = await _receive(connection, owned)
                program = self._policy.program(request, uid)
                running = await self._run(program, request, streams)
            except (RefusedError, TimeoutError) as error:
                connection.send(b"e" + os.fsencode(str(error)).replace(b"\n", b" ") + b"\n")
                return
            owned.close()
            await running.follow(connection, background=request.flag("background"))

    async def _run(self, program: Program, request: Request, streams: list[int]) -> "_Running":
        size = request.size()
        with contextlib.ExitStack() as slave_end:
            master = -1
            standard = (streams[0], streams[1], streams[2])
            if size is not None:
                master, slave = _terminal(program, size)
                slave_end.callback(os.close, slave)
                program = dataclasses.replace(program, terminal=True)
                standard = (
                    slave,
                    slave if os.isatty(streams[1]) else streams[1],
                    slave if os.isatty(streams[2]) else streams[2],
                )
            try:
                return await self._launch(program, standard, master)
            except BaseException:
                if master >= 0:
                    os.close(master)
                raise

    async def _launch(self, program: Program, standard: tuple[int, int, int], master: int) -> "_Running":
        try:
            pid, report = spawn(program, standard)
        except SpawnError as error:
            raise RefusedError(explain(program.path, error.errno, error.stage, program.cwd)) from None
        status = self._reaper.register(pid)
        try:
            await readable(report)
            failure = read_report(os.read(report, 256))
        finally:
            os.close(report)
        if failure is None:
            return _Running(pid, status, master)
        if failure.errno == errno.ENOEXEC and failure.stage == "exec" and program.path != "/bin/sh":
            return await self._launch(with_shell(program), standard, master)
        raise RefusedError(explain(program.path, failure.errno, failure.stage, program.cwd))


@dataclasses.dataclass
class _Running:
    pid: int
    status: "asyncio.Future[int]"
    master: int

    async def follow(self, connection: socket.socket, *, background: bool) -> None:
        """Pass signals on until the program ends; kill it when the client goes first.

        In the `background` the program is left alone from the start.
        """
        loop = asyncio.get_running_loop()
        try:
            self._announce(connection)
            if background:
                return
            while not self.status.done():
                heard = loop.create_task(readable(connection.fileno()))
                await asyncio.wait((heard, self.status), return_when=asyncio.FIRST_COMPLETED)
                if not heard.done():
                    heard.cancel()
                    await asyncio.wait((heard,))
                elif not self._obey(connection):
                    break
            if self.status.done():
                connection.send(b"x%d\n" % self.status.result())
        finally:
            if not self.status.done() and not background:
                kill_session(self.pid)

    def _announce(self, connection: socket.socket) -> None:
        if self.master < 0:
            connection.send(b"p\n")
            return
        try:
            socket.send_fds(connection, [b"p\n"], [self.master])
        finally:
            os.close(self.master)

    def _obey(self, connection: socket.socket) -> bool:
        try:
            data = connection.recv(4096)
        except BlockingIOError:
            return True
        except OSError:
            return False
        for line in data.split():
            number = int(line[1:4]) if line[:1] == b"s" and line[1:4].isdigit() else 0
            if number in _SIGNALS:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, number)
        return bool(data)


async def _receive(connection: socket.socket, owned: contextlib.ExitStack) -> tuple[Request, list[int]]:
    """The request and the caller's streams, which `owned` closes."""
    text, streams = bytearray(), array.array("i")
    while not text.endswith(b"\0\0"):
        await readable(connection.fileno())
        space = socket.CMSG_SPACE(_STREAMS * streams.itemsize)
        try:
            data, ancillary, _, _ = connection.recvmsg(65536, space, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            continue
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                got = array.array("i")
                got.frombytes(content[: len(content) - len(content) % got.itemsize])
                for descriptor in got:
                    owned.callback(os.close, descriptor)
                streams.extend(got)
        text += data
        if not data or len(text) > _MAX_REQUEST:
            raise RefusedError("sudo: the request is too large" if data else "sudo: the request broke off")
    if len(streams) != _STREAMS:
        raise RefusedError("sudo: the standard streams are missing")
    return Request.parse(bytes(text)), list(streams)


def _terminal(program: Program, size: tuple[int, int]) -> tuple[int, int]:
    try:
        master, slave = os.openpty()
    except OSError as error:
        raise RefusedError(f"sudo: unable to allocate a terminal: {error.strerror}") from None
    set_window_size(master, *size)
    with contextlib.suppress(OSError):  # the user may open it again by name
        os.fchown(slave, program.user.uid, program.user.gid)
        os.fchmod(slave, 0o620)
    return master, slave
