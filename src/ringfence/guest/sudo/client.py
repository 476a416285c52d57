"""The program ``/usr/bin/sudo`` of a sandbox: passes its request to PID 1 and waits for the end.

It runs in the template's Python without site-packages and starts with every use, so it imports only
modules that are compiled in; no other module of Ringfence is at hand. See `server` for the protocol.
"""

import _signal  # type: ignore[import-not-found]  # signal and socket would also load enum, selectors and re
import _socket
import os
import sys
from typing import NoReturn

SOCKET = "/run/ringfence/sudo.sock"
USAGE = """\
usage: sudo -h | -K | -k | -V
usage: sudo -v | -l [-n] [-u user]
usage: sudo [-bEHinSs] [-D directory] [-g group] [-u user] [VAR=value] [command [arg ...]]
"""
_WITH_VALUE = {
    "u": "user", "g": "group", "D": "chdir",
    "p": "", "C": "", "r": "", "t": "", "T": "", "U": "", "R": "", "h": "",
}  # fmt: skip
_FLAGS = {"E": "preserve", "H": "sethome", "i": "login", "s": "shell", "b": "background"}
_IGNORED = "ABknPS"
_ACTIONS = {"K": "reset", "V": "version", "v": "validate", "l": "list"}
_LONG = {
    "user": "u", "group": "g", "chdir": "D", "prompt": "p", "close-from": "C", "other-user": "U",
    "chroot": "R", "host": "h", "role": "r", "type": "t", "command-timeout": "T",
    "set-home": "H", "login": "i", "shell": "s", "background": "b",
    "askpass": "A", "bell": "B", "reset-timestamp": "k", "non-interactive": "n", "preserve-groups": "P",
    "stdin": "S", "remove-timestamp": "K", "version": "V", "validate": "v", "list": "l",
}  # fmt: skip
_FORWARDED = (1, 2, 3, 10, 12, 14, 15, 18)  # HUP INT QUIT USR1 USR2 ALRM TERM CONT
_SIGWINCH = 28


