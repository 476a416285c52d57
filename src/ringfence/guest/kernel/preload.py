"""Importing everything once, and touching what is slow the first time, before the first fork."""

import asyncio
import contextlib
import gc
import importlib
import io
import os
import sys
import threading
import warnings
from typing import Any

from . import main as _main  # noqa: F401 - everything a kernel can need is loaded before the fork
from .imports import when_imported
from .plots import show_plots
from .shell import KernelShell

INLINE_BACKEND = "module://matplotlib_inline.backend_inline"


def preload(modules: list[str]) -> dict[str, Any]:
    """Import `modules`, make the shell and prime first-use caches; then freeze what the collector knows.

    Returns ``{"modules": [imported], "failed": {name: error}, "threads": n}``. A module that cannot be
    imported is no reason to stop: it is slower, or fails, when user code imports it. `threads` should be 1.
    """
    os.environ.setdefault("MPLBACKEND", INLINE_BACKEND)
    shell = KernelShell.instance() if KernelShell.initialized() else KernelShell.make()
    done: list[str] = []
    failed: dict[str, str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in modules:
            try:
                importlib.import_module(name)
                done.append(name)
            except Exception as error:
                failed[name] = f"{type(error).__name__}: {error}"
        with contextlib.suppress(ImportError):  # the template may not have cloudpickle
            importlib.import_module("cloudpickle")
        for prime in (_shell, _pandas, _matplotlib, _plotly, _loop):
            try:
                prime(shell)
            except Exception as error:
                failed[f"prime {prime.__name__.strip('_')}"] = f"{type(error).__name__}: {error}"
    KernelShell.packages.record()
    _stop_threads()
    gc.collect()
    gc.freeze()
    return {"modules": done, "failed": failed, "threads": _threads()}


def _threads() -> int:
    """How many threads the kernel sees; a zygote's view of the root has no /proc of its own, then Python's
    count.
    """
    try:
        return len(os.listdir("/proc/self/task"))
    except FileNotFoundError:
        return threading.active_count()


def _shell(shell: KernelShell) -> None:
    """The transformations, the compiler and the formatting of tracebacks."""
    shell.sink = _Nowhere()
    with contextlib.redirect_stdout(io.StringIO()):
        for code in (
            "1 + 1",
            "x = 1\nx",
            "1 / 0",
            "%who",
            "[1, {'a': 2}]",
            "await __import__('asyncio').sleep(0)",
        ):
            shell.run_cell(code, store_history=False)
    shell.run_cell("%reset -f", store_history=False)


class _Nowhere:
    """A sink for what the priming cells show."""

    def display(self, data: dict[str, Any], *, main: bool) -> None:
        """Nothing."""

    def update(self, display_id: str, data: dict[str, Any]) -> None:
        """Nothing."""

    def error(self, name: str, value: str, trace: str) -> None:
        """Nothing."""


def _pandas(shell: KernelShell) -> None:
    pandas = sys.modules.get("pandas")
    if pandas is None:
        return
    frame = pandas.DataFrame({"n": [1.5, 2.5, 3.5], "k": ["a", "b", "a"], "i": [1, 2, 3]})
    shell.display_formatter.format(frame.describe())
    shell.display_formatter.format(frame.groupby("k").sum(numeric_only=True))
    text = frame.to_csv(index=False)
    shell.display_formatter.format(pandas.read_csv(io.StringIO(text)).sort_values("n").merge(frame, on="k"))
    shell.display_formatter.format(frame["n"] @ frame["n"])


def _matplotlib(shell: KernelShell) -> None:
    if "matplotlib" not in sys.modules:
        return
    pyplot = importlib.import_module("matplotlib.pyplot")
    for kind in ("plot", "bar", "scatter"):
        figure, axes = pyplot.subplots()
        getattr(axes, kind)([1, 2, 3], [1, 4, 9], label="squares")
        axes.set(title="Title", xlabel="x (s)", ylabel="y [m]")
        axes.legend()
        axes.grid(visible=True)
        shell.display_formatter.format(figure)
        figure.savefig(io.BytesIO(), format="png")
    pyplot.close("all")


def _plotly(shell: KernelShell) -> None:
    express = sys.modules.get("plotly.express")
    if express is not None:
        when_imported("plotly.io", show_plots)
        shell.display_formatter.format(express.line(x=[1, 2], y=[3, 4]))


def _loop(_shell: KernelShell) -> None:
    loop = asyncio.new_event_loop()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    asyncio.set_event_loop(None)


def _count_threads() -> int | None:
    """Threads of this process; None where there is no ``/proc``."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return None


def _stop_threads() -> None:
    """End the workers of numeric libraries: they do so themselves before a fork, and start new ones when
    needed.

    Namespaces can only be joined, and memory only be forked safely, by a process with one thread.
    """
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
