"""What must differ between two kernels forked from one process: every source of randomness.

Python's own ``random`` reseeds itself on ``os.fork``, but a raw ``clone`` knows nothing of that, and the pid,
which several libraries take as the sign of a fork, may be equal in two sandboxes. So everything is reseeded
by name.
"""

import ctypes
import os
import random
import sys
import tempfile
import uuid
from collections.abc import Callable
from typing import Any

_hooks: list[Callable[[], None]] = []


def register_after_fork(hook: Callable[[], None]) -> None:
    """Call `hook` in every kernel after it was forked, before user code; what it raises is ignored."""
    _hooks.append(hook)


def reseed() -> None:
    """Give this process its own randomness. Only libraries that are already imported are touched."""
    random.seed()
    ctypes.CDLL(None).srandom(int.from_bytes(os.urandom(4), "little"))
    vars(tempfile)["_name_sequence"] = None
    vars(uuid)["_last_timestamp"] = vars(uuid)["_node"] = None
    for hook in (*_LIBRARIES, *_hooks):
        try:
            hook()
        except Exception:  # noqa: S112 - a library that changed its interface must not stop a kernel
            continue


def _loaded(name: str) -> Any:
    """The module `name` if something imported it, else None."""
    return sys.modules.get(name)


def _numpy() -> None:
    if module := _loaded("numpy.random"):
        module.seed([int.from_bytes(os.urandom(4), "little") for _ in range(8)])


def _openssl() -> None:
    if module := _loaded("ssl"):
        module.RAND_add(os.urandom(32), 32.0)


def _multiprocessing() -> None:
    if module := _loaded("multiprocessing.process"):
        module.current_process().authkey = os.urandom(32)


def _torch() -> None:
    if module := _loaded("torch"):
        module.seed()


_LIBRARIES = (_numpy, _openssl, _multiprocessing, _torch)
