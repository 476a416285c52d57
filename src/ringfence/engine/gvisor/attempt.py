"""Runs a program for so many seconds at most, and leaves nothing of it: ``attempt <seconds> <program> …``.

runsc starts processes that outlive it when it is killed. They become children of this one, which ends them.
The exit status is the program's, 124 when it took too long.
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from ringfence.engine.isolation import linux

_TIMED_OUT = 124


def main() -> int:
    """Entry point."""
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TIMED_OUT))
    try:
        status = subprocess.run(sys.argv[2:], timeout=float(sys.argv[1]), check=False).returncode
        return status if status >= 0 else 128 - status
    except subprocess.TimeoutExpired:
        return _TIMED_OUT
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return 127
    finally:
        _end_children()


def _end_children() -> None:
    while True:
        for pid in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children() -> list[int]:
    text = Path(f"/proc/self/task/{os.getpid()}/children")
    try:
        return [int(pid) for pid in text.read_text().split()]
    except OSError:
        return []


if __name__ == "__main__":
    sys.exit(main())
