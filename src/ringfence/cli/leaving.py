"""How commands that used the SDK end."""

import os
import sys
from typing import NoReturn


def leave(status: int) -> NoReturn:
    """End the process at once with `status`, after flushing what was written.

    The SDK's HTTP library has native threads that now and then abort an interpreter which is being taken
    down; by
    now there is nothing left to take down.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            status = status or 1
    os._exit(status)
