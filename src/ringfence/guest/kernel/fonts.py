"""Chinese, Japanese and Korean text in figures of matplotlib, when the sandbox has a font for it."""

import sys
from types import ModuleType

_FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Serif CJK JP", "WenQuanYi Zen Hei", "IPAexGothic")


def add_fallback_fonts(font_manager: ModuleType) -> None:
    """Draw what the usual font has no glyph for with the first of these fonts that is installed."""
    matplotlib = sys.modules["matplotlib"]
    installed = {font.name for font in font_manager.fontManager.ttflist}
    found = [name for name in _FONTS if name in installed][:1]
    family = matplotlib.rcParams["font.family"]
    if not set(found) <= set(family):
        matplotlib.rcParams["font.family"] = [*family, *found]
