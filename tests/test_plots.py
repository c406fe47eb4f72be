"""plots.py: every method has its line, a method without a zoom its level, and what cannot be drawn is left out."""

import numpy as np
import pytest

from activeo3 import plots
from activeo3.intervals import Metric
from activeo3.plots import COLOURS, HEIGHT, WIDTH, draw_curve

NAN = float("nan")


def row(method: str, budget: int, ap: float, recall: float | None = 0.5, tokens: float = 10.0, **more) -> dict:
    known = None if recall is None else Metric(recall, NAN, NAN)
    values = {"AP50": Metric(ap, NAN, NAN), "region_recall": known, "tokens": tokens}
    return {"benchmark": "b", "method": method, "checkpoint": "", "task_model": "mllm", "budget": budget, "n": 1,
            "metrics": values, "failures": {}} | more  # fmt: skip


def where(image, colour: tuple[int, int, int], panel: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pixels of a colour inside one panel."""
    pixels = np.asarray(image, dtype=int)[44 : 44 + HEIGHT, panel * WIDTH : (panel + 1) * WIDTH]
    return np.nonzero((np.abs(pixels - colour) < 12).all(axis=2))


def test_better_is_higher_and_more_is_further_right() -> None:
    drawn = draw_curve(
        [row("grid", 1, 0.2, tokens=100), row("grid", 3, 0.8, tokens=10), row("random", 1, 0.1), row("random", 3, 0.1)],
        "t",
    )
    for panel, first_is_left in ((0, True), (2, False)):  # over regions, and over tokens, of which the second has fewer
        y, x = where(drawn, COLOURS[0], panel)
        low_left = x[y.argmax()] < x[y.argmin()]
        assert low_left == first_is_left
    y, _ = where(drawn, COLOURS[1], 0)
    assert np.ptp(y) < 15  # a level line with its points


def test_a_level_is_kept_for_what_sees_the_whole_picture() -> None:
    drawn = draw_curve([row("direct", 0, 0.5), row("grid", 1, 0.2), row("grid", 5, 0.3)], "t")
    y, x = where(drawn, COLOURS[0], 0)
    assert np.ptp(x) > WIDTH / 2  # dotted across the panel, though there is one point only


@pytest.mark.parametrize("rows", [[row("direct", 0, NAN, None)], [row("direct", 0, 0.0, None), row("grid", 2, NAN)]])
def test_numbers_that_are_not_there_are_left_out(rows: list[dict]) -> None:
    assert draw_curve(rows, "t").width == WIDTH * len(plots.PANELS)


def test_every_line_is_named_once() -> None:
    one = draw_curve([row("grid", k, 0.1) for k in (1, 2)], "t")
    many = draw_curve(
        [row(f"m{number}", 1, 0.1, task_model=name) for number in range(5) for name in ("mllm", "oracle")], "t"
    )
    assert many.height > one.height
    assert draw_curve([row("grid", 1, 0.1)], "t").tobytes() == draw_curve([row("grid", 1, 0.1)], "t").tobytes()
