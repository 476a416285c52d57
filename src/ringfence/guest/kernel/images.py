"""Pictures of PIL: ``show()`` displays, as there is no viewer, and so does ``save(path)``, as on E2B."""

import sys
from types import ModuleType
from typing import Any

from IPython.display import display


def show_images(module: ModuleType) -> None:
    """Change ``PIL.Image``, once."""
    image = module.Image
    save = image.save
    if getattr(save, "_displays", False):
        return

    def displaying_save(self: Any, fp: Any, format: Any = None, **params: Any) -> None:
        if isinstance(fp, str) and not _called_by_matplotlib():
            display(self)
        save(self, fp, format, **params)

    def show(self: Any, title: str | None = None) -> None:
        display(self)

    displaying_save.__doc__, show.__doc__ = save.__doc__, image.show.__doc__
    # What a program that is forked from a kernel, and has no displays, puts back.
    displaying_save.__wrapped__, show.__wrapped__ = save, image.show  # type: ignore[attr-defined]
    displaying_save._displays = True  # type: ignore[attr-defined]
    image.save, image.show = displaying_save, show


def _called_by_matplotlib() -> bool:
    """Whether ``savefig`` saves through PIL: the figure is shown anyway, at the end of the cell."""
    caller = sys._getframe(2).f_globals.get("__name__")
    return isinstance(caller, str) and caller.startswith("matplotlib.")
