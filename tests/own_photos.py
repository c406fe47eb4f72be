"""Ten small photos and what is in them, for tests of all forms that own pictures come in."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (64, 48)
NAMES = [f"{place:02d}.jpg" for place in range(10)]
"""Ten photos; each has a cat, every second one two dogs besides."""
CATS = {name: [[place, 2, place + 10, 12]] for place, name in enumerate(NAMES)}
DOGS = {name: [[20, 20, 40, 40], [50, 30, 64, 48]] for name in NAMES[::2]}
WANTED = sorted((name, query, boxes) for query, of in (("cat", CATS), ("red dog", DOGS)) for name, boxes in of.items())
"""(picture, query, boxes) of all questions."""


def photos(folder: Path, names: list[str] = NAMES) -> None:
    """The photos, each of a colour of its own."""
    for place, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE, (25 * place, 100, 50)).save(path)


def found(data: Any) -> list[tuple[str, str, list[list[float]]]]:
    """(picture, query, boxes) of all questions of a data set; the colour shows that the right picture was read."""
    questions = []
    for example in data:
        name = NAMES[round(example.image.getpixel((60, 2))[0] / 25)]
        questions.append((name, example.query, np.rint(example.boxes_px).astype(int).tolist()))
    return sorted(questions)
