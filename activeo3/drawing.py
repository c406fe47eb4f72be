"""Draws rollouts into their images, crops side by side, and groups of answers.

Orange: regions of the policy. Of boxes and masks alike, green is right, red is missing and blue is too much. A found
box is right if it takes a true one at IoU 0.5 by the benchmark's matching; true boxes that are left are missing.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from activeo3.box_matching import assigned, overlaps
from activeo3.geometry import Frame, area, as_boxes, clipped, crop, ordered, rle_to_mask
from activeo3.log import counted, figure
from activeo3.metrics import mask_iou, xywh
from activeo3.terminal import one_line, printable
from activeo3.types import Example, Region, TaskResult

TRUE, REGION, FOUND = (52, 199, 89), (255, 149, 0), (64, 156, 255)  # RGB, also used by the page
LACKING, SURPLUS = (255, 45, 85), FOUND
RIGHT_AT = 0.5  # IoU
PAPER, INK, FAINT = (22, 25, 31), (240, 242, 245), (150, 158, 170)
MAX_CROPS = 11
CASING = (0, 0, 0, 110)  # a dark rim, so that a line shows on a ground of its own colour
NOTHING = TaskResult(as_boxes([]), np.zeros(0))
Legend = Sequence[tuple[tuple[int, int, int], str]]  # colours and words


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _visible(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes (N, 4) fit for PIL: corners in order, and far-away edges moved to just out of sight."""
    boxes = ordered(np.nan_to_num(as_boxes(boxes), posinf=1e6, neginf=-1e6))
    margin = 8
    return clipped(boxes + margin, (size[0] + 2 * margin, size[1] + 2 * margin)) - margin


def _outline(pen: ImageDraw.ImageDraw, box: np.ndarray, colour: tuple[int, ...], width: int) -> None:
    """A solid frame just outside ``box``, so that it hides nothing of what it shows."""
    x1, y1, x2, y2 = (box.round() + [-width, -width, width, width]).tolist()
    # PIL draws a line inwards, so its rim is one pixel larger and two pixels thicker.
    pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=CASING, width=width + 2)
    pen.rectangle((x1, y1, x2, y2), outline=colour, width=width)


def _dashes(pen: ImageDraw.ImageDraw, box: np.ndarray, colour: tuple[int, ...], width: int) -> None:
    """A dashed frame just inside ``box``, whose inside is tinted."""
    x1, y1, x2, y2 = box.round().tolist()
    pen.rectangle((x1, y1, x2, y2), fill=(*colour, 36))
    dash, period = 5, 8
    for x in np.arange(x1, x2, period).tolist():
        for y in (y1, y2 - width + 1):
            pen.rectangle((x, y, min(x + dash, x2), y + width - 1), fill=colour)
    for y in np.arange(y1, y2, period).tolist():
        for x in (x1, x2 - width + 1):
            pen.rectangle((x, y, x + width - 1, min(y + dash, y2)), fill=colour)


def _badge(pen: ImageDraw.ImageDraw, corner: Sequence[float], label: str) -> None:
    """A numbered orange tag at ``corner``."""
    x, y = corner
    width = pen.textlength(label, font=_font(14)) + 10
    pen.rounded_rectangle((x, y, x + width, y + 19), radius=4, fill=REGION)
    pen.text((x + width / 2, y + 10), label, font=_font(14), fill=(30, 20, 0), anchor="mm")


def judged(example: Example, outcome: TaskResult) -> tuple[np.ndarray, np.ndarray]:
    """Which found boxes are right (M,), and which true boxes are missing (N,), by COCO's matching at IoU 0.5.

    Where nothing was looked for (``NOTHING``), nothing is missing.
    """
    if outcome is NOTHING:
        return np.zeros(0, dtype=bool), np.zeros(len(example.boxes_px), dtype=bool)
    true, found = (np.nan_to_num(ordered(as_boxes(boxes))) for boxes in (example.boxes_px, outcome.boxes_px))
    crowd = ~example.asked_for
    overlap = overlaps(np.reshape(xywh(found), (-1, 4)), np.reshape(xywh(true), (-1, 4)), crowd)
    near = [np.flatnonzero(row >= RIGHT_AT).tolist() for row in overlap]
    (taken,) = assigned(overlap, near, [RIGHT_AT], crowd, crowd)
    missed = ~crowd & ~np.isin(np.arange(len(true)), taken)
    return taken >= 0, missed


