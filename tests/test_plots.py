"""plots.py: every line is drawn where its numbers are, a single point is a level, and what is not there is left out."""

import numpy as np
import pytest
from PIL import Image, ImageColor

from activeo3.intervals import Metric
from activeo3.plots import COLOURS, Panel, draw

NAN = float("nan")


def where(image: Image.Image, colour: str, panel: int, panels: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pixels of a colour inside one panel; the legend lies below."""
    pixels = np.asarray(image, dtype=int)[: int(0.8 * image.height)]
    width = image.width // panels
    part = pixels[:, panel * width : (panel + 1) * width]
    return np.nonzero((np.abs(part - ImageColor.getrgb(colour)) < 12).all(axis=2))


def test_better_is_higher_and_more_is_further_right() -> None:
    grid = [(1.0, Metric(0.2, NAN, NAN)), (3.0, Metric(0.8, NAN, NAN))]
    drawn = draw([Panel("AP50", "regions", {"grid": grid, "random": [(1.0, 0.1), (3.0, 0.1)]}),
                  Panel("AP50", "tokens", {"grid": [(100.0, grid[0][1]), (10.0, grid[1][1])]})], "t")  # fmt: skip
    for panel, first_is_left in ((0, True), (1, False)):  # over regions, and over tokens, of which the second has fewer
        y, x = where(drawn, COLOURS[0], panel, 2)
        assert (x[y.argmax()] < x[y.argmin()]) == first_is_left
    y, _ = where(drawn, COLOURS[1], 0, 2)
    assert np.ptp(y) < 15  # a level line with its points


def test_a_level_is_kept_for_what_sees_the_whole_picture() -> None:
    drawn = draw([Panel("AP50", "regions", {"direct": [(0.0, 0.5)], "grid": [(1.0, 0.2), (5.0, 0.3)]})], "t")
    y, x = where(drawn, COLOURS[0], 0, 1)
    assert np.ptp(x) > drawn.width / 2  # dotted across the panel, though there is one point only


def test_an_interval_is_a_bar() -> None:
    wide, narrow = (
        draw(
            [
                Panel(
                    "mIoU",
                    "zooms",
                    {"a": [(0.0, Metric(0.5, 0.5 - w, 0.5 + w)), (1.0, 0.5)], "b": [(0.0, 0.0), (1.0, 1.0)]},
                )
            ],
            "t",
        )
        for w in (0.4, 0.01)
    )
    assert np.ptp(where(wide, COLOURS[0], 0, 1)[0]) > 4 * np.ptp(where(narrow, COLOURS[0], 0, 1)[0])


@pytest.mark.parametrize("points", [[(0.0, NAN)], [(0.0, None), (1.0, Metric(NAN, NAN, NAN))]])
def test_numbers_that_are_not_there_are_left_out(points: list) -> None:
    lines = {"a": points, "b": [(0.0, 0.5), (1.0, 0.5)]}
    drawn = draw([Panel("AP50", "regions", lines)], "t")
    assert len(where(drawn, COLOURS[0], 0, 1)[0]) == 0 < len(where(drawn, COLOURS[1], 0, 1)[0])
    assert drawn.tobytes() == draw([Panel("AP50", "regions", lines)], "t").tobytes()
