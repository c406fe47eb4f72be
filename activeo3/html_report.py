"""After the last step: one self-contained HTML page about a training or evaluation run.

Result table, curves over steps as hand-written SVG, held-out pictures before and after, and the
glossary of the curves. No script, no external resource; it follows the reader's light or dark mode.

Everything that comes from data or a model goes through ``_shown``; a content policy in the
page's head forbids scripts and the network besides, in case that is ever forgotten.
"""

import base64
import html
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np
from PIL import Image

from activeo3 import outputs
from activeo3.drawing import FOUND, LACKING, REGION, SURPLUS, TRUE, Sample, save_jpeg
from activeo3.log import METRIC_GLOSSARY, MISSING, figure, is_number
from activeo3.terminal import printable

Row = Mapping[str, Any]
Points = tuple[np.ndarray, np.ndarray]  # steps (n,), values (n,)

STYLE = """
:root { color-scheme: light dark; --paper: #fbfbf9; --card: #ffffff; --ink: #1c1e21;
  --faint: #6b7280; --line: #e4e4e0; --accent: #d9730d; --track: #eeeeea;
  --c0: #3b82c4; --c1: #d9730d; --c2: #3f9c5a; --c3: #8d62b8;
  --c4: #b8935a; --c5: #4aa3a3; }
@media (prefers-color-scheme: dark) { :root { --paper: #14161a; --card: #1c1f25; --ink: #e8e9eb;
  --faint: #969ca8; --line: #2d3139; --accent: #ff9f43; --track: #2a2e36;
  --c0: #6ab0ef; --c1: #ff9f43; --c2: #6cc987; --c3: #b894e0;
  --c4: #d8b47c; --c5: #74c7c7; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 56px 24px 96px; }
h1 { font-size: 34px; line-height: 1.15; letter-spacing: -.02em; margin: 0 0 12px; }
h2 { font-size: 21px; letter-spacing: -.01em; margin: 56px 0 10px; }
p.note { color: var(--faint); margin: 0 0 18px; max-width: 74ch; }
ul.summary { list-style: none; margin: 0; padding: 0; color: var(--faint); }
ul.summary b { color: var(--ink); font-weight: 600; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 12px;
  margin-top: 28px; }
.tile, figure.chart, article, .scroll { background: var(--card); border: 1px solid var(--line);
  border-radius: 12px; }
.tile { padding: 14px 18px; } .tile span { color: var(--faint); font-size: 14px; display: block; }
.tile b { font-size: 27px; font-weight: 600; letter-spacing: -.02em;
  font-variant-numeric: tabular-nums; } .tile i { color: var(--faint); font-style: normal; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 9px 18px; border-top: 1px solid var(--line);
  vertical-align: baseline; overflow-wrap: anywhere; } thead th { border-top: 0; color: var(--faint); font-weight: 500;
  font-size: 14px; } th.right, td.right { text-align: right; white-space: nowrap; overflow-wrap: normal; }
td small { color: var(--faint); margin-left: 6px; }
code { font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: nowrap; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 12px; }
figure.chart { margin: 0; padding: 14px 14px 8px; }
figure.chart.wide { grid-column: 1 / -1; }
figcaption { display: flex; gap: 8px; align-items: baseline; padding: 0 4px 4px; flex-wrap: wrap; }
figcaption b { font-weight: 600; } figcaption span { color: var(--faint); font-size: 14px; }
.key { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin: 0 6px 0 14px; }
.key:first-child { margin-left: 0; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font-size: 11px; fill: var(--faint); font-variant-numeric: tabular-nums; }
svg text.last { font-size: 13px; font-weight: 600; fill: var(--accent); }
svg .grid { stroke: var(--line); } svg .raw { fill: var(--faint); opacity: .28; }
svg .smooth { fill: none; stroke: var(--accent); stroke-width: 2.2;
  stroke-linejoin: round; stroke-linecap: round; }
article { padding: 20px; margin-top: 16px; }
article h3 { margin: 0 0 14px; font-size: 17px; display: flex; gap: 12px; flex-wrap: wrap;
  align-items: baseline; } article h3 small { color: var(--faint); font-weight: 400; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr));
  gap: 24px; } .pair section { min-width: 0; }
h4 { margin: 0 0 8px; font-size: 14px; font-weight: 500; color: var(--faint); display: flex;
  justify-content: space-between; } h4 b { color: var(--ink); font-weight: 600; }
.pair img { display: block; max-width: 100%; height: auto; border-radius: 8px; margin: 0 0 8px; }
dl { display: grid; grid-template-columns: max-content 1fr max-content; gap: 3px 12px;
  align-items: center; margin: 12px 0; font-size: 14px; font-variant-numeric: tabular-nums; }
dt { color: var(--faint); } dd { margin: 0; } dd.bar { background: var(--track); height: 6px;
  border-radius: 3px; overflow: hidden; } dd.bar i { display: block; height: 100%;
  border-radius: 3px; background: var(--accent); }
pre { margin: 0; padding: 10px 12px; border-radius: 8px; background: var(--track);
  font: 13px/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; max-height: 210px; overflow-y: auto; }
p.error { margin: 0 0 8px; color: var(--accent); font-size: 14px; }
"""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_page(
    path: Path | str,
    title: str,
    summary_lines: Sequence[str],
    rows: Sequence[Row] = (),
    table_rows: Sequence[Row] = (),
    columns: Sequence[str] = (),
    pairs: Sequence[tuple[Sample, ...]] = (),
    curve: Image.Image | None = None,
) -> Path:
    """Write the page of one run to ``path``, replacing an older one only when it is complete.

    ``summary_lines`` say what was trained; in one like ``data: scenes`` the name stands out.
    ``rows`` are those of ``metrics.jsonl``, ``table_rows`` and ``columns`` those of report.table,
    ``pairs`` the same held-out picture under two policies (or any number), side by side, ``curve``
    what a budget of regions buys. Parts without content are left out. Returns the path.
    """
    body = [f"<h1>{_shown(title)}</h1>", _summary(summary_lines), _tiles(rows)]
    if table_rows:
        body += ["<h2>Results</h2>", html_table(table_rows, columns)]
    if curve:
        body += [
            "<h2>What a budget of regions buys</h2>",
            f"<div class=pair>{_image(curve, 'success over cost')}</div>",
        ]
    if charts := _charts(rows):
        body += [
            "<h2>Training</h2>",
            "<p class=note>Points are single steps, the line is their "
            "moving mean, the number at its end is where that ends. The few points beyond a "
            "frame sit on its edge.</p>",
            f"<div class=charts>{''.join(charts)}</div>",
        ]
    if pairs:
        shown = [item for pair in pairs for item in pair]
        zooms, corrects = (
            any(item.regions is not None for item in shown),
            any(item.outcome.mask is not None for item in shown),
        )
        body += ["<h2>Held-out pictures</h2>", _legend(zooms, corrects), *map(_article, pairs)]
    body += ["<h2>What the numbers mean</h2>", _glossary()]
    return _write(Path(path), title, body)


