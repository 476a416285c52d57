"""Figures of plotly: one result with the figure's JSON and a page fragment, whatever else is installed.

Plotly's own choice for notebooks sends its whole JavaScript library first, and fails without nbformat.
"""

import json
from types import ModuleType
from typing import Any

from IPython.display import display

RENDERER = "ringfence"
_MIME = "application/vnd.plotly.v1+json"


def show_plots(io: ModuleType) -> None:
    """Register our renderer with ``plotly.io`` and make it the default."""
    base: Any = __import__("plotly.io._base_renderers", fromlist=["ExternalRenderer"])

    class Renderer(base.ExternalRenderer):
        """Displays a figure as a MIME bundle."""

        def render(self, fig_dict: dict[str, Any]) -> None:
            """Show the figure; the script comes from plotly's CDN when the page is opened."""
            bundle = {
                _MIME: json.loads(io.to_json(fig_dict, validate=False)),
                "text/html": io.to_html(fig_dict, include_plotlyjs="cdn", full_html=False, validate=False),
                "text/plain": _describe(fig_dict),
            }
            display(bundle, raw=True)

    io.renderers[RENDERER] = Renderer()
    io.renderers.default = RENDERER


def _describe(figure: dict[str, Any]) -> str:
    kinds = ", ".join(str(trace.get("type", "?")) for trace in figure.get("data", ())) or "empty"
    title = (figure.get("layout", {}).get("title") or {}).get("text")
    return f"plotly Figure ({kinds})" + (f": {title}" if title else "")
