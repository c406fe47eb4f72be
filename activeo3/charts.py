"""Curves over the steps of a run, as SVG for the page: its colours are the page's own, light or dark."""

import io
import math
import re
from typing import Any, Iterable, Mapping, Sequence

import numpy as np

from activeo3.monitor import METRIC_GLOSSARY

Row = Mapping[str, Any]
Points = tuple[np.ndarray, np.ndarray]  # steps (n,), values (n,)

# Matplotlib wants colours and the page has variables: each of these stands for one of them until the SVG is written.
COLOURS = {name: f"#0000{i:02x}" for i, name in enumerate("ink faint line accent c0 c1 c2 c3 c4 c5".split(), start=1)}
SIZE = (360, 190)
LEFT, RIGHT, TOP, BOTTOM = 42, 60, 10, 26


def chart_style(faint: str, line: str, series: Iterable[str]) -> dict[str, Any]:
    """Matplotlib's settings for all charts of the project: horizontal grid lines in place of a frame."""
    from matplotlib import cycler

    edges = {f"axes.spines.{edge}": False for edge in ("left", "right", "top", "bottom")}
    marks = {f"{axis}tick.{place}": False for axis, place in (("x", "bottom"), ("y", "left"))}
    return {
        "font.size": 10,
        "text.color": faint,
        "axes.labelcolor": faint,
        "xtick.color": faint,
        "ytick.color": faint,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": line,
        "grid.linewidth": 1,
        "lines.linewidth": 2.2,
        "lines.solid_capstyle": "round",
        "legend.frameon": False,
        "axes.prop_cycle": cycler(color=list(series)),
        **edges,
        **marks,
    }


SENSING = ("coverage", "evidence", "match", "location", "iou", "text")
FINDING = ("task", "answer", "count", "number", "class")
"""The terms of the reward that say most: of where a policy looks, and of what it finds there."""
AS_THEY_ARE = ("lr", "skipped_steps", "memory_gb")
"""Metrics without noise: a moving mean would show something that never was."""


def charts(rows: Sequence[Row], ceilings: Mapping[str, float] = {}) -> list[dict[str, Any]]:
    """The charts of a run, as the page's template wants them: ``name``, ``unit``, ``main``, ``svg`` and ``phases``.

    The four main ones first: reward, sensing, finding, KL; then the other terms, everything else in glossary order, and
    the seconds. ``ceilings`` has the largest value that a metric can have, which the main charts show as a line.
    """
    terms = dict.fromkeys(name for row in rows for name in row if name.startswith("reward/"))
    names = dict.fromkeys(["reward", *terms, *(name for name in METRIC_GLOSSARY if not name.startswith("time/"))])
    known = {name: points for name in names if len((points := series(rows, name))[0])}
    chosen = ["reward", *(_first(group, known) for group in (SENSING, FINDING)), "kl"]
    main = [name for name in dict.fromkeys(chosen) if name in known]
    found = [_curve(name, *known[name], ceilings.get(name), main=True) for name in main]
    return found + [_curve(name, *known[name]) for name in known if name not in main] + _phases(rows)


def _first(terms: Sequence[str], known: Mapping[str, Points]) -> str:
    """The first of these terms of the reward that was logged, or ""."""
    return next((f"reward/{term}" for term in terms if f"reward/{term}" in known), "")


def _curve(
    name: str, steps: np.ndarray, values: np.ndarray, ceiling: float | None = None, main: bool = False
) -> dict[str, Any]:
    """One metric over the steps: faint single values, their moving mean, its last value, and its ceiling."""
    unit = METRIC_GLOSSARY[name].unit if name in METRIC_GLOSSARY else ""
    mean = values if name in AS_THEY_ARE else smoothed(values)
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), 400)).astype(int))
    steps, values, mean = steps[chosen], values[chosen], mean[chosen]
    low, high = _limits(values, mean, ceiling)
    with _styled(name):
        figure, axes = _axes(SIZE, steps, low, high)
        if ceiling is not None:
            axes.axhline(ceiling, color=COLOURS["faint"], linestyle="--", linewidth=1)
        axes.plot(steps, np.clip(values, low, high), ".", markersize=4, color=COLOURS["faint"], alpha=0.45, mew=0)
        axes.plot(steps, np.clip(mean, low, high), color=COLOURS["accent"])
        last = {"color": COLOURS["accent"], "fontweight": "bold", "fontsize": 12, "va": "center"}
        axes.annotate(short(mean[-1]), (steps[-1], mean[-1]), (7, 0), textcoords="offset points", **last)
        ceiling_words = "" if ceiling is None else f"dashed: {short(ceiling)} is the most there can be"
        words = {"unit": unit, "ceiling": ceiling_words}
        return {"name": name, **words, "main": main, "svg": _svg(figure), "phases": ()}