def write_picture_page(
    path: Path | str,
    title: str,
    summary_lines: Sequence[str],
    images: Sequence[Image.Image],
    rows: Sequence[Row],
    columns: Sequence[str],
) -> Path:
    """Write a page about one picture to ``path``: what it is about, ``images`` of it, and a table of words. Returns the path."""
    body = [
        f"<h1>{_shown(title)}</h1>",
        _summary(summary_lines),
        "<article>",
        *(f"<div class=pair>{_image(image, title)}</div>" for image in images),
        "</article>",
        "<h2>What was said</h2>",
        html_table(rows, columns),
    ]
    return _write(Path(path), title, body)


def _write(path: Path, title: str, body: Sequence[str]) -> Path:
    """Write a page of these parts, without the empty ones."""
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>'
        f'{_shown(title)}</title>\n<meta http-equiv="Content-Security-Policy" content='
        f'"{POLICY}">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style></head>\n<body><main>\n" + "\n".join(filter(None, body))
    )
    outputs.leave(path, (page + "\n</main></body></html>\n").encode("utf-8", "replace"))
    return path


# --------------------------------------------------------------------------------- words and tables


def _shown(text: str, limit: int = 0) -> str:
    """A text of any origin as HTML that shows it: no tag, no quote, no control, no mark that turns the page's direction."""
    return html.escape(printable(text, limit))