def verdicts(example: Example, outcome: TaskResult) -> Legend:
    """How many boxes are right, missing and too much, each with its colour; what there is none of is left out."""
    right, missed = judged(example, outcome)
    counts = {(TRUE, "right"): right.sum(), (LACKING, "missing"): missed.sum(), (SURPLUS, "wrong"): (~right).sum()}
    named = [(colour, f"{count} {word}") for (colour, word), count in counts.items() if count]
    return named or [(TRUE, "nothing is there, nothing was found")]


def _mark(
    view: Image.Image, frame: Frame, example: Example, outcome: TaskResult, regions: Sequence[Region] = ()
) -> None:
    """Draw everything onto ``view``, whose own pixels are the coordinates of ``frame``. Crowd boxes are faint."""
    pen = ImageDraw.Draw(view, "RGBA")
    numbered = _visible(frame.to_text(as_boxes(regions)), view.size)
    for box in numbered:
        _outline(pen, box, REGION, width=3)
    true = _visible(frame.to_text(as_boxes(example.boxes_px)), view.size)
    found = _visible(frame.to_text(as_boxes(outcome.boxes_px)), view.size)
    right, missed = judged(example, outcome)
    for box, counts, lacks in zip(true, example.asked_for, missed):
        _outline(pen, box, (*TRUE, 90) if not counts else LACKING if lacks else TRUE, width=2)
    for box, hit in zip(found, right):
        _dashes(pen, box, TRUE if hit else SURPLUS, width=2)
    for number, box in enumerate(numbered, start=1):  # last, so that no line hides a number
        above = box[:2] - [3, 22]  # on top of the frame, where it hides nothing inside
        corner = np.clip(above, 0, np.maximum(0, np.array(view.size) - 24))
        _badge(pen, corner.tolist(), str(number))


def annotated_picture(
    example: Example,
    regions: Sequence[Region] | None,
    outcome: TaskResult,
    max_side: int = 720,
    said: str | None = None,
    truth: bool = True,
) -> Image.Image:
    """The picture, at most ``max_side`` pixels long, with all boxes and a caption strip below.

    The strip holds the query and the legend with counts. ``regions`` is None where there can be none. ``said`` is an
    answer in words, which replaces the count of found boxes; "" leaves the place empty. Without ``truth`` the legend
    does not mention true boxes.
    """
    legend = [(REGION, counted(len(regions), "region"))] if regions is not None else []
    if said is not None or not truth:
        true = counted(int(example.asked_for.sum()), "true box", "true boxes")
        found = f"{len(outcome.boxes_px)} found" if said is None else f"said {one_line(said, limit=40)}"
        legend = [(TRUE, true)] * truth + legend + [(FOUND, found)] * (said != "")
    else:
        legend += verdicts(example, outcome)
    return _panel(example, regions or (), outcome, example.query, legend, max_side)


def _panel(
    example: Example, regions: Sequence[Region], outcome: TaskResult, caption: str, legend: Legend, max_side: int
) -> Image.Image:
    """The picture of an example, everything drawn into it, above its caption."""
    return _captioned(marked_picture(example, regions, outcome, max_side), caption, legend)


def marked_picture(
    example: Example, regions: Sequence[Region], outcome: TaskResult, max_side: int = 720
) -> Image.Image:
    """The picture of an example with everything drawn into it, and no words."""
    shrink = min(1.0, max_side / max(example.size_px))
    size = tuple(max(1, round(side * shrink)) for side in example.size_px)
    view = example.image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    _mark(view, Frame((0, 0, *example.size_px), size), example, outcome, regions)
    return view


