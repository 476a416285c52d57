"""Pickling what cells have made: cloudpickle, with functions that stay tied to the kernel's namespace.

cloudpickle gives each function it copies a namespace of its own, with the values that its globals had. In a
copy of a whole kernel that would be wrong: a function must see what later cells assign. So functions of the
namespace are copied here, bare, and find it again where they are loaded. Cells of closures are objects like
any others, so that functions which share a ``nonlocal`` variable still do.

cloudpickle is the template's, and imported when it is needed.
"""

import functools
import sys
from collections.abc import Callable
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any, Protocol

_CACHED = type(functools.lru_cache(lambda: None))
_SLOTS = ("__name__", "__qualname__", "__module__", "__doc__", "__defaults__", "__kwdefaults__")


class Sink(Protocol):
    """Where a pickler's bytes go."""

    def write(self, data: Any, /) -> int:
        """Take `data`; how many bytes that were."""


@functools.cache
def pickler_class() -> Any:
    """A pickler class: see `pickle.Pickler`, but its third argument is the module whose namespace it is for.

    Raises ImportError: the template, or the user, has no cloudpickle.
    """
    import cloudpickle

    class NamespacePickler(cloudpickle.Pickler):
        def __init__(self, sink: Sink, buffer_callback: Callable[[Any], bool], module: ModuleType) -> None:
            super().__init__(sink, protocol=5, buffer_callback=buffer_callback)
            self._module = module
            self._namespace = vars(module)

        def reducer_override(self, obj: Any) -> Any:
            reduced = _reduce(obj, self._module, self._namespace)
            return super().reducer_override(obj) if reduced is None else reduced

    return NamespacePickler


def _reduce(obj: Any, module: ModuleType, namespace: dict[str, Any]) -> Any:
    """How `obj` is to be made again, where cloudpickle would not do."""
    kind = type(obj)
    if kind is FunctionType and obj.__globals__ is namespace:
        return make_function, (obj.__code__, obj.__closure__), _state_of(obj), None, None, set_state
    if kind is CellType:
        return _reduce_cell(obj)
    if obj is module:
        return main_module, ()
    if kind is _CACHED and getattr(obj, "__module__", None) == "__main__":
        parameters = obj.cache_parameters()
        return make_cached, (obj.__wrapped__, parameters["maxsize"], parameters["typed"])
    return None


def _state_of(function: FunctionType) -> dict[str, Any]:
    slots = {name: getattr(function, name) for name in _SLOTS}
    slots["__annotations__"] = function.__annotations__
    if parameters := getattr(function, "__type_params__", ()):
        slots["__type_params__"] = parameters
    return {"slots": slots, "dict": dict(function.__dict__)}


def _reduce_cell(cell: CellType) -> Any:
    try:
        contents = cell.cell_contents
    except ValueError:
        return make_cell, ()
    return make_cell, (), (contents,), None, None, fill_cell


# What is called where the pickle is loaded.


def main_module() -> ModuleType:
    """The module whose namespace is the kernel's."""
    return sys.modules["__main__"]


def make_function(code: CodeType, closure: tuple[CellType, ...] | None) -> FunctionType:
    """A function of the kernel's namespace; `set_state` gives it the rest."""
    return FunctionType(code, vars(main_module()), code.co_name, None, closure)


def set_state(function: FunctionType, state: dict[str, Any]) -> None:
    """Give a function what it has beside its code."""
    for name, value in state["slots"].items():
        setattr(function, name, value)
    function.__dict__.update(state["dict"])


def make_cell() -> CellType:
    """A cell without contents."""
    return CellType()


def fill_cell(cell: CellType, contents: tuple[Any]) -> None:
    """Give a cell its contents."""
    (cell.cell_contents,) = contents


def make_cached(function: Callable[..., Any], maxsize: int | None, typed: bool) -> Any:
    """`function` behind ``functools.lru_cache``, whose entries are not copied."""
    return functools.lru_cache(maxsize, typed)(function)
