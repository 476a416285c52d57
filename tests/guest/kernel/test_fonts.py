"""The font that matplotlib falls back to."""

import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("matplotlib")


def test_a_font_for_cjk_is_added_when_there_is_one() -> None:
    program = """
        import dataclasses, matplotlib
        from matplotlib import font_manager
        from ringfence.guest.kernel.fonts import add_fallback_fonts
        fonts = font_manager.fontManager.ttflist
        fonts[:] = [font for font in fonts if "CJK" not in font.name]
        before = list(matplotlib.rcParams["font.family"])
        add_fallback_fonts(font_manager)
        assert matplotlib.rcParams["font.family"] == before
        fonts.append(dataclasses.replace(fonts[0], name="Noto Sans CJK JP"))
        for _ in range(2):
            add_fallback_fonts(font_manager)
            assert matplotlib.rcParams["font.family"] == [*before, "Noto Sans CJK JP"]
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)