def _summary(lines: Sequence[str]) -> str:
    items = []
    for line in lines:
        name, colon, rest = line.partition(": ")
        words = f"<b>{_shown(name)}</b> {_shown(rest)}" if colon else _shown(line)
        items.append(f"<li>{words}</li>")
    return f"<ul class=summary>{''.join(items)}</ul>" if items else ""


def _tiles(rows: Sequence[Row]) -> str:
    """First and last mean of what matters most, and the hours it took."""
    tiles = []
    for name in ("reward", "reward/coverage", "reward/task"):
        steps, values = series(rows, name)
        if len(steps) > 1:
            mean = smoothed(values)
            tiles.append((name, f"<i>{mean[0]:.2f} →</i> {mean[-1]:.2f}"))
    seconds = series(rows, "time/step")[1]
    if len(seconds):
        tiles.append((f"{len(seconds)} steps, {seconds.mean():.1f} s each", f"{seconds.sum() / 60:.0f} <i>min</i>"))
    cells = [f"<div class=tile><span>{_shown(name)}</span><b>{value}</b></div>" for name, value in tiles]
    return f"<div class=tiles>{''.join(cells)}</div>" if cells else ""


def html_table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """report.table for a browser: same cells, intervals set small."""
    right = {name: " class=right" if all(is_number(row.get(name)) for row in rows) else "" for name in columns}
    head = "".join(f"<th{right[name]}>{_shown(name)}</th>" for name in columns)
    lines = []
    for row in rows:
        cells = []
        for name in columns:
            value, bracket, interval = _shown(figure(row.get(name))).partition(" [")
            is_interval = bracket and isinstance(row[name], tuple)
            cells.append(
                f"<td{right[name]}>{value}" + (f"<small>[{interval}</small>" if is_interval else bracket + interval)
            )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"