def _captioned(view: Image.Image, query: str, legend: Legend) -> Image.Image:
    """A view, centred if it is very narrow, above a strip with the query and the legend."""
    width, left = max(320, view.width), 12
    sheet = Image.new("RGB", (width, view.height + 58), PAPER)
    sheet.paste(view, ((width - view.width) // 2, 0))
    pen = ImageDraw.Draw(sheet)
    query = " ".join(one_line(query, limit=300).split())
    while pen.textlength(query, font=_font(17)) > width - 2 * left:
        query = query.removesuffix("…")[:-1] + "…"
    pen.text((left, view.height + 19), query, font=_font(17), fill=INK, anchor="lm")
    x = left
    for colour, words in legend:
        y = view.height + 42
        pen.rounded_rectangle((x, y - 5, x + 11, y + 6), radius=3, outline=colour, width=3)
        pen.text((x + 18, y), words, font=_font(14), fill=FAINT, anchor="lm")
        x += 18 + pen.textlength(words, font=_font(14)) + 18
    return sheet


def under_mask(example: Example, mask: np.ndarray) -> Example:
    """The example with its picture tinted by a mask (H, W): right, missing and too much. It has no boxes any more.

    The picture is darkened to grey first, so that the tints are the only colours.
    """
    true = rle_to_mask(example.draft[0])
    pixels = np.asarray(example.image.convert("L").convert("RGB"), dtype=np.float32) * 0.7
    for part, colour in ((mask & true, TRUE), (true & ~mask, LACKING), (mask & ~true, SURPLUS)):
        pixels[part] = 0.35 * pixels[part] + 0.65 * np.array(colour, dtype=np.float32)
    return replace(example, image=Image.fromarray(pixels.astype(np.uint8)), boxes_px=as_boxes([]), crowd=None)


def corrected_picture(
    example: Example, regions: Sequence[Region], mask: np.ndarray, max_side: int = 560
) -> Image.Image:
    """The mask before and after (H, W), with the regions in between drawn over both: a close-up of all masks, its
    longer side ``max_side`` pixels."""
    true, first = map(rle_to_mask, example.draft)
    x1, y1, x2, y2 = _around(true | first | mask)
    grow = max_side / max(x2 - x1, y2 - y1)
    size = round((x2 - x1) * grow), round((y2 - y1) * grow)
    moved = [Region(*((edge - start) * grow for edge, start in zip(region, (x1, y1, x1, y1)))) for region in regions]
    legend = [(TRUE, "right"), (LACKING, "missing"), (SURPLUS, "too much"), (REGION, counted(len(regions), "region"))]
    panels = []
    for words, state in (("before", first), ("after", mask)):
        caption = f"{example.query}, {words}: IoU {figure(mask_iou(state, true))}"
        shown = under_mask(example, state)
        close_up = replace(shown, image=shown.image.resize(size, Image.Resampling.LANCZOS, (x1, y1, x2, y2)))
        panels.append(_panel(close_up, moved, NOTHING, caption, legend, max_side))
    return contact_sheet(panels, columns=2)


def _around(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The window in whole pixels that holds a mask (H, W) and a third of its longer side around it."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return 0, 0, mask.shape[1], mask.shape[0]
    margin = max(np.ptp(rows), np.ptp(columns), 32) // 3
    x1, y1 = max(0, int(columns[0] - margin)), max(0, int(rows[0] - margin))
    return x1, y1, int(min(mask.shape[1], columns[-1] + margin + 1)), int(min(mask.shape[0], rows[-1] + margin + 1))


def crops_strip(example: Example, regions: Sequence[Region], outcome: TaskResult, side: int = 220) -> Image.Image:
    """The task model's inputs: one numbered tile of ``side`` pixels per region, boxes drawn.

    A region without any pixel of the picture gets an empty tile, and so does having no region. Of
    very many regions, which only a rambling policy proposes, the first ``MAX_CROPS`` are shown.
    """
    few = enumerate(regions[:MAX_CROPS], start=1)
    tiles = [_crop_tile(example, region, outcome, side, number) for number, region in few]
    if len(regions) > MAX_CROPS:
        tiles.append(_empty_tile(side, f"and {len(regions) - MAX_CROPS} more"))
    return contact_sheet(tiles or [_empty_tile(side, "no region")], columns=3, gap=6)


def _empty_tile(side: int, words: str) -> Image.Image:
    tile = Image.new("RGB", (side, side), tuple(channel + 16 for channel in PAPER))
    ImageDraw.Draw(tile).text((side / 2, side / 2), words, font=_font(14), fill=FAINT, anchor="mm")
    return tile


def _crop_tile(example: Example, region: Region, outcome: TaskResult, side: int, number: int) -> Image.Image:
    window = clipped(ordered(as_boxes([region])), example.size_px)
    if np.isfinite(window).all() and area(window)[0] > 0:
        x1, y1, x2, y2 = window[0].tolist()
        grow = side / max(x2 - x1, y2 - y1)
        size = (max(1, round((x2 - x1) * grow)), max(1, round((y2 - y1) * grow)))
        view = crop(example.image.convert("RGB"), (x1, y1, x2, y2), size)
        _mark(view, Frame((x1, y1, x2, y2), size), example, outcome)
        tile = _empty_tile(side, "")
        tile.paste(view, ((side - size[0]) // 2, (side - size[1]) // 2))
    else:
        tile = _empty_tile(side, "outside the picture")
    _badge(ImageDraw.Draw(tile), (5, 5), str(number))
    return tile


def words_panel(lines: Sequence[tuple[str, str]], width: int) -> Image.Image:
    """Lines (name, words) as a picture of ``width`` pixels, the words broken where they would not fit."""
    font, left, rows = _font(14), 12, []
    indent = min(width // 2, left + 16 + round(max((font.getlength(name) for name, _ in lines), default=0)))
    for name, words in lines:
        paragraphs = printable(words, limit=1200).splitlines() or [""]
        broken = [part for line in paragraphs for part in _broken(line, font, width - indent - left)]
        rows += zip([name] + [""] * (len(broken) - 1), broken)
    panel = Image.new("RGB", (width, 20 * len(rows) + 2 * left), PAPER)
    pen = ImageDraw.Draw(panel)
    for place, (name, part) in enumerate(rows):
        pen.text((left, left + 20 * place), name, font=font, fill=FAINT)
        pen.text((indent, left + 20 * place), part, font=font, fill=INK)
    return panel


def _broken(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """A line as lines of at most ``width`` pixels: broken at spaces, or inside a word that is longer than a line."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        lines += [""] if lines[-1] else []
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


@dataclass(frozen=True)
class Tile:
    """One answer of a group: its drawn ``picture``, what it earned, and its advantage (None: not known)."""

    picture: Image.Image
    reward: float
    advantage: float | None = None


def group_sheet(query: str, tiles: Sequence[Tile], view: Image.Image | None = None, columns: int = 4) -> Image.Image:
    """GRPO in one look: what the policy saw, and all its answers to one question, the best first.

    Below each answer stand its reward and its advantage, as a number and as a bar to the right (made more likely) or to
    the left (made less likely). ``view`` is the image as the policy saw it.
    """
    side = 260
    ranked = sorted(tiles, key=lambda tile: -tile.reward if math.isfinite(tile.reward) else math.inf)
    widest = max([1.0, *(abs(tile.advantage or 0.0) for tile in tiles)])
    cards = [_card(tile, side, widest) for tile in ranked]
    head = Image.new("RGB", (columns * (side + 12) - 12, 44), PAPER)
    pen = ImageDraw.Draw(head)
    pen.text((12, 24), f"“{one_line(query, limit=60)}”", font=_font(20), fill=INK, anchor="lm")
    words = f"{counted(len(tiles), 'answer')} of one policy, sorted by reward"
    pen.text((head.width - 12, 24), words, font=_font(15), fill=FAINT, anchor="rm")
    seen = [_seen(view, head.width)] if view else []
    return contact_sheet([head, *seen, contact_sheet(cards, columns)], columns=1)


def _seen(view: Image.Image, width: int) -> Image.Image:
    """The policy's own view on a strip, enlarged without smoothing where it is small, beside GROUP_WORDS."""
    size, grow = view.size, max(1, 300 // max(view.size))
    view = view.convert("RGB").resize((view.width * grow, view.height * grow), Image.Resampling.NEAREST)
    view.thumbnail((360, 300))
    lines = [("view", f"{size[0]} x {size[1]} pixels of the image are all that the policy sees"), *GROUP_WORDS]
    strip = Image.new("RGB", (width, max(view.height, 26 * len(lines))), PAPER)
    strip.paste(view, (12, (strip.height - view.height) // 2))
    pen, x = ImageDraw.Draw(strip), view.width + 36
    for place, (name, words) in enumerate(lines):
        y = strip.height / 2 + 26 * (place - len(lines) / 2) + 13
        pen.text((x, y), name, font=_font(15), fill=INK, anchor="lm")
        pen.text((x + 100, y), words, font=_font(15), fill=FAINT, anchor="lm")
    return strip


GROUP_WORDS = (
    ("policy", "answers with regions to zoom into (orange)"),
    ("task model", "is shown the crops only: green is right, red missing, blue wrong"),
    ("group", "of answers to the same question, each with its own reward"),
    ("advantage", "reward against the group: mean taken off, divided by its spread"),
    ("update", "answers above the mean become more likely, those below it less"),
)
"""The words of GRPO in five sentences, beside the view in ``group_sheet``."""


def _card(tile: Tile, side: int, widest: float) -> Image.Image:
    """One answer of a group above its reward and advantage."""
    picture = tile.picture.convert("RGB")
    picture.thumbnail((side, side))
    card = Image.new("RGB", (side, picture.height + 52), tuple(channel + 10 for channel in PAPER))
    card.paste(picture, ((side - picture.width) // 2, 0))
    pen, y = ImageDraw.Draw(card), picture.height + 17
    pen.text((10, y), f"reward {figure(float(tile.reward))}", font=_font(16), fill=INK, anchor="lm")
    if tile.advantage is None or not math.isfinite(tile.advantage):
        return card
    colour, middle = (TRUE if tile.advantage > 0 else LACKING), side / 2
    pen.text((side - 10, y), f"advantage {tile.advantage:+.2f}", font=_font(16), fill=colour, anchor="rm")
    ends = sorted((middle, middle + (middle - 10) * tile.advantage / widest))
    pen.rectangle((10, y + 20, side - 10, y + 25), fill=tuple(channel + 24 for channel in PAPER))
    pen.rectangle((ends[0], y + 20, ends[1], y + 25), fill=colour)
    pen.line((middle, y + 17, middle, y + 28), fill=FAINT)
    return card


def contact_sheet(images: Sequence[Image.Image], columns: int = 4, gap: int = 12) -> Image.Image:
    """Pictures side by side, ``columns`` in a row, each at its own size; a blank pixel for none."""
    rows = [images[i : i + columns] for i in range(0, len(images), columns)]
    width = max((sum(image.width + gap for image in row) - gap for row in rows), default=1)
    heights = [max(image.height for image in row) for row in rows]
    sheet = Image.new("RGB", (width, max(1, sum(heights) + gap * (len(rows) - 1))), PAPER)
    y = 0
    for row, height in zip(rows, heights):
        x = 0
        for image in row:
            sheet.paste(image, (x, y))
            x += image.width + gap
        y += height + gap
    return sheet


def save_jpeg(image: Image.Image, target: Any, quality: int = 88) -> None:
    """Save to a path or binary stream; full colour resolution, as thin lines of colour need it."""
    image.save(target, "JPEG", quality=quality, subsampling=0, optimize=True)
