"""Answers as people see them: drawn, judged right or wrong, and kept under ``samples/`` in the folder of a run.

samples/step-000020/   samples.jsonl   one group: all answers to one question of the step, with their advantages
                       held-out.jsonl  the policy's answers to a few held-out questions, the same in every step
                       view.jpg        what the policy saw of the group's image
samples/held-out/      held-out.jsonl  the answers of the table at the end, several policies one after the other

Each line is one answer; its pictures lie beside it, named after its file and number: ``samples-03-picture.jpg``.
"""

import io
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
from activeo3.log import read_rows, strict_json
from activeo3.outputs import enough_room
from activeo3.types import Example, Region, Reward, Rollout, TaskResult

ONE_MASK, ONE_STEP = 0.75, "step-{:06d}"
SMALL = 260  # pixels of the longer side of one of many pictures: a page has more than a hundred, in 4 MB
RIGHT = {
    "answer": (0.5, "the answer in words is right"),
    "right": (0.5, "the answer in words is right"),
    "text": (0.999, "the text is read without an error"),
    "iou": (0.5, "the box has IoU 0.5 with the true one"),
    "count": (0.999, "the number is right, and so are the places"),
    "number": (0.999, "every thing is found at IoU 0.5 under its name, and nothing else"),
    "task": (1.999, "every true box is found at IoU 0.5, and nothing else"),
}
"""Reward terms that tell whether an answer is right, from which value on, and what that means."""
IN_WORDS = {"answer", "right", "text", "count"}
"""Those of answers in words or numbers."""


def with_evidence(example: Example) -> Example:
    """An example that is asked in words: the question as its query, and where its answer can be seen as its boxes."""
    vqa = example.vqa
    return replace(example, query=vqa.question, boxes_px=vqa.evidence_px, crowd=None, areas=None) if vqa else example


