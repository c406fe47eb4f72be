"""Answers as people see them: drawn, and kept under ``samples/`` in the folder of a run."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from activeo3.drawing import (
    Tile,
    annotated_picture,
    corrected_picture,
    crops_strip,
    group_sheet,
    marked_picture,
    save_jpeg,
    under_mask,
)
from activeo3.log import strict_json
from activeo3.outputs import enough_room
from activeo3.types import Example, Region, Reward, Rollout, TaskResult


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

    def plain_picture(self, max_side: int = 360) -> Image.Image:
        """The picture without words, small: one of many."""
        corrected = self.outcome.mask is not None
        example = under_mask(self.example, self.outcome.mask) if corrected else self.example
        return marked_picture(example, self.regions or (), self.outcome, max_side)

    def crops(self) -> Image.Image | None:
        if self.regions is None:
            return None
        corrected = self.outcome.mask is not None
        example = under_mask(self.example, self.outcome.mask) if corrected else self.example
        return crops_strip(example, self.regions, self.outcome)


def group_picture(group: Sequence[Sample], view: Image.Image | None = None) -> Image.Image:
    """All answers to one question as one picture, by reward, with their advantages; ``view`` is what the policy saw.

    ``group_picture([Sample.of(rollout, result, reward) for ...], task.prompt(policy, example).view).save("group.png")``
    """
    tiles = [Tile(sample.plain_picture(), sample.score.total, sample.score.advantage) for sample in group]
    return group_sheet(group[0].example.query, tiles, view)


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
