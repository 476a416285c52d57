"""Runs one script inside a sandbox and reports what it does; this file is sent there as the text of a cell.

The script becomes a child of the kernel: forked from it where the kernel has a single thread (so what the
template
preloads is already imported), else started afresh. Its output comes back byte for byte, as lines of base64 on
the cell's standard output: ``o`` and ``e`` for standard output and standard error, ``x`` for the exit status
at the end (``k`` and the signal's name before it when a signal ended the script). What a cell may print is
limited, so after `OUTPUT_PER_CELL` bytes the cell ends with ``m`` (more), and the next one is
``go_on()``. Uses the standard library only.
"""

import atexit
import base64
import builtins
import contextlib
import functools
import importlib
import io
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import traceback
import types
from typing import Any, NoReturn

Config = dict[str, Any]

# Bytes of the script's output in one cell; E2B's and our kernels stop passing on output above 20 MiB.
OUTPUT_PER_CELL = 8 * 1024 * 1024
_SUFFIX = ".json"

FIGURES_MODULE = """
import os
from matplotlib.backend_bases import FigureManagerBase, Gcf
from matplotlib.backends.backend_agg import FigureCanvasAgg

class FigureManager(FigureManagerBase):
    @classmethod
    def pyplot_show(cls, *args, **kwargs):
        for manager in Gcf.get_all_fig_managers():
            save(manager.canvas.figure.savefig)
        Gcf.destroy_all()

class FigureCanvas(FigureCanvasAgg):
    manager_class = FigureManager

def save(write, suffix="png"):
    directory = os.environ["RINGFENCE_FIGURES"]
    os.makedirs(directory, exist_ok=True)
    number = len(os.listdir(directory)) + 1
    write(os.path.join(directory, f"figure-{number}.{suffix}"))
"""


def run(config: Config) -> None:
    """Run the script that `config` names, as a child; returns when it has ended."""
    out_read, out_write = os.pipe()
    err_read, err_write = os.pipe()
    if len(os.listdir("/proc/self/task")) == 1:  # noqa: PTH208
        pid = os.fork()
        if pid == 0:
            _forked(config, out_write, err_write)
    else:
        pid = _started(config, out_write, err_write)
    os.close(out_write)
    os.close(err_write)
    global _current
    _current = _Child(pid, {out_read: "o", err_read: "e"})
    go_on()


def go_on() -> None:
    """Pass on the script's output, until it has ended or this cell has said enough."""
    assert _current is not None
    _current.pump()


class _Child:
    """The script's process and the pipes that its output comes through."""

    def __init__(self, pid: int, streams: dict[int, str]) -> None:
        self._pid = pid
        self._selector = selectors.DefaultSelector()
        for descriptor, tag in streams.items():
            os.set_blocking(descriptor, False)
            self._selector.register(descriptor, selectors.EVENT_READ, tag)
        self._ended = os.pidfd_open(pid)
        self._selector.register(self._ended, selectors.EVENT_READ, None)
        self._descriptors = (*streams, self._ended)

    def pump(self) -> None:
        """Pass on what comes out of the pipes until the child has ended and they are empty, then its status;
        or until there is enough for one cell.
        """
        try:
            complete = self._pass_on_until(OUTPUT_PER_CELL)
        except BaseException:
            os.kill(self._pid, signal.SIGKILL)
            self._close()
            raise
        if not complete:
            print("m", flush=True)
            return
        code = os.waitstatus_to_exitcode(self._close())
        if code < 0:
            print("k", signal.Signals(-code).name if -code in set(signal.Signals) else -code)
        print("x", 128 - code if code < 0 else code, flush=True)

    def _pass_on_until(self, budget: int) -> bool:
        """False when `budget` bytes were passed on and the child goes on."""
        running = True
        while running:
            for key, _ in self._selector.select():
                if key.data is None:
                    running = False
                    continue
                size = _pass_on(key.fd, key.data)
                budget -= size
                if not size:
                    self._selector.unregister(key.fd)
            if budget <= 0:
                return False
        for key in list(self._selector.get_map().values()):
            while key.data is not None and _pass_on(key.fd, key.data):
                pass
        return True

    def _close(self) -> int:
        self._selector.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        return os.waitpid(self._pid, 0)[1]


_current: _Child | None = None


def _pass_on(descriptor: int, tag: str) -> int:
    """Pass on one piece; its size in bytes, 0 when there is none."""
    try:
        data = os.read(descriptor, 49152)
    except BlockingIOError:
        return 0
    if data:
        print(tag, base64.b64encode(data).decode(), flush=True)
    return len(data)


