"""Starting a kernel in a fresh interpreter, for when the packages on disk are no longer those that were
preloaded.

The sources of this package travel in memory: in the sandbox its files do not exist.
"""

import json
import os
import sys
from pathlib import Path
from typing import NoReturn

_PACKAGE = (__package__ or "ringfence_kernel").rpartition(".")[2]
_DIRECTORY = Path(__file__).parent
FINDER = """
import importlib.abc, importlib.util, json, os, sys

class RingfenceKernelFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, package, sources, data):
        self.package, self.sources, self.data = package, sources, data
    def find_spec(self, name, path=None, target=None):
        package, _, module = name.partition(".")
        if package != self.package or (module or "__init__") not in self.sources:
            return None
        return importlib.util.spec_from_loader(name, self, is_package=not module, origin="<ringfence>")
    def exec_module(self, module):
        source = self.sources[module.__name__.partition(".")[2] or "__init__"]
        name = module.__name__.replace(".", "/")
        module.__file__ = "/ringfence/" + name + ("" if "/" in name else "/__init__") + ".py"
        exec(compile(source, module.__file__, "exec"), module.__dict__)
    def get_data(self, path):
        return self.data[os.path.relpath(path, "/ringfence/" + self.package)].encode()

def load():
    with open(int(sys.argv[1]), encoding="utf-8") as file:
        return RingfenceKernelFinder(*json.load(file))
"""
"""Code that finds this package in a JSON file whose descriptor is the first argument."""

# The second argument is the control channel.
_BOOTSTRAP = f"""{FINDER}
def start():
    finder, control = load(), int(sys.argv[2])
    del sys.argv[1:]
    sys.meta_path.insert(0, finder)
    main = importlib.import_module(finder.package + ".main")
    sys.meta_path.remove(finder)
    main.run(control)

start()
"""


def sources_of(directory: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The modules (by name) and the other files (by path) of the package in `directory`."""
    modules = {path.stem: path.read_text("utf-8") for path in sorted(directory.glob("*.py"))}
    others = sorted(directory.rglob("*.js"))
    return modules, {str(path.relative_to(directory)): path.read_text("utf-8") for path in others}


_SOURCES, _DATA = sources_of(_DIRECTORY)


def adopt(sources: dict[str, str], data: dict[str, str]) -> None:
    """Know the package's files, for a process that has the package from memory only."""
    _SOURCES.update(sources)
    _DATA.update(data)


def execute(control: int) -> NoReturn:
    """Replace this process by a fresh interpreter that is a kernel on `control`. Raises OSError."""
    memory = os.memfd_create("kernel", 0)
    with open(memory, "w", encoding="utf-8", closefd=False) as file:
        json.dump([_PACKAGE, _SOURCES, _DATA], file)
    os.lseek(memory, 0, os.SEEK_SET)
    os.set_inheritable(control, True)
    os.execve(sys.executable, [sys.executable, "-c", _BOOTSTRAP, str(memory), str(control)], dict(os.environ))  # noqa: S606