@dataclass(frozen=True, eq=False)
class Sample:
    """One answer with its result and reward, to be drawn. ``title`` names the policy, ``text`` is the answer itself.

    ``regions`` is None where the answer is itself the result: then there are no crops. ``said`` is an episode's final
    answer in words, ``statuses`` are those of its turns.
    """

    example: Example
    text: str
    regions: tuple[Region, ...] | None
    outcome: TaskResult
    score: Reward
    title: str = ""
    error: str | None = None
    said: str | None = None
    statuses: tuple[str, ...] = ()

    @classmethod
    def of(cls, rollout: Rollout, outcome: TaskResult, score: Reward, title: str = "") -> "Sample":
        """The same, read off a rollout."""
        regions, episode = rollout.regions if rollout.result is None else None, rollout.episode
        said = (episode.answer or "nothing") if episode else None
        statuses = tuple(episode.statuses) if episode else ()
        example = with_evidence(rollout.example) if episode else rollout.example
        shared = example, rollout.text, regions, outcome, score, title
        return cls(*shared, rollout.action.error, said, statuses)

    @property
    def right(self) -> bool | None:
        """Whether the answer is right, by the first of its terms that RIGHT knows; None if there is none."""
        if self.outcome.mask is not None:
            return self.score.terms.get("task", 0.0) >= ONE_MASK
        return next(
            (self.score.terms[name] >= least for name, (least, _) in RIGHT.items() if name in self.score.terms), None
        )

    @property
    def meaning_of_right(self) -> str:
        """What ``right`` means here, in words."""
        if self.outcome.mask is not None:
            return f"the mask has IoU {ONE_MASK} with the true one"
        return next((words for name, (_, words) in RIGHT.items() if name in self.score.terms), "")

    @property
    def truth(self) -> str:
        """The true answer in words; "" where none is asked for."""
        if not IN_WORDS & set(self.score.terms):
            return ""
        vqa = self.example.vqa
        if vqa and vqa.answers and vqa.options and len(vqa.answers[0]) == 1:
            letter = vqa.answers[0]
            return f"{letter}. {dict(zip('ABCDEFGHIJ', vqa.options)).get(letter, '')}"
        if vqa and vqa.answers:
            return " or ".join(filter(None, vqa.answers[:3]))
        return str(self.example.count.number) if self.example.count else self.example.text

    @property
    def dialogue(self) -> list[tuple[str, list[int]]]:
        """What an episode said turn by turn, each with the numbers of the regions that it was shown then; else []."""
        if not self.statuses:
            return []
        turns = re.split(r"\n\[.*\]\n", self.text)
        shown = iter(range(len(self.regions or ())))
        each = -(-len(self.regions or ()) // max(1, len(turns) - 1))
        return [(turn, [number for number, _ in zip(shown, range(each))]) for turn in turns]

    def picture(self, max_side: int = 0) -> Image.Image:
        """The picture with all that is drawn, above its caption."""
        size = {"max_side": max_side} if max_side else {}
        if self.outcome.mask is not None:
            return corrected_picture(self.example, self.regions, self.outcome.mask, **size)
        return annotated_picture(self.example, self.regions, self.outcome, said=self.said, **size)

    def plain_picture(self, max_side: int = 360) -> Image.Image:
        """The picture without words, small: one of many."""
        return marked_picture(self._tinted(), self.regions or (), self.outcome, max_side)

    def crops(self) -> Image.Image | None:
        return None if self.regions is None else crops_strip(self._tinted(), self.regions, self.outcome)

    def crop(self, number: int) -> Image.Image:
        """One of the crops, by its place among the regions."""
        return crops_strip(self._tinted(), self.regions[number : number + 1], self.outcome)

    def _tinted(self) -> Example:
        return self.example if self.outcome.mask is None else under_mask(self.example, self.outcome.mask)

    def card(self, small: bool = False, max_side: int = 0) -> "Card":
        """The answer as a page shows it; ``small``: as one of many, without words in its picture."""
        crops, dialogue = self.crops(), self.dialogue
        pictures = {"small": self.plain_picture(SMALL)} if small else {}
        pictures |= {"picture": self.picture(max_side)} | ({"crops": crops} if crops else {})
        pictures |= {f"crop{number}": self.crop(number) for _, shown in dialogue for number in shown[:8]}
        return Card(self._line() | {"turns": dialogue}, {name: jpeg(image) for name, image in pictures.items()})

    def _line(self) -> dict[str, Any]:
        found, score = self.outcome, self.score
        line = {"id": self.example.id, "title": self.title, "query": self.example.query, "text": self.text}
        line |= {"error": self.error, "said": self.said, "truth": self.truth, "regions": self.regions}
        line |= {"found": found.boxes_px, "scores": found.scores, "true": self.example.boxes_px}
        line |= {"reward": score.total, "advantage": score.advantage, "terms": score.terms}
        return line | {"right": self.right, "right_means": self.meaning_of_right, "mask": found.mask is not None}


@dataclass(frozen=True, eq=False)
class Card:
    """One answer, drawn: its ``line`` in a file of samples, and its JPEGs by name: picture, crops, small, crop0, ..."""

    line: Mapping[str, Any]
    pictures: Mapping[str, bytes]


def group_picture(group: Sequence[Sample], view: Image.Image | None = None) -> Image.Image:
    """All answers to one question as one picture, by reward, with their advantages; ``view`` is what the policy saw.

    ``group_picture([Sample.of(rollout, result, reward) for ...], task.prompt(policy, example).view).save("group.png")``
    """
    tiles = [Tile(sample.plain_picture(), sample.score.total, sample.score.advantage) for sample in group]
    return group_sheet(group[0].example.query, tiles, view)


# ---------------------------------------------------------------------- files


def save_samples(
    output_dir: Path | str,
    place: int | str,
    group: Sequence[Sample],
    held_out: Sequence[Card] = (),
    view: Image.Image | None = None,
) -> Path:
    """Lines and pictures under ``samples/step-000012/`` for a step, or another name; see the head of this file.

    The folder appears under its name only when it is complete; one of the same step is replaced.
    Boxes in the lines are xyxy in original pixels. Returns the folder.
    """
    folder = Path(output_dir) / "samples" / (ONE_STEP.format(place) if isinstance(place, int) else place)
    building = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    with enough_room(folder):
        try:
            building.mkdir(parents=True)
            _write_cards(building, "samples", [sample.card(small=True) for sample in group])
            if held_out:
                _write_cards(building, "held-out", held_out)
            if view:
                (building / "view.jpg").write_bytes(jpeg(view, 95))
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(building, folder)
        except OSError:
            shutil.rmtree(building, ignore_errors=True)
            raise
    return folder


def _write_cards(folder: Path, name: str, cards: Sequence[Card]) -> None:
    """The lines of ``<name>.jsonl``, which name the pictures beside it."""
    lines = []
    for index, card in enumerate(cards):
        files = {part: f"{name}-{index:02d}-{part}.jpg" for part in card.pictures}
        for part, data in card.pictures.items():
            (folder / files[part]).write_bytes(data)
        lines.append(strict_json(dict(card.line) | {"files": files}) + "\n")
    (folder / f"{name}.jsonl").write_text("".join(lines), encoding="ascii")


def read_cards(folder: Path, name: str) -> list[Card]:
    """The answers of ``<name>.jsonl`` in a folder of samples, with those of their pictures that are there."""
    path = folder / f"{name}.jsonl"
    lines = [line for line in read_rows(path) if isinstance(line, dict)] if path.is_file() else []
    return [Card(line, _pictures(folder, f"{name}-{index:02d}-")) for index, line in enumerate(lines)]


def _pictures(folder: Path, start: str) -> dict[str, bytes]:
    """The pictures whose names begin so, whatever a line says of them: a line must name no file elsewhere."""
    found = sorted(path for path in folder.glob(f"{start}*.jpg") if not path.is_symlink())
    return {path.stem.removeprefix(start): path.read_bytes() for path in found}


def steps_of(output_dir: Path) -> list[tuple[int, Path]]:
    """The steps of which a run has samples, in order, with their folders."""
    folders = [path for path in (output_dir / "samples").glob("step-*") if path.name[5:].isdecimal()]
    return sorted((int(path.name[5:]), path) for path in folders)


def jpeg(image: Image.Image, quality: int = 80) -> bytes:
    """A picture as the bytes of a JPEG file."""
    stream = io.BytesIO()
    save_jpeg(image, stream, quality)
    return stream.getvalue()
