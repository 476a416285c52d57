"""What of a Python kernel is carried into a copy: its variables, history and surroundings, and how they are
put back.
"""

import importlib
import linecache
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any

from .shell import KernelShell

_MACHINERY = frozenset(("In", "Out", "_ih", "_oh", "_dh", "__builtins__", "__builtin__"))
"""Names of the namespace that every kernel has of its own."""

_RANKS = {ModuleType: 0, FunctionType: 1}

Item = tuple[str, Any, Any]
"""``("variable", name, value)`` or ``("output", number of the cell, value)``."""


class Baseline:
    """What a kernel had before its first cell; only what differs from it is carried."""

    def __init__(self, shell: KernelShell) -> None:
        self.namespace: dict[str, Any] = dict(shell.user_ns)
        self.environment = dict(os.environ)


def items_of(shell: KernelShell, baseline: Baseline) -> list[Item]:
    """Everything in the namespace and in ``Out`` that cells have put there."""
    missing = object()
    items: list[Item] = [
        ("variable", name, value)
        for name, value in list(shell.user_ns.items())
        if name not in _MACHINERY and baseline.namespace.get(name, missing) is not value
    ]
    # What others may need while they are loaded comes first.
    items.sort(key=lambda item: _RANKS.get(type(item[2]), 1 if isinstance(item[2], type) else 2))
    outputs = shell.history_manager.output_hist
    return items + [("output", number, value) for number, value in list(outputs.items())]


def surroundings_of(
    shell: KernelShell, baseline: Baseline, *, count: int, cell_env: Mapping[str, str | None]
) -> dict[str, Any]:
    """The rest, as plain values. `count`: the number of the next cell. `cell_env`: variables that only the
    cell that runs has, with what they were before.
    """
    history = shell.history_manager
    environment = {**os.environ, **{key: value for key, value in cell_env.items() if value is not None}}
    for key, value in cell_env.items():
        if value is None:
            environment.pop(key, None)
    before = baseline.environment
    return {
        "count": count,
        "inputs": list(history.input_hist_parsed),
        "raw": list(history.input_hist_raw),
        "cwd": _cwd(),
        "set": {key: value for key, value in environment.items() if before.get(key) != value},
        "unset": [key for key in before if key not in environment],
        "path": [entry for entry in sys.path if isinstance(entry, str)],
        "sources": {name: tuple(entry) for name, entry in _cell_sources(shell)},
        "cells": dict(getattr(shell.compile, "_filename_map", {})),
        "libraries": _library_settings(),
    }


def put_surroundings(shell: KernelShell, state: Mapping[str, Any]) -> list[str]:
    """Put back what `surroundings_of` took, before anything is loaded; what could not be, as sentences."""
    notes = []
    os.environ.update(state["set"])
    for key in state["unset"]:
        os.environ.pop(key, None)
    sys.path[:] = state["path"]
    if state["cwd"]:
        try:
            os.chdir(state["cwd"])
        except OSError as error:
            notes.append(f"the working directory {state['cwd']} cannot be entered: {error.strerror}")
    history = shell.history_manager
    history.input_hist_parsed[:] = state["inputs"]
    history.input_hist_raw[:] = state["raw"]
    shell.execution_count = state["count"]
    linecache.cache.update(state["sources"])
    if hasattr(shell.compile, "_filename_map"):
        shell.compile._filename_map.update(state["cells"])
    for name, settings in state["libraries"].items():
        try:
            _LIBRARIES[name][1](importlib.import_module(name), settings)
        except Exception as error:
            notes.append(f"the settings of {name} could not be restored: {type(error).__name__}: {error}")
    return notes


def put_item(shell: KernelShell, kind: str, name: Any, value: Any) -> None:
    """Put a variable or an output in its place."""
    if kind == "variable":
        shell.user_ns[name] = value
    else:
        shell.history_manager.output_hist[name] = value


def resume_history(shell: KernelShell) -> None:
    """Let IPython go on with ``_`` and its like: it does only when it finds what it last put there."""
    for name in ("_", "__", "___"):
        setattr(shell.displayhook, name, shell.user_ns.get(name, ""))
    history = shell.history_manager
    for name in ("_i", "_ii", "_iii"):
        setattr(history, name, str(shell.user_ns.get(name, "")))
    history._i00 = history.input_hist_raw[-1] if history.input_hist_raw else ""


def _cwd() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None


def _cell_sources(shell: KernelShell) -> Iterator[tuple[str, Any]]:
    """Where tracebacks find the source of functions that cells have defined."""
    names = set(getattr(shell.compile, "_filename_map", ()))
    for name, entry in list(linecache.cache.items()):
        if name in names and len(entry) == 4:
            yield name, entry


def _library_settings() -> dict[str, Any]:
    """The settings of libraries that users change all the time, of those that are imported."""
    found = {}
    for name, (read, _) in _LIBRARIES.items():
        module = sys.modules.get(name)
        if module is not None:
            try:
                found[name] = read(module)
            except Exception:  # noqa: S112 - another version of the library; its settings stay the usual ones
                continue
    return found


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are plain data, whose types every kernel has."""
    return {name: value for name, value in values.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(part) for part in value)
    return value is None or type(value) in (bool, int, float, str)


def _read_pandas(pandas: Any) -> dict[str, Any]:
    names = [name for name in pandas._config.config._registered_options if not name.startswith("io.")]
    deprecated = pandas._config.config._deprecated_options
    return _plain({name: pandas.get_option(name) for name in names if name not in deprecated})


def _put_pandas(pandas: Any, settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        if pandas.get_option(name) != value:
            pandas.set_option(name, value)


def _read_matplotlib(matplotlib: Any) -> dict[str, Any]:
    # Not what `rcParams[...]` gives: that would choose a backend.
    return _plain({name: dict.__getitem__(matplotlib.rcParams, name) for name in matplotlib.rcParams})


def _put_matplotlib(matplotlib: Any, settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        if not name.startswith("backend") and dict.get(matplotlib.rcParams, name) != value:
            matplotlib.rcParams[name] = value


def _read_numpy(numpy: Any) -> dict[str, Any]:
    return _plain({**numpy.get_printoptions(), "formatter": None})


def _put_numpy(numpy: Any, settings: dict[str, Any]) -> None:
    numpy.set_printoptions(**{**settings, "formatter": None})


_LIBRARIES: dict[str, tuple[Callable[[Any], dict[str, Any]], Callable[[Any, dict[str, Any]], None]]] = {
    "pandas": (_read_pandas, _put_pandas),
    "matplotlib": (_read_matplotlib, _put_matplotlib),
    "numpy": (_read_numpy, _put_numpy),
}
