"""Draws rollouts into their images, crops side by side, and saves samples.

Green: true boxes; orange: regions of the policy; dashed blue: boxes that the task model found. Of a mask, green is
right, red is missing and blue is surplus.
"""

import functools
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from activeo3.geometry import Frame, area, as_boxes, clipped, crop, ordered, rle_to_mask
from activeo3.log import counted, figure, strict_json
from activeo3.metrics import mask_iou
from activeo3.outputs import enough_room
from activeo3.terminal import one_line, printable
from activeo3.types import Example, Region, Reward, Rollout, TaskResult

TRUE, REGION, FOUND = (52, 199, 89), (255, 149, 0), (64, 156, 255)  # RGB, also used by the page
PAPER, INK, FAINT = (22, 25, 31), (240, 242, 245), (150, 158, 170)
LACKING, SURPLUS = (255, 45, 85), (64, 100, 255)
MAX_CROPS = 11
CASING = (0, 0, 0, 110)  # a dark rim, so that a line shows on a ground of its own colour
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


def _mark(
    view: Image.Image, frame: Frame, example: Example, outcome: TaskResult, regions: Sequence[Region] = ()
) -> None:
    """Draw everything onto ``view``, whose own pixels are the coordinates of ``frame``. Crowd boxes are faint."""
    pen = ImageDraw.Draw(view, "RGBA")
    numbered = _visible(frame.to_text(as_boxes(regions)), view.size)
    for box in numbered:
        _outline(pen, box, REGION, width=3)
    true = _visible(frame.to_text(as_boxes(example.boxes_px)), view.size)
    for box, counts in zip(true, example.asked_for):
        _outline(pen, box, TRUE if counts else (*TRUE, 90), width=2)
    for box in _visible(frame.to_text(as_boxes(outcome.boxes_px)), view.size):
        _dashes(pen, box, FOUND, width=2)
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
    legend = [(TRUE, counted(int(example.asked_for.sum()), "true box", "true boxes"))] if truth else []
    legend += [(REGION, counted(len(regions), "region"))] if regions is not None else []
    if said != "":
        found = f"{len(outcome.boxes_px)} found" if said is None else f"said {one_line(said, limit=40)}"
        legend.append((FOUND, found))
    return _panel(example, regions or (), outcome, example.query, legend, max_side)


def _panel(
    example: Example, regions: Sequence[Region], outcome: TaskResult, caption: str, legend: Legend, max_side: int
) -> Image.Image:
    """The picture of an example, everything drawn into it, above its caption."""
    shrink = min(1.0, max_side / max(example.size_px))
    size = tuple(max(1, round(side * shrink)) for side in example.size_px)
    view = example.image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    _mark(view, Frame((0, 0, *example.size_px), size), example, outcome, regions)
    return _captioned(view, caption, legend)


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


NOTHING = TaskResult(as_boxes([]), np.zeros(0))


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
    """The mask before and after (H, W), with the regions in between drawn over both."""
    true, first = map(rle_to_mask, example.draft)
    legend = [(TRUE, "right"), (LACKING, "missing"), (SURPLUS, "too much"), (REGION, counted(len(regions), "region"))]
    panels = []
    for words, state in (("before", first), ("after", mask)):
        caption = f"{example.query}, {words}: IoU {figure(mask_iou(state, true))}"
        panels.append(_panel(under_mask(example, state), regions, NOTHING, caption, legend, max_side))
    return contact_sheet(panels, columns=2)


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


# ------------------------------------------------------------------------------------------ samples


@dataclass(frozen=True, eq=False)
class Sample:
    """One answer with its result and reward, to be drawn. ``title`` names the policy, ``text`` is the answer itself.

    ``regions`` is None where the answer is itself the result: then there are no crops. ``said`` is an episode's final
    answer in words.
    """

    example: Example
    text: str
    regions: tuple[Region, ...] | None
    outcome: TaskResult
    score: Reward
    title: str = ""
    error: str | None = None
    said: str | None = None

    @classmethod
    def of(cls, rollout: Rollout, outcome: TaskResult, score: Reward, title: str = "") -> "Sample":
        """The same, read off a rollout."""
        regions = rollout.regions if rollout.result is None else None
        said = (rollout.episode.answer or "nothing") if rollout.episode else None
        return cls(rollout.example, rollout.text, regions, outcome, score, title, rollout.action.error, said)

    def picture(self) -> Image.Image:
        if self.outcome.mask is not None:
            return corrected_picture(self.example, self.regions, self.outcome.mask)
        return annotated_picture(self.example, self.regions, self.outcome, said=self.said)

    def crops(self) -> Image.Image | None:
        if self.regions is None:
            return None
        corrected = self.outcome.mask is not None
        example = under_mask(self.example, self.outcome.mask) if corrected else self.example
        return crops_strip(example, self.regions, self.outcome)


def save_samples(output_dir: Path | str, step: int, items: Sequence[Sample]) -> Path:
    """Pictures and one line each in ``samples.jsonl``, all under ``samples/step-000012/``.

    The folder appears under its name only when it is complete; one of the same step is replaced.
    Boxes in the lines are xyxy in original pixels. Returns the folder.
    """
    folder = Path(output_dir) / "samples" / f"step-{step:06d}"
    building = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    with enough_room(folder):
        try:
            building.mkdir(parents=True)
            _draw_samples(building, items)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(building, folder)
        except OSError:
            shutil.rmtree(building, ignore_errors=True)
            raise
    return folder


def _draw_samples(building: Path, items: Sequence[Sample]) -> None:
    """Write the files of ``save_samples`` into a folder."""
    lines = []
    for index, item in enumerate(items):
        images = {name: image for name, image in (("picture", item.picture()), ("crops", item.crops())) if image}
        files = {name: f"{index:02d}-{name}.jpg" for name in images}
        for name, image in images.items():
            save_jpeg(image, building / files[name])
        line = {"id": item.example.id, "title": item.title, "query": item.example.query, "text": item.text}
        line |= {"error": item.error, "regions": item.regions, "found": item.outcome.boxes_px}
        line |= {"scores": item.outcome.scores, "true": item.example.boxes_px}
        lines.append(strict_json(line | {"reward": item.score.total, "terms": item.score.terms} | files) + "\n")
    (building / "samples.jsonl").write_text("".join(lines), encoding="ascii")


def save_jpeg(image: Image.Image, target: Any, quality: int = 88) -> None:
    """Save to a path or binary stream; full colour resolution, as thin lines of colour need it."""
    image.save(target, "JPEG", quality=quality, subsampling=0, optimize=True)
