"""Representations that E2B's clients expect beside IPython's own: ``e2b/data``, ``e2b/chart``,
``application/json``.

None of them may fail a cell: a value they cannot describe simply has no such representation.
"""

import importlib
import sys
import warnings
from typing import Any

from IPython.core.formatters import BaseFormatter as Formatter
from IPython.core.formatters import DisplayFormatter, JSONFormatter
from traitlets import ObjectName, Unicode

from .jsonable import MAX_NODES, jsonable

_MAX_CHART_POINTS = 50_000


class DataFormatter(Formatter):
    """A DataFrame as ``{column: [values]}``."""

    format_type = Unicode("e2b/data")
    print_method = ObjectName("_repr_e2b_data_")
    _return_type = (dict, str)

    def __call__(self, obj: Any) -> Any:
        """The frame's columns, or None when `obj` is no frame or has too many cells."""
        pandas = sys.modules.get("pandas")
        frame = getattr(pandas, "DataFrame", None)
        if frame is None or not isinstance(obj, frame):
            return super().__call__(obj)
        if obj.size > MAX_NODES:
            return None
        try:
            return jsonable(obj.to_dict(orient="list"))
        except Exception:
            return None


class ChartFormatter(Formatter):
    """A matplotlib figure as the data it shows."""

    format_type = Unicode("e2b/chart")
    print_method = ObjectName("_repr_e2b_chart_")
    _return_type = (dict, str)

    def __call__(self, obj: Any) -> Any:
        """The chart's description, ``{}`` for a blank figure, None when `obj` is no figure or cannot be
        described.
        """
        figures = sys.modules.get("matplotlib.figure")
        if figures is None or not isinstance(obj, figures.Figure):
            return super().__call__(obj)
        try:
            charts = importlib.import_module(
                "e2b_charts"
            )  # the template's; it imports all of pyplot, so not earlier
        except ImportError:
            return None
        try:
            if _points(obj) > _MAX_CHART_POINTS:
                return None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return jsonable(charts.chart_figure_to_dict(obj))
        except Exception:
            return _undescribed(obj)


def _points(figure: Any) -> int:
    """How many points the lines and clouds of `figure` have."""
    count = 0
    for axes in figure.axes:
        count += sum(len(line.get_xdata(orig=False)) for line in axes.get_lines())
        count += sum(len(cloud.get_offsets()) for cloud in axes.collections if hasattr(cloud, "get_offsets"))
    return count


def _undescribed(figure: Any) -> dict[str, Any] | None:
    """The chart of kind ``unknown``, for a figure that the extractor gave up on."""
    try:
        title = figure.axes[0].get_title() if len(figure.axes) == 1 else figure.get_suptitle()
        return {"type": "unknown", "title": title or None, "elements": []}
    except Exception:
        return None


class ResultJSONFormatter(JSONFormatter):
    """``application/json`` also for plain lists and dicts, while `main_result` is set."""

    main_result = False

    def __call__(self, obj: Any) -> Any:
        """What the object says of itself, or the list or dict as strict JSON when it can be."""
        if not (self.main_result and isinstance(obj, (list, dict))):
            return super().__call__(obj)
        try:
            return jsonable(obj)
        except Exception:
            return None


def add_formatters(display_formatter: DisplayFormatter) -> ResultJSONFormatter:
    """Put ours beside IPython's; returns the JSON one, which must be told what a main result is."""
    formatters = display_formatter.formatters
    formatters["e2b/data"] = DataFormatter(parent=display_formatter)
    formatters["e2b/chart"] = ChartFormatter(parent=display_formatter)
    formatters["application/json"] = ResultJSONFormatter(parent=display_formatter)
    formatters["text/plain"].max_seq_length = 0
    result: ResultJSONFormatter = formatters["application/json"]
    return result