def _limits(values: np.ndarray, mean: np.ndarray, ceiling: float | None) -> tuple[float, float]:
    """What an axis shows: the curve, 96 % of the values, so that a single wild step does not flatten it, and the
    ceiling."""
    low = min(float(np.percentile(values, 2)), float(mean.min()))
    high = max(float(np.percentile(values, 98)), float(mean.max()), low if ceiling is None else ceiling)
    return low - 0.04 * (high - low), high + 0.04 * (high - low)


def _phases(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Seconds by phase, stacked, and on top what the phases leave of the whole step."""
    timed = [row for row in rows if len(series([row], "time/step")[0])]
    if not timed:
        return []
    steps, whole = series(timed, "time/step")
    logged = {name for row in timed for name in row if name.startswith("time/")} - {"time/step"}
    names = [name for name in METRIC_GLOSSARY if name in logged]
    layers: dict[str, np.ndarray] = {}
    for name in [*names, *sorted(logged - set(names))]:
        seconds = [series([row], name)[1].sum() for row in timed]  # a phase that a step lacks took no time in it
        layers[name.removeprefix("time/")] = smoothed(np.array(seconds))
    layers["other"] = np.maximum(0.0, smoothed(whole) - sum(layers.values()))
    colours = [f"c{i}" if i < 6 else "faint" for i in range(len(layers))]
    with _styled("time"):
        figure, axes = _axes(SIZE, steps, 0.0, float(sum(layers.values()).max()))
        axes.stackplot(steps, *layers.values(), colors=[COLOURS[name] for name in colours], alpha=0.8)
        keys = [(colour, f"{name} {seconds[-1]:.2g}") for colour, (name, seconds) in zip(colours, layers.items())]
        return [{"name": "time", "unit": "seconds per step", "main": False, "svg": _svg(figure), "phases": keys}]


# ---------------------------------------------------------------------- matplotlib


def _styled(salt: str) -> Any:
    """The context in which a chart is made; its ids come from ``salt``, so that equal charts are equal bytes."""
    import matplotlib

    series = [colour for name, colour in COLOURS.items() if name.startswith("c")]
    style = chart_style(COLOURS["faint"], COLOURS["line"], series)
    return matplotlib.rc_context(style | {"svg.fonttype": "none", "svg.hashsalt": salt})


def _axes(size: tuple[int, int], steps: np.ndarray, low: float, high: float) -> tuple[Any, Any]:
    """(figure, its axes) of ``size`` units, for these steps and values."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    width, height = size
    figure = Figure((width / 72, height / 72), dpi=72)
    place = (LEFT / width, BOTTOM / height, (width - LEFT - RIGHT) / width, (height - TOP - BOTTOM) / height)
    axes = figure.add_axes(place)
    axes.set_xlim(*_span(float(steps.min()), float(steps.max())))
    axes.set_ylim(*_span(low, high))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_locator(MaxNLocator(max(3, width // 110), steps=[1, 2, 5, 10], integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    figure.text(1, 12 / height, "step", ha="right", va="baseline")
    return figure, axes


def _svg(figure: Any) -> str:
    """A figure as an element of a page: no size of its own, no clipping, and the page's variables for colours."""
    for artist in figure.findobj():
        artist.set_clip_on(False)
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = stream.getvalue()
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", text[text.index("<svg ") :])
    text = re.sub(r"(\d\.\d)\d{5,}", r"\1", text)  # coordinates to a tenth of a pixel
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    names = {colour: f"var(--{name})" for name, colour in COLOURS.items()}
    return re.sub(r"#0000\w\w", lambda found: names.get(found[0], found[0]), text)


def _span(low: float, high: float) -> tuple[float, float]:
    """The same interval, widened where it has no length."""
    return (low, high) if high > low else (low - 0.5, high + 0.5)


# ---------------------------------------------------------------------- numbers


def series(rows: Sequence[Row], name: str) -> Points:
    """Steps and values (n,) of one metric, without the rows where it is missing or null."""
    pairs = [
        (row["step"], row[name]) for row in rows if isinstance(row.get(name), (int, float)) and math.isfinite(row[name])
    ]
    found = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def smoothed(values: np.ndarray) -> np.ndarray:
    """Moving mean (n,), centred, over about a thirtieth of the run, taken twice: one wild step makes a small hill.

    >>> smoothed(np.array([1.0, 1.0, 1.0])).tolist()
    [1.0, 1.0, 1.0]
    """
    if len(values) <= 10:
        return values
    half = math.ceil(len(values) / 60)
    window = np.full(2 * half + 1, 1 / (2 * half + 1))
    for _ in range(2):
        values = np.convolve(np.pad(values, half, mode="edge"), window, mode="valid")
    return values


def short(value: float) -> str:
    """Three digits, small numbers by their exponent.

    >>> short(0.843), short(-1250.0), short(2e-4), short(0)
    ('0.843', '-1250', '2e-4', '0')
    """
    if value and abs(value) < 1e-3:
        return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
