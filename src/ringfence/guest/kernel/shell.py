"""The IPython shell of a kernel: what it shows goes to a sink, not to a terminal."""

import fnmatch
import importlib
import inspect
import os
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Coroutine
from contextlib import suppress
from types import ModuleType, TracebackType
from typing import Any, Protocol
from unittest import mock

from IPython.core import interactiveshell
from IPython.core.application import ProfileDir
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.error import StdinNotImplementedError, UsageError
from IPython.core.history import HistoryManager
from IPython.core.interactiveshell import InteractiveShell
from traitlets import Type

from . import streams
from .formatters import ResultJSONFormatter, add_formatters
from .hints import hint_for
from .packages import Packages

_IPYTHON = interactiveshell.__file__


class Sink(Protocol):
    """Where a shell's results go. Methods may be called from any thread."""

    def display(self, data: dict[str, Any], *, main: bool) -> None:
        """One thing to show; `main` for the value of the cell's last expression."""

    def update(self, display_id: str, data: dict[str, Any]) -> None:
        """A newer version of something shown before."""

    def error(self, name: str, value: str, trace: str) -> None:
        """The exception that ended the cell."""


class _Hook(DisplayHook):
    """Sends the value of a cell's last expression to the shell's sink."""

    def write_output_prompt(self) -> None:
        """There is no prompt."""

    def compute_format_data(self, result: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        formatter: ResultJSONFormatter = self.shell.result_json
        formatter.main_result = True
        try:
            pair: tuple[dict[str, Any], dict[str, Any]] = super().compute_format_data(result)
            return pair
        finally:
            formatter.main_result = False

    def write_format_data(self, format_dict: dict[str, Any], md_dict: dict[str, Any] | None = None) -> None:
        self.shell.sink.display(format_dict, main=True)

    def finish_displayhook(self) -> None:
        self._is_active = False


class _Publisher(DisplayPublisher):
    """Sends what ``display()`` is given to the shell's sink."""

    def publish(
        self,
        data: dict[str, Any],
        metadata: dict[str, Any] | None = None,
        source: object = None,
        *,
        transient: dict[str, Any] | None = None,
        update: bool = False,
        **_: Any,
    ) -> None:
        display_id = (transient or {}).get("display_id")
        if update and display_id is not None:
            self.shell.sink.update(str(display_id), data)
        else:
            self.shell.sink.display(data, main=False)

    def clear_output(self, wait: bool = False) -> None:
        """What was sent cannot be taken back."""


class _Memory(dict[str, Any]):
    """IPython's small database (bookmarks, ``%store``), which would otherwise be files in a profile
    directory.
    """

    def __init__(self, _root: object = None) -> None:
        super().__init__()

    def keys(self, pattern: str | None = None) -> Any:
        """The keys, or those that match a glob."""
        return list(self) if pattern is None else fnmatch.filter(self, pattern)


class _NoFilesProfile(ProfileDir):
    """A profile directory that is never made."""

    def check_dirs(self) -> None:
        """Nothing to check: there are no files."""


class KernelShell(InteractiveShell):
    """IPython without a terminal, files or threads of its own. `sink` must be set before a cell runs."""

    displayhook_class = Type(_Hook)
    display_pub_class = Type(_Publisher)
    sink: Sink
    result_json: ResultJSONFormatter
    packages = Packages()
    _memory = _Memory()

    @property
    def db(self) -> _Memory:
        """IPython's database; some versions assign it, others open one when it is first used."""
        return self._memory

    @db.setter
    def db(self, value: object) -> None:
        """Ignored."""

    @classmethod
    def make(cls) -> "KernelShell":
        """The process's shell. ``__main__`` is left alone until `enter_main`."""
        main = sys.modules["__main__"]
        user_main = ModuleType("__main__", doc="The code of this kernel's cells.")
        HistoryManager.enabled = False
        with mock.patch.object(interactiveshell, "PickleShareDB", _Memory, create=True):
            shell: KernelShell = cls.instance(user_module=user_main, colors="nocolor")
        sys.modules["__main__"] = main
        shell.result_json = add_formatters(shell.display_formatter)
        shell.separate_in = ""
        warnings.filterwarnings("ignore", message="To exit: use")
        return shell

    def init_ipython_dir(self, ipython_dir: str | None) -> None:
        """No directory: nothing of IPython's is kept in files."""
        self.ipython_dir = "/tmp"  # noqa: S108 - never written to

    def init_profile_dir(self, profile_dir: Any) -> None:
        """No directory either."""
        self.profile_dir = _NoFilesProfile()

    def init_virtualenv(self) -> None:
        """The interpreter already is the template's."""

    def enter_main(self) -> None:
        """Make the user's namespace ``__main__``, so that pickle finds what cells define, and input() explain
        itself.
        """
        sys.modules["__main__"] = self.user_module
        self.user_ns["__name__"] = "__main__"
        vars(__import__("builtins"))["input"] = _no_input
        vars(__import__("getpass"))["getpass"] = _no_input
        self.home_dir = os.path.expanduser("~")

    def use_loop(self, runner: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        """Run cells with a top-level ``await`` by `runner`."""
        self.loop_runner = runner
        self.loop_runner_map: dict[str, Any] = {"asyncio": (runner, True)}
        self.autoawait = True

    def _showtraceback(self, etype: type[BaseException], evalue: BaseException, stb: list[str]) -> None:
        if hint := hint_for(evalue):
            streams.flush()
            os.write(2, f"[{hint}]\n".encode())
        self.sink.error(etype.__name__, _describe(evalue), "\n".join(stb))

    def show_usage_error(self, exc: BaseException) -> None:
        """A magic used wrongly is an error of the cell, without a traceback."""
        self._showtraceback(UsageError, exc, [f"UsageError: {exc}"])

    def showtraceback(self, exc_tuple: Any = None, *args: Any, **kwargs: Any) -> None:
        """As IPython's, but groups of exceptions too are reported and not only printed."""
        etype, value, tb = exc_tuple or sys.exc_info()
        _drop_own_frames(tb)
        _name_modules(value)
        if isinstance(value, BaseException) and _has_group(value):
            while tb is not None and tb.tb_next is not None and tb.tb_frame.f_code.co_filename == _IPYTHON:
                tb = tb.tb_next  # IPython's own frames are of no interest
            lines = "".join(traceback.format_exception(etype, value.with_traceback(tb), tb)).splitlines()
            self._showtraceback(value.__class__, value, lines)
        else:
            super().showtraceback(exc_tuple, *args, **kwargs)

    def ask_exit(self) -> None:
        """``exit`` ends the cell, as ``sys.exit()`` does; the kernel goes on."""
        raise SystemExit

    def system_piped(self, cmd: str) -> None:
        """``!cmd``: by bash, with output straight to the cell's; the exit code is left in ``_exit_code``."""
        streams.flush()
        command = self.var_expand(cmd, depth=1)
        self.user_ns["_exit_code"] = _run(command)
        importlib.invalidate_caches()
        if "pip" in command or "uv" in command:
            self._note_changes()

    system = system_piped

    def _note_changes(self) -> None:
        for change in self.packages.changes():
            print(
                f"Note: {change}. This kernel keeps what it loaded; restart the context to change that.",
                file=sys.stderr,
            )


def _describe(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "<the exception's text could not be made>"


def _has_group(error: BaseException | None) -> bool:
    return any(isinstance(one, BaseExceptionGroup) for one in _with_contexts(error))


def _with_contexts(error: BaseException | None) -> list[BaseException]:
    """An exception and those in whose handling it was raised; these may form a ring."""
    found: dict[int, BaseException] = {}
    while error is not None and id(error) not in found:
        found[id(error)] = error
        error = error.__context__
    return list(found.values())


def _name_modules(error: BaseException | None) -> None:
    """Tell `inspect` which module the code of a traceback belongs to.

    For a frame of a cell, which has no file, it would look through all modules that are loaded, several times
    and anew for each frame: an endless recursion would take seconds to be told.
    """
    known: set[str] = set()
    for one in _with_contexts(error):
        for frame, _ in traceback.walk_tb(one.__traceback__):
            path, module = frame.f_code.co_filename, frame.f_globals.get("__name__")
            if path not in known and isinstance(module, str) and module in sys.modules:
                known.add(path)
                inspect.modulesbyfile.setdefault(path, module)
                with suppress(OSError, TypeError):
                    inspect.modulesbyfile.setdefault(inspect.getabsfile(frame), module)


def _drop_own_frames(tb: TracebackType | None) -> None:
    """Cut a traceback where it enters this package for good: the user called what raises here."""
    own = os.path.dirname(__file__)
    last = None
    while tb is not None:
        if os.path.dirname(tb.tb_frame.f_code.co_filename) != own:
            last = tb
        tb = tb.tb_next
    if last is not None:
        last.tb_next = None


def _no_input(prompt: object = "", *_: Any, **__: Any) -> str:
    raise StdinNotImplementedError(
        f"input({str(prompt)!r}): nobody can answer here, cells run without a terminal. "
        "Pass the value in the code or in an environment variable."
    )


def _run(command: str) -> int:
    """Run `command` by the shell and return its exit code (negative: the signal that ended it)."""
    shell = "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh"
    with subprocess.Popen(command, shell=True, executable=shell, stdin=subprocess.DEVNULL) as process:  # noqa: S602
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            raise
