"""Starting a kernel in a process that is ready for it: after a fork or an exec."""

import atexit
import contextlib
import os
import socket
import sys
from typing import NoReturn

from . import bash, javascript, jupyter, process, streams
from .channel import Channel
from .fonts import add_fallback_fonts
from .images import show_images
from .imports import when_imported
from .interrupts import Interrupts
from .kernel import Kernel
from .plots import show_plots
from .shell import KernelShell


def run(control: int) -> NoReturn:
    """Be a kernel on the descriptor `control` until the guest closes it; then end the process.

    The guest's first message says what kernel: ``{"op": "init", "language": "python"}``, ``bash``,
    ``javascript`` with its packages' directory as ``spec``, or ``jupyter`` with a kernelspec's. One for
    Python may come with the ``state`` of another kernel.
    """
    process.set_title(process.TITLE)
    streams.install()
    interrupts = Interrupts()
    interrupts.disarm()
    channel = Channel(socket.socket(fileno=control), interrupts)
    init = channel.wait()
    if init is None:
        os._exit(0)
    language = init.get("language")
    if language == "javascript":
        javascript.run(channel, init["spec"])
    if language == "bash":
        bash.BashKernel(channel, interrupts).serve()
        os._exit(0)
    if language == "jupyter":
        jupyter.JupyterKernel(channel, interrupts, init["spec"]).serve()
        os._exit(0)
    _clean_path()
    when_imported("PIL.Image", show_images)
    when_imported("plotly.io", show_plots)
    when_imported("matplotlib.font_manager", add_fallback_fonts)
    shell = KernelShell.instance() if KernelShell.initialized() else KernelShell.make()
    Kernel(channel, shell, interrupts).serve(init.get("state"))
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
    streams.flush()
    os._exit(0)


def _clean_path() -> None:
    """Search the working directory first, as Jupyter does, and never the directory this package came from."""
    own = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    sys.path[:] = ["", *(entry for entry in sys.path if entry not in ("", own))]