def _started(config: Config, out: int, err: int) -> int:
    # In a file: one argument may have 128 KiB, execve(2), and those of the script together have more.
    with open(f"{config['runner']}{_SUFFIX}", "w") as file:
        json.dump(config, file)
    command = [sys.executable, config["runner"]]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=config["cwd"])
    child.returncode = 0  # it is waited for by its pid, here
    return child.pid


def _forked(config: Config, out: int, err: int) -> NoReturn:
    """In the forked child: cut what ties it to the kernel, run the script, and end as a program ends."""
    code = 1
    try:
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (out, 1), (err, 2)):
            os.dup2(source, target)
        os.closerange(3, 65536)
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        _forget_the_kernel()
        os.chdir(config["cwd"])
        code = script(config)
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        with contextlib.suppress(BaseException):
            traceback.print_exc()
            sys.stderr.flush()
    finally:
        os._exit(code)


def _forget_the_kernel() -> None:
    atexit._clear()
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        raw = io.FileIO(number, "r" if number == 0 else "w", closefd=False)
        buffer = io.BufferedReader(raw) if number == 0 else io.BufferedWriter(raw)
        errors = "backslashreplace" if number == 2 else "strict"
        stream = io.TextIOWrapper(buffer, encoding="utf-8", errors=errors, line_buffering=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.displayhook, sys.excepthook = sys.__displayhook__, sys.__excepthook__
    if "asyncio" in sys.modules:
        sys.modules["asyncio"]._set_running_loop(None)
        sys.modules["asyncio"].set_event_loop(None)
    for name in ("get_ipython", "display"):
        if hasattr(builtins, name):
            delattr(builtins, name)
    builtins.input = _input
    sys.meta_path[:] = [finder for finder in sys.meta_path if "_kernel" not in type(finder).__module__]
    interactive = sys.modules.get("IPython.core.interactiveshell")
    if interactive is not None:
        interactive.InteractiveShell.clear_instance()


def _input(prompt: object = "") -> str:
    """What `input` does without a terminal; the kernel has put its own in the place of Python's."""
    print(prompt, end="", flush=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError("EOF when reading a line")
    return line.removesuffix("\n")


def script(config: Config) -> int:
    """Run the script as ``__main__``; the exit code that Python would give it."""
    path, shown = config["path"], config["shown"]
    with open(path, "rb") as file:
        source = file.read()
    _catch_figures(config, source)
    sys.argv = [shown, *config["args"]]
    sys.path[0:0] = [config["cwd"] if shown == "-c" else os.path.dirname(path)]  # noqa: PTH120
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    if shown != "-c":
        main.__file__ = path
    try:
        code = compile(source, "<string>" if shown == "-c" else path, "exec")
        exec(code, main.__dict__)  # noqa: S102 - what this file is for
    except SystemExit as exit:
        return _exit_code(exit.code)
    except BaseException as error:
        trace = error.__traceback__.tb_next if error.__traceback__ else None
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _exit_code(code: Any) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return 1


def _catch_figures(config: Config, source: bytes) -> None:
    """Pictures that the script shows become files: by a backend for matplotlib, and in Pillow and plotly."""
    os.environ["RINGFENCE_FIGURES"] = config["figures"]
    os.environ["MPLBACKEND"] = "module://ringfence_figures"
    sys.path.append(config["library"])
    if "matplotlib" in sys.modules:
        sys.modules["matplotlib"].rcParams["backend"] = "module://ringfence_figures"
        if "matplotlib.pyplot" in sys.modules:
            sys.modules["matplotlib.pyplot"].switch_backend("module://ringfence_figures")
    for word, catch in ((b"PIL", _catch_pillow), (b"plotly", _catch_plotly)):
        if word in source:
            with contextlib.suppress(ImportError):
                catch()


def _catch_pillow() -> None:
    image: Any = importlib.import_module("PIL.Image").Image
    image.save = getattr(image.save, "__wrapped__", image.save)

    def show(self: Any, title: str | None = None, **options: Any) -> None:
        importlib.import_module("ringfence_figures").save(self.save)

    image.show = show


def _catch_plotly() -> None:
    plotly: Any = importlib.import_module("plotly.io")
    base: Any = importlib.import_module("plotly.io._base_renderers")

    class Renderer(base.ExternalRenderer):  # type: ignore[misc]
        def render(self, fig_dict: Any) -> None:
            write = functools.partial(plotly.write_html, fig_dict, validate=False)
            importlib.import_module("ringfence_figures").save(write, "html")

    plotly.renderers["ringfence_run"] = Renderer()
    plotly.renderers.default = "ringfence_run"


if __name__ == "__main__" and os.path.isfile(f"{sys.argv[0]}{_SUFFIX}"):  # noqa: PTH113
    with open(f"{sys.argv[0]}{_SUFFIX}") as _file:
        _config = json.load(_file)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    sys.exit(script(_config))