def _glossary() -> str:
    lines = [
        f"<tr><td><code>{_shown(name)}</code><td>{metric.unit}<td>{metric.meaning}<td>{metric.healthy}</tr>"
        for name, metric in METRIC_GLOSSARY.items()
    ]
    return (
        "<div class=scroll><table><thead><tr><th>metric<th>unit<th>what it says"
        f"<th>a healthy run</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


# ------------------------------------------------------------------------------------------- curves


def series(rows: Sequence[Row], name: str) -> Points:
    """Steps and values (n,) of one metric, without the rows where it is missing or null."""
    pairs = [
        (row["step"], row[name]) for row in rows if isinstance(row.get(name), (int, float)) and math.isfinite(row[name])
    ]
    found = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def smoothed(values: np.ndarray) -> np.ndarray:
    """Moving mean (n,), centred, over about a thirtieth of the run, taken twice.

    Centred, so that a bend in the line stands where the bend in the data is; twice, so that one
    wild step makes a small hill and not a plateau. At the ends the window is cut in half.

    >>> smoothed(np.array([1.0, 1.0, 1.0])).tolist()
    [1.0, 1.0, 1.0]
    """
    half = math.ceil(len(values) / 60) if len(values) > 10 else 0
    first = np.maximum(np.arange(len(values)) - half, 0)
    last = np.minimum(np.arange(len(values)) + half + 1, len(values))
    for _ in range(2):
        total = np.concatenate([[0.0], np.cumsum(values)])
        values = (total[last] - total[first]) / (last - first)
    return values


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers within [low, high], at most ``count`` + 1 of them.

    >>> ticks(0, 1), ticks(0, 300)
    ([0.0, 0.5, 1.0], [0.0, 100.0, 200.0, 300.0])
    """
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10, 20) if factor * unit >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{i * step:.10g}") for i in range(first, last + 1)]


def short(value: float) -> str:
    """Three digits, small numbers by their exponent.

    >>> short(0.843), short(-1250.0), short(2e-4), short(0)
    ('0.843', '-1250', '2e-4', '0')
    """
    if value and abs(value) < 1e-3:
        return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


@dataclass(frozen=True)
class Plane:
    """Where steps and values fall on an SVG of ``width`` x ``height`` units."""

    width: int
    height: int
    steps: tuple[float, float]
    values: tuple[float, float]
    left: int = 42
    right: int = 48
    top: int = 10
    bottom: int = 30

    def place(self, steps: np.ndarray, values: np.ndarray) -> np.ndarray:
        """SVG coordinates (n, 2), values beyond the frame moved to its edge; at most 400 points."""
        chosen = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), 400)).astype(int))
        x = np.interp(steps[chosen], self.steps, (self.left, self.width - self.right))
        y = np.interp(values[chosen], self.values, (self.height - self.bottom, self.top))
        return np.stack([x, y], axis=1)

    def axes(self) -> str:
        """Grid lines with their values, and the steps along the bottom."""
        parts = []
        for value in ticks(*self.values):
            y = self.place(np.array([self.steps[0]]), np.array([value]))[0, 1]
            parts.append(
                f'<line class=grid x1="{self.left}" x2="{self.width - self.right}" '
                f'y1="{y:.1f}" y2="{y:.1f}"/><text text-anchor="end" '
                f'x="{self.left - 7}" y="{y + 4:.1f}">{short(value)}</text>'
            )
        for step in ticks(*self.steps, count=max(3, self.width // 110)):
            x = self.place(np.array([step]), np.array([self.values[0]]))[0, 0]
            parts.append(f'<text text-anchor="middle" x="{x:.1f}" y="{self.height - self.bottom + 17}">{step:g}</text>')
        parts.append(f'<text text-anchor="end" x="{self.width}" y="{self.height - self.bottom + 17}">step</text>')
        return "".join(parts)


def _span(low: float, high: float) -> tuple[float, float]:
    """The same interval, widened where it has no length."""
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _path(points: np.ndarray) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _chart(name: str, points: Points, wide: bool) -> str:
    """One metric over the steps: faint raw points, their moving mean, its last value."""
    steps, values = points
    mean = smoothed(values)
    # Single wild steps must not flatten the curve, so the frame fits 96 % of the points.
    low = float(min(np.percentile(values, 2), mean.min()))
    high = float(max(np.percentile(values, 98), mean.max()))
    unit = METRIC_GLOSSARY[name].unit if name in METRIC_GLOSSARY else ""
    if unit == "0–1" and values.min() >= 0 and values.max() <= 1:
        low, high = 0.0, 1.0  # so that the shares of one run can be compared by eye
    else:
        low, high = min(0.0, low), max(0.0, high + 0.04 * (high - min(0.0, low)))
    plane = Plane(1100 if wide else 360, 250 if wide else 190, _span(steps.min(), steps.max()), _span(low, high))
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.7"/>' for x, y in plane.place(steps, values))
    line = plane.place(steps, mean)
    drawing = (
        f'<g class=raw>{dots}</g><path class=smooth d="{_path(line)}"/>'
        f'<text class=last x="{line[-1, 0] + 7:.1f}" y="{line[-1, 1] + 4:.1f}">'
        f"{short(mean[-1])}</text>"
    )
    return _figure(name, _shown(unit), plane, drawing, wide)


def _figure(name: str, note: str, plane: Plane, drawing: str, wide: bool) -> str:
    return (
        f'<figure class="chart{" wide" if wide else ""}"><figcaption><b>{_shown(name)}</b>'
        f'<span>{note if note != MISSING else ""}</span></figcaption><svg role="img" '
        f'aria-label="{_shown(name)} over steps" viewBox="0 0 {plane.width} '
        f'{plane.height}">{plane.axes()}{drawing}</svg></figure>'
    )


def _phases(rows: Sequence[Row]) -> str:
    """Seconds by phase, stacked, with whatever the phases leave of the whole step on top."""
    timed = [row for row in rows if len(series([row], "time/step")[0])]
    if not timed:
        return ""
    steps, whole = series(timed, "time/step")
    logged = {name for row in timed for name in row if name.startswith("time/")} - {"time/step"}
    names = [name for name in METRIC_GLOSSARY if name in logged]
    layers: dict[str, np.ndarray] = {}
    for name in [*names, *sorted(logged - set(names))]:
        # A phase that a step lacks (an evaluation, say) took no time in it.
        seconds = [series([row], name)[1].sum() for row in timed]
        layers[name.removeprefix("time/")] = smoothed(np.array(seconds))
    layers["other"] = np.maximum(0.0, smoothed(whole) - sum(layers.values()))
    top = sum(layers.values())
    plane = Plane(1100, 220, _span(steps.min(), steps.max()), _span(0.0, float(top.max())))
    base, areas, keys = np.zeros_like(top), [], []
    for number, (name, height) in enumerate(layers.items()):
        colour = f"var(--c{number})" if number < 6 else "var(--faint)"
        lower, upper = plane.place(steps, base), plane.place(steps, base + height)
        outline = np.concatenate([upper, lower[::-1]])
        areas.append(f'<path style="fill:{colour};opacity:.8" d="{_path(outline)}Z"/>')
        keys.append(f'<i class=key style="background:{colour}"></i>{_shown(name)} {height[-1]:.2g}')
        base = base + height
    note = "seconds per step, by phase</span><span>" + "".join(keys)
    return _figure("time", note, plane, "".join(areas), wide=True)


def _charts(rows: Sequence[Row]) -> list[str]:
    """The reward wide, then its terms, then everything else in glossary order, then the seconds."""
    logged = dict.fromkeys(name for row in rows for name in row if name.startswith("reward/"))
    names = ["reward", *logged, *(name for name in METRIC_GLOSSARY if not name.startswith("time/"))]
    charts = []
    for name in dict.fromkeys(names):
        points = series(rows, name)
        if len(points[0]):
            charts.append(_chart(name, points, wide=name == "reward"))
    return charts + list(filter(None, [_phases(rows)]))


# ------------------------------------------------------------------------------------------ gallery


def _legend(zooms: bool, corrects: bool = False) -> str:
    if corrects:
        keys = [(REGION, "regions the policy proposes"), (TRUE, "right"), (LACKING, "missing"), (SURPLUS, "too much")]
    else:
        keys = (
            [(TRUE, "true boxes"), (REGION, "regions the policy proposes"), (FOUND, "found by the task model")]
            if zooms
            else [(TRUE, "true boxes"), (FOUND, "found")]
        )
    words = "".join(f'<i class=key style="background:rgb{colour}"></i>{text} ' for colour, text in keys)
    return f"<p class=note>{words}</p>"


def _article(pair: Sequence[Sample]) -> str:
    """One picture under every policy it is shown for."""
    example = pair[0].example
    columns = "".join(map(_column, pair))
    title = f"{_shown(example.query)}<small>{_shown(example.id)}</small>"
    return f"<article><h3>{title}</h3><div class=pair>{columns}</div></article>"


def _column(item: Sample) -> str:
    terms = []
    for name, term in item.score.terms.items():
        share = min(1.0, max(0.0, term)) if math.isfinite(term) else 0.0
        terms.append(
            f'<dt>{_shown(name)}</dt><dd class=bar><i style="width:{share:.0%}"></i></dd><dd>{figure(float(term))}</dd>'
        )
    error = f"<p class=error>{_shown(item.error)}</p>" if item.error else ""
    text = _shown(item.text.strip(), limit=4000) or MISSING
    return (
        f"<section><h4><span>{_shown(item.title)}</span><b>reward "
        f"{figure(float(item.score.total))}</b></h4>"
        + _image(item.picture(), item.example.query)
        + (_image(crops, "the crops") if (crops := item.crops()) else "")
        + f"<dl>{''.join(terms)}</dl>{error}<pre>{text}</pre></section>"
    )


def _image(image: Image.Image, words: str) -> str:
    """A picture inside the page itself, as JPEG."""
    stream = io.BytesIO()
    save_jpeg(image, stream, quality=85)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return (
        f'<img width="{image.width}" height="{image.height}" alt="{_shown(words)}" src="data:image/jpeg;base64,{data}">'
    )
