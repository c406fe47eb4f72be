"""Line charts of an evaluation: success over cost, and masks over zooms, as images for the page and as PNG.

A line with a single point is a level: a dotted line keeps its height across the panel.
"""

from typing import Mapping, NamedTuple, Sequence

import numpy as np
from PIL import Image

from activeo3.charts import chart_style
from activeo3.intervals import Metric

COLOURS = ("#6ab0ef", "#ff9f43", "#6cc987", "#b894e0", "#ee6a7c", "#74c7c7", "#d8b47c", "#aab2be")
PAPER, INK, FAINT, LINE = "#16191f", "#f0f2f5", "#969eaa", "#2e343e"
GROUND = {"figure.facecolor": PAPER, "savefig.facecolor": PAPER, "text.color": INK, "axes.titlecolor": INK}


class Panel(NamedTuple):
    """One chart: what is plotted, over what, and the points (x, value) of every line by its label."""

    value: str
    over: str
    lines: Mapping[str, Sequence[tuple[float, Metric | float | None]]]


def draw(panels: Sequence[Panel], title: str) -> Image.Image:
    """The panels side by side with one legend; values with an interval have an error bar, missing ones are left out."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    labels = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    with rc_context(chart_style(FAINT, LINE, COLOURS) | GROUND):
        figure = Figure(
            figsize=(4.2 * len(panels) + 0.8, 3.6 + 0.25 * -(-len(labels) // 4)), dpi=100, layout="constrained"
        )
        figure.suptitle(title)
        for axes, panel in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels):
            for name, points in panel.lines.items():
                _line(axes, points, name, COLOURS[labels.index(name) % len(COLOURS)])
            axes.set(title=panel.value.replace("_", " "), xlabel=panel.over)
            axes.xaxis.get_major_locator().set_params(integer=True)  # regions, zooms and tokens are counted
        handles = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels())}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _line(axes, points: Sequence[tuple[float, Metric | float | None]], name: str, colour: str) -> None:
    known = [
        (x, value if isinstance(value, Metric) else Metric(value, np.nan, np.nan))
        for x, value in points
        if value is not None
    ]
    known = sorted((x, metric) for x, metric in known if np.isfinite(metric.value))
    if not known:
        return
    x, (y, low, high) = [x for x, _ in known], np.array([metric for _, metric in known], dtype=float).T
    if len(known) == 1:
        axes.axhline(y[0], color=colour, linestyle=":", linewidth=1.5)
    errors = np.nan_to_num([y - low, high - y]).clip(0)
    axes.errorbar(x, y, yerr=errors, color=colour, label=name, marker="o", markersize=4, linewidth=1.8, elinewidth=0.8)
