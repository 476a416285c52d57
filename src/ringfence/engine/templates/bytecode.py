"""Compile a tree of Python source to byte code without importing any of it.

Run as a script by the interpreter that will use the result, isolated and without ``site``::

    python -I -S bytecode.py TREE INSIDE JOBS

so that neither a ``.pth`` file nor a ``sitecustomize`` of the tree is ever executed; the source is only
parsed. The code objects say that they come from below INSIDE, where the tree will be mounted. Prints ``done
total`` now and then.
"""

import compileall
import ctypes
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial

_CHUNK = 50
_REPORT_EVERY = 1000
_PR_SET_PDEATHSIG = 1


def sources(tree: str) -> Iterator[str]:
    """Every regular ``.py`` file below `tree`; symbolic links are not followed."""
    for directory, names, files in os.walk(tree):
        names[:] = sorted(name for name in names if name != "__pycache__")
        for name in sorted(files):
            path = os.path.join(directory, name)  # noqa: PTH118 (thirty thousand of them)
            if name.endswith(".py") and not os.path.islink(path):  # noqa: PTH114
                yield path


def compile_one(path: str, tree: str, inside: str) -> bool:
    """Compile one file; False where the source does not compile (wheels carry files for other Pythons and
    for tests).
    """
    warnings.simplefilter("ignore")
    return bool(compileall.compile_file(path, quiet=2, stripdir=tree, prependdir=inside))


def end_with(parent: int) -> None:
    """End this worker with its parent; else it would wait for work, and hold the builder's lock, for ever."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def compile_tree(tree: str, inside: str, jobs: int) -> None:
    """Compile everything below `tree` in `jobs` processes."""
    paths = list(sources(tree))
    work = partial(compile_one, tree=tree, inside=inside)
    with ProcessPoolExecutor(jobs, initializer=end_with, initargs=(os.getpid(),)) as pool:
        for done, _ in enumerate(pool.map(work, paths, chunksize=_CHUNK), start=1):
            if done % _REPORT_EVERY == 0 or done == len(paths):
                print(done, len(paths), flush=True)


if __name__ == "__main__":
    compile_tree(sys.argv[1], sys.argv[2], int(sys.argv[3]))
