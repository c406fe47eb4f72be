"""The accuracy/cost curve: how good every method is at every budget of regions, and what that costs.

Three panels: AP50 and region recall over the regions allowed, and AP50 over the tokens that policy and task
model wrote per picture. A method that sees the whole picture has one point, whose height a dotted line keeps.
"""

import math
from typing import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from activeo3.charts import short
from activeo3.drawing import FAINT, INK, PAPER
from activeo3.eval_output import Row, shown_as

COLOURS = ((106, 176, 239), (255, 159, 67), (108, 201, 135), (184, 148, 224), (238, 106, 124), (116, 199, 199),
           (216, 180, 124), (170, 178, 190))  # fmt: skip
PANELS = (
    ("AP50", "budget", "regions allowed"),
    ("region_recall", "budget", "regions allowed"),
    ("AP50", "tokens", "tokens per picture"),
)
"""(what is plotted, over what, its words)."""
WIDTH, HEIGHT, MARGIN = 400, 300, 52  # of one panel, in pixels
FINE = 4  # lines are drawn so many times larger and then shrunk, which smooths them
GRID = (46, 52, 62)

Points = list[tuple[float, float]]


def draw_curve(rows: Sequence[Row], title: str) -> Image.Image:
    """The panels side by side with one legend; ``rows`` as for ``results.budget_table``."""
    several = len({row["task_model"] for row in rows}) > 1
    series: dict[str, list[Row]] = {}
    for row in rows:
        series.setdefault(" · ".join([shown_as(row), row["task_model"]][: 1 + several]), []).append(row)
    columns = 4
    legend_height = 26 * -(-len(series) // columns) + 20
    sheet = Image.new("RGB", (WIDTH * len(PANELS), 44 + HEIGHT + legend_height), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, 24), title, font=_font(17), fill=INK, anchor="lm")
    for place, (value, over, words) in enumerate(PANELS):
        curves = [[(_x(row, over), _value(row, value)) for row in of_one] for of_one in series.values()]
        sheet.paste(_panel(curves, value, words), (place * WIDTH, 44))
    for number, label in enumerate(series):
        x, y = (
            MARGIN + (number % columns) * (sheet.width - MARGIN) // columns,
            44 + HEIGHT + 18 + 26 * (number // columns),
        )
        pen.rounded_rectangle((x, y - 5, x + 11, y + 6), radius=3, fill=COLOURS[number % len(COLOURS)])
        pen.text((x + 18, y), label, font=_font(14), fill=FAINT, anchor="lm")
    return sheet


def _panel(curves: Sequence[Points], value: str, words: str) -> Image.Image:
    """One panel: axes, and a line with points for every method."""
    known = [[point for point in sorted(points) if np.isfinite(point[1])] for points in curves]
    every = [point for points in known for point in points] or [(0.0, 0.0)]
    low_x, high_x = min(x for x, _ in every), max(x for x, _ in every)
    low_x, high_x = (low_x, high_x) if high_x > low_x else (low_x - 1, high_x + 1)
    high_y = max(0.05, *(y for _, y in every)) * 1.06

    def place(x: float, y: float) -> tuple[float, float]:
        inner = WIDTH - MARGIN - 20, HEIGHT - 70
        return MARGIN + inner[0] * (x - low_x) / (high_x - low_x), HEIGHT - 44 - inner[1] * y / high_y

    large = Image.new("RGB", (WIDTH * FINE, HEIGHT * FINE), PAPER)
    pen = ImageDraw.Draw(large)
    marks_y = ticks(0.0, high_y, count=6)
    for y in marks_y:
        pen.line(_fine([place(low_x, y), place(high_x, y)]), fill=GRID, width=FINE)
    for number, points in enumerate(known):
        colour = COLOURS[number % len(COLOURS)]
        if len(points) == 1:
            _dotted(pen, place(low_x, points[0][1]), place(high_x, points[0][1]), colour)
        elif points:
            pen.line(_fine([place(*point) for point in points]), fill=colour, width=2 * FINE, joint="curve")
        for x, y in _fine([place(*point) for point in points]):
            pen.ellipse((x - 4 * FINE, y - 4 * FINE, x + 4 * FINE, y + 4 * FINE), fill=colour)
    panel = large.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(panel)
    for y in marks_y:
        pen.text((MARGIN - 9, place(low_x, y)[1]), short(y), font=_font(12), fill=FAINT, anchor="rm")
    for x in ticks(low_x, high_x, count=6):
        pen.text((place(x, 0)[0], HEIGHT - 32), short(x), font=_font(12), fill=FAINT, anchor="mm")
    pen.text((MARGIN, 12), value.replace("_", " "), font=_font(14), fill=INK, anchor="lm")
    pen.text((WIDTH - 20, HEIGHT - 12), words, font=_font(12), fill=FAINT, anchor="rm")
    return panel


def _fine(points: Points) -> Points:
    return [(x * FINE, y * FINE) for x, y in points]


def _dotted(
    pen: ImageDraw.ImageDraw, begin: tuple[float, float], end: tuple[float, float], colour: tuple[int, ...]
) -> None:
    for x in np.arange(begin[0], end[0], 7.0).tolist():
        pen.line(_fine([(x, begin[1]), (min(x + 3, end[0]), begin[1])]), fill=colour, width=2 * FINE)


def _x(row: Row, over: str) -> float:
    return float(row["budget"] if over == "budget" else row["metrics"][over])


def _value(row: Row, name: str) -> float:
    cell = row["metrics"][name]
    return float("nan") if cell is None else float(cell.value)


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


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
