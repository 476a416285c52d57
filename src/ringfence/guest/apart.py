"""Work that takes long, in a process of its own: a fork of this one, so that the event loop goes on.

Not in a thread. Each thread of PID 1 has a directory of its own in /proc, under a number that is not known
before and that no mask can cover; through it the memory map of PID 1, and with that the host's paths, could
be had by whoever reads files. PID 1 has no threads.
"""

import errno
import json
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from ringfence.guest.waiting import readable

_ALL_SIGNALS = signal.valid_signals()
_DONE = b"done"
_MAX_REPORT = 64 * 1024


async def run_apart(work: Callable[[], None]) -> None:
    """Run `work` in a child process and wait for its end. The child goes on when nobody waits any more.

    Raises the `OSError` that `work` raised, and one when there can be no child or it was killed.
    """
    report, given = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            pid = _fork(work, given)
        finally:
            os.close(given)
        answer = b""
        while True:
            await readable(report)
            data = os.read(report, _MAX_REPORT)
            if not data:
                break
            answer += data
    finally:
        os.close(report)
    _collect(pid)
    if answer != _DONE:
        raise _error(answer)


def _collect(pid: int) -> None:
    with suppress(ChildProcessError):  # PID 1 collects its children elsewhere
        os.waitpid(pid, os.WNOHANG)


def _fork(work: Callable[[], None], report: int) -> int:
    # No signal may run one of our handlers in the child: they write to our event loop.
    signals = signal.pthread_sigmask(signal.SIG_BLOCK, _ALL_SIGNALS)
    try:
        pid = os.fork()
        if pid == 0:
            _work(work, report)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)
    return pid


def _work(work: Callable[[], None], report: int) -> NoReturn:
    """The child's part: never returns into the guest's code, whatever happens."""
    answer = _DONE
    try:
        signal.set_wakeup_fd(-1)
        work()
    except RecursionError:
        answer = _report(OSError(errno.ENAMETOOLONG, "the directories are nested too deeply"))
    except OSError as error:
        answer = _report(error)
    except BaseException as error:
        answer = _report(OSError(errno.EIO, f"{type(error).__name__}: {error}"))
    with suppress(OSError):
        os.write(report, answer)
    os._exit(0)


def _report(error: OSError) -> bytes:
    name = None if error.filename is None else os.fsdecode(error.filename)
    return json.dumps([error.errno, error.strerror or str(error), name]).encode()[:_MAX_REPORT]


def _error(answer: bytes) -> OSError:
    if not answer:
        return OSError(errno.EIO, "the process that did it was killed")
    number, text, name = json.loads(answer)
    return OSError(number or errno.EIO, text, name)
