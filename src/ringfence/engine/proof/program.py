"""The attacks as one text that any Python runs: the modules of `inside`, registered under their own names."""

import functools
import importlib
import json
from collections.abc import Collection
from pathlib import Path
from types import ModuleType
from typing import Any

from ringfence.engine.isolation import syscalls
from ringfence.engine.proof.inside import harness

_PACKAGE = "ringfence.engine.proof.inside"
_ATTACKS = ("files", "processes", "kernel", "network", "limits", "control", "grants", "neighbours")
_PARENTS = ("ringfence", "ringfence.engine", "ringfence.engine.isolation", "ringfence.engine.proof", _PACKAGE)
_LOADER = """
import sys, types
def _load(modules):
    names = [*{parents!r}, *modules]
    before = {{name: sys.modules.get(name) for name in names}}
    for name in {parents!r}:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = []
    for name, text in modules.items():
        module = sys.modules[name] = types.ModuleType(name)
        exec(compile(text, name, "exec"), module.__dict__)
        parent, _, last = name.rpartition(".")
        setattr(sys.modules[parent], last, module)
    loaded = dict(sys.modules)
    for name, module in before.items():
        sys.modules.pop(name, None) if module is None else sys.modules.__setitem__(name, module)
    return loaded
_loaded = _load({modules!r})
"""


def _modules() -> list[ModuleType]:
    return [importlib.import_module(f"{_PACKAGE}.{name}") for name in ("harness", "native", *_ATTACKS)]


_LOADED = [syscalls, *_modules()]
"""Imported here, which also registers the attacks on the host, where their names and layers are needed."""
ATTACKS = harness.ATTACKS


@functools.cache
def _prelude() -> str:
    texts = {module.__name__: Path(str(module.__file__)).read_text() for module in _LOADED}
    return _LOADER.format(parents=_PARENTS, modules=texts)


def attacks(who: str, names: Collection[str], facts: dict[str, Any]) -> str:
    """A program that runs the named attacks as `who` and prints a line of JSON for each."""
    arguments = f"{who!r}, {sorted(names)!r}, __import__('json').loads({json.dumps(facts)!r})"
    return f"{_prelude()}\n_loaded[{harness.__name__!r}].main({arguments})\n"


def neighbour(facts: dict[str, Any]) -> str:
    """The program of the neighbour: it prints ``ready`` and waits."""
    name = f"{_PACKAGE}.neighbours"
    return f"{_prelude()}\n_loaded[{name!r}].set_up(__import__('json').loads({json.dumps(facts)!r}))\n"