class Options:
    """What the command line says. `values` go to PID 1 as they are."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.keep: list[str] = []
        self.assignments: list[str] = []
        self.command: list[str] = []
        self.action = ""
        self.forget = False


def fail(message: str, code: int = 1) -> NoReturn:
    """Print `message` and end."""
    sys.stderr.write(message)
    sys.stderr.flush()
    os._exit(code)


def parse(arguments: list[str]) -> Options:
    """Read the command line as sudo does: its own options come first, then assignments, then the command."""
    options = Options()
    rest = list(arguments)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        argument = rest.pop(0)
        if argument == "--":
            break
        if argument.startswith("--"):
            _long(options, argument[2:], rest)
        else:
            _short(options, argument[1:], rest)
    while rest and "=" in rest[0] and not rest[0].startswith(("=", "/", ".")):
        options.assignments.append(rest.pop(0))
    options.command = rest
    return options


def _long(options: Options, text: str, rest: list[str]) -> None:
    name, equals, value = text.partition("=")
    if name == "help":
        _help()
    if name == "preserve-env":
        if equals:
            options.keep += value.split(",")
        else:
            options.values["preserve"] = "1"
        return
    letter = _LONG.get(name)
    if letter is None:
        fail(f"sudo: unrecognized option '--{name}'\n{USAGE}")
    if letter not in _WITH_VALUE:
        _flag(options, letter)
    elif equals:
        _value(options, letter, value)
    else:
        _value(options, letter, _next(rest, f"sudo: option '--{name}' requires an argument"))


def _short(options: Options, letters: str, rest: list[str]) -> None:
    if letters == "h" and not rest:
        _help()
    while letters:
        letter, letters = letters[0], letters[1:]
        if letter in _WITH_VALUE:
            value = letters or _next(rest, f"sudo: option requires an argument -- '{letter}'")
            _value(options, letter, value)
            return
        _flag(options, letter)


def _next(rest: list[str], complaint: str) -> str:
    if not rest:
        fail(f"{complaint}\n{USAGE}")
    return rest.pop(0)


def _value(options: Options, letter: str, value: str) -> None:
    name = _WITH_VALUE[letter]
    if name:
        options.values[name] = value


def _flag(options: Options, letter: str) -> None:
    if letter in _FLAGS:
        options.values[_FLAGS[letter]] = "1"
    elif letter in _ACTIONS:
        options.action = _ACTIONS[letter]
    elif letter == "k":
        options.forget = True
    elif letter == "e":
        fail("sudo: editing files (-e) is not available in this sandbox\n")
    elif letter not in _IGNORED:
        fail(f"sudo: invalid option -- '{letter}'\n{USAGE}")


def _help() -> NoReturn:
    sys.stdout.write(f"sudo - execute a command as another user\n\n{USAGE}")
    sys.stdout.flush()
    os._exit(0)


def _act(options: Options) -> None:
    """Do what needs no program. Passwords and timestamps do not exist here."""
    if options.action == "version":
        sys.stdout.write("Sudo version 1.9 (Ringfence)\n")
    elif options.action == "list" and not options.command:
        name, host = os.environ.get("USER", "user"), os.uname().nodename
        sys.stdout.write(f"User {name} may run the following commands on {host}:\n")
        sys.stdout.write("    (ALL : ALL) NOPASSWD: ALL\n")
    elif options.action == "list":
        sys.stdout.write(" ".join(options.command) + "\n")
    elif not options.action:
        if options.command or "shell" in options.values or "login" in options.values:
            return
        if not options.forget:
            fail(USAGE)
    sys.stdout.flush()
    os._exit(0)


def encode(options: Options, size: "os.terminal_size | None") -> bytes:
    """The request: items that end with NUL, the last one empty."""
    items = [f"o{name}={value}" for name, value in options.values.items()]
    items += [f"k{name}" for name in options.keep]
    items += [f"v{assignment}" for assignment in options.assignments]
    items += [f"a{argument}" for argument in options.command]
    items += [f"e{name}={value}" for name, value in os.environ.items()]
    try:
        items.append(f"ocwd={os.getcwd()}")  # noqa: PTH109  # pathlib is not compiled in
    except OSError:
        items.append("ocwd=/")
    if size is not None:
        items.append(f"osize={size.columns}x{size.lines}")
    return b"".join(os.fsencode(item) + b"\0" for item in items) + b"\0"


def _connect() -> "_socket.socket":
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0)
    try:
        connection.connect(SOCKET)
    except OSError as error:
        fail(f"sudo: cannot ask the sandbox for another user: {error.strerror}\n")
    return connection


def _send(connection: "_socket.socket", request: bytes) -> None:
    descriptors = b"".join(number.to_bytes(4, sys.byteorder) for number in (0, 1, 2))
    sent = connection.sendmsg([request], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, descriptors)])
    if sent < len(request):
        try:
            connection.sendall(request[sent:])
        except OSError:
            return  # refused already; the answer says why


class Answers:
    """The lines that PID 1 sends, and the terminal that may come with the first."""

    def __init__(self, connection: "_socket.socket") -> None:
        self._connection = connection
        self._buffer = b""
        self.terminal = -1

    def line(self) -> bytes:
        """The next line; empty when PID 1 closed the connection."""
        while b"\n" not in self._buffer:
            data, ancillary, _, _ = self._connection.recvmsg(65536, 64)
            for _level, _kind, descriptors in ancillary:
                self.terminal = int.from_bytes(descriptors[:4], sys.byteorder)
            if not data:
                return b""
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


def _forward_signals(connection: "_socket.socket") -> None:
    def forward(number: int, _frame: object) -> None:
        try:
            connection.send(b"s%d\n" % number)
        except OSError:
            os._exit(128 + number)

    for number in _FORWARDED:
        if _signal.getsignal(number) != _signal.SIG_IGN:
            _signal.signal(number, forward)


def _relay(connection: "_socket.socket", master: int) -> None:
    """Connect our terminal with the program's until PID 1 has something to say."""
    import select
    import termios

    def resize(*_: object) -> None:
        size = os.get_terminal_size(0)
        termios.tcsetwinsize(master, (size.lines, size.columns))

    _signal.signal(_SIGWINCH, resize)
    before = termios.tcgetattr(0)
    raw = termios.tcgetattr(0)
    raw[0] &= ~(termios.IXON | termios.ICRNL | termios.BRKINT | termios.ISTRIP | termios.INPCK)
    raw[1] &= ~termios.OPOST
    raw[3] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN | termios.ISIG)
    termios.tcsetattr(0, termios.TCSADRAIN, raw)
    try:
        sources = [0, master, connection.fileno()]
        while True:
            ready = select.select(sources, [], [])[0]
            if master in ready and not _copy(master, 1):
                sources.remove(master)
            if 0 in ready and not _copy(0, master):
                sources.remove(0)
            if connection.fileno() in ready and master not in ready:
                return
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _copy(source: int, target: int) -> bool:
    try:
        data = os.read(source, 16384)
        rest = data
        while rest:
            rest = rest[os.write(target, rest) :]
    except OSError:
        return False
    return bool(data)


def _end(status: int) -> NoReturn:
    """End as the program did: with its exit code or by its signal."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        try:
            if -code != 9:
                _signal.signal(-code, _signal.SIG_DFL)
            os.kill(os.getpid(), -code)
        except OSError:
            pass
        os._exit(128 - code)
    os._exit(code)


def main() -> NoReturn:
    """Run one command as sudo would."""
    options = parse(sys.argv[1:])
    _act(options)
    connection = _connect()
    terminal = os.isatty(0) and "background" not in options.values
    _forward_signals(connection)
    _send(connection, encode(options, os.get_terminal_size(0) if terminal else None))
    answers = Answers(connection)
    first = answers.line()
    if first.startswith(b"e"):
        fail(os.fsdecode(first[1:]) + "\n")
    if first != b"p":
        fail("sudo: the sandbox does not answer\n")
    if "background" in options.values:
        os._exit(0)
    if answers.terminal >= 0:
        _relay(connection, answers.terminal)
    last = answers.line()
    if not last.startswith(b"x"):
        fail("sudo: the sandbox does not answer any more\n")
    _end(int(last[1:]))


if __name__ == "__main__":
    main()
