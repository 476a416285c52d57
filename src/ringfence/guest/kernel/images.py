"""Pictures of PIL: ``show()`` displays, as there is no viewer, and so does ``save(path)``, as on E2B."""

import sys
from typing import Any

from IPython.display import display


def show_images() -> None:
    """Change PIL, now if it is loaded, else when it is imported."""
    if "PIL.Image" in sys.modules:
        _patch(sys.modules["PIL.Image"])
    else:
        sys.meta_path.insert(0, _WhenImported())


class _WhenImported:
    """A finder that finds nothing itself, but lets ``PIL.Image`` be patched when the others have loaded it."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """The real spec of ``PIL.Image`` with a loader that patches; None for everything else."""
        if name != "PIL.Image":
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                _patch_after(spec.loader)
                return spec
        return None


def _patch_after(loader: Any) -> None:
    execute = loader.exec_module

    def exec_module(module: Any) -> None:
        execute(module)
        _patch(module)

    loader.exec_module = exec_module


def _patch(module: Any) -> None:
    image = module.Image
    save = image.save
    if getattr(save, "_displays", False):
        return

    def displaying_save(self: Any, fp: Any, format: Any = None, **params: Any) -> None:  # noqa: A002 - PIL's name
        if isinstance(fp, str) and not _called_by_matplotlib():
            display(self)
        save(self, fp, format, **params)

    def show(self: Any, title: str | None = None) -> None:
        display(self)

    displaying_save.__doc__, show.__doc__ = save.__doc__, image.show.__doc__
    displaying_save._displays = True  # type: ignore[attr-defined]
    image.save, image.show = displaying_save, show


def _called_by_matplotlib() -> bool:
    """Whether ``savefig`` saves through PIL: the figure is shown anyway, at the end of the cell."""
    caller = sys._getframe(2).f_globals.get("__name__")
    return isinstance(caller, str) and caller.startswith("matplotlib.")
