"""Attacks on the rewards of the tasks that look: regions, zooms and answers that are the same for every picture.

``sense`` and ``segment`` are attacked with their oracles, ``sense`` also with the shipped policy as the task model,
which is slow; its boxes are kept by region. ``zoom_qa`` is asked for the number on a plate, and to choose among four
numbers.
"""

from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any, Callable, Mapping, NamedTuple, Sequence

import numpy as np
import torch
from PIL import Image

from activeo3 import eval_baselines
from activeo3.config import Config, TrainConfig
from activeo3.data_scenes import close_up
from activeo3.data_scenes import example as scene
from activeo3.geometry import as_boxes, iou, mask_to_rle, rle_to_mask
from activeo3.model import VisionLanguageModel
from activeo3.presets import PRESETS
from activeo3.prompts import boxes_answer, sensing_answer
from activeo3.task_model_sam import Perfect
from activeo3.task_models import Crop, Detections, TaskModel
from activeo3.task_segmentation import Draft, error_regions, with_first_masks
from activeo3.tasks import task_of
from activeo3.types import Example, Region, Rollout

from .reward_search import (
    SIDE,
    Attack,
    Item,
    Items,
    Judge,
    change_items,
    degenerate,
    frame_of,
    shifted,
    shown,
    strips,
    true_items,
)
from .rewards_one_shot import pictures as close_ups

COUNT = 50  # examples
REGIONS = 3
ROOT = Path(__file__).parents[2]
SQUARES = tuple(Item(box) for box in ((100, 100, 500, 500), (500, 100, 900, 500), (300, 500, 700, 900)))
"""Three regions that leave out what lies at the border."""


@cache
def pictures(count: int) -> tuple[Example, ...]:
    """Pictures of the embedded world."""
    return tuple(scene("train", index) for index in range(count))


# ---------------------------------------------------------------------- regions


def sensed(items: Sequence[Item]) -> str:
    """An answer that says where to look."""
    return sensing_answer([item.box for item in items], "there")


def near(regions: Callable[[Example], Sequence[Region]], example: Example) -> list[Item]:
    """Good regions, each shifted to an IoU of 0.7 with itself."""
    boxes = np.rint(frame_of(example).to_text(as_boxes(regions(example)))).astype(int).tolist()
    return [shifted(Item(tuple(box))) for box in boxes]


NEAR = "the best regions, shifted to IoU 0.7"


def of_regions(name: str, judge: Judge, honest: Callable[[Example], Sequence[Item]]) -> Attack[Items]:
    """Three regions at most, the same for every picture."""
    starts = [*(start[:REGIONS] for start in degenerate()), strips(3, 460), SQUARES]
    bar = judge.each(lambda example: sensed(honest(example)))
    return Attack(name, starts, change_items(longest=REGIONS), lambda items: judge.blind(sensed(items)), {NEAR: bar})


def sense(count: int = COUNT, **flags: Any) -> Attack[Items]:
    """Regions for an oracle that works on their crops."""
    config = replace(TrainConfig(task_model="oracle"), **flags)
    task_model = task_of(config).load_task_model("oracle", torch.device("cpu"))
    honest = partial(near, lambda example: eval_baselines.oracle_regions(example, REGIONS))
    return of_regions("sense", Judge(pictures(count), config, task_model), honest)


@dataclass
class Kept(TaskModel):
    """The shipped policy in its task role, which is asked about a window of a picture once."""

    model: VisionLanguageModel
    found: dict[tuple[str, Region], Detections] = field(default_factory=dict)

    def find(self, looks: Sequence[Crop], config: Config) -> list[Detections]:
        new = [look for look in looks if (look.example.id, look.window) not in self.found]
        self.found |= {
            (look.example.id, look.window): seen for look, seen in zip(new, self.model.find(new, config), strict=True)
        }
        return [self.found[look.example.id, look.window] for look in looks]


def sense_mllm(count: int = COUNT, **flags: Any) -> Attack[Items]:
    """Regions for the shipped policy, as in the default run; in steps of a twentieth of the picture."""
    task_model = Kept(VisionLanguageModel.load(str(ROOT / "data/tiny"), torch.float32))
    judge = Judge(pictures(count), replace(TrainConfig(), **flags), task_model)
    attack = of_regions(
        "sense, mllm", judge, partial(near, lambda example: eval_baselines.oracle_regions(example, REGIONS))
    )
    return replace(attack, change=lambda items, random: coarse(attack.change(items, random)))


def coarse(items: Items, step: int = SIDE // 20) -> Items:
    """The items with corners on a lattice."""
    return tuple(item._replace(box=tuple(step * round(side / step) for side in item.box)) for item in items)


# ---------------------------------------------------------------------- errors of masks


def smaller(example: Example, times: int = 3) -> Example:
    """The example with its first mask at a size that is searched faster; the oracle's cells shrink with the regions."""
    size = tuple(side // times for side in example.size_px)
    true, mask = (
        mask_to_rle(np.asarray(Image.fromarray(rle_to_mask(rle)).resize(size, Image.Resampling.NEAREST)))
        for rle in example.draft
    )
    return replace(example, image=example.image.resize(size), draft=(true, mask), masks=lambda: [true])


@cache
def drafts(count: int) -> tuple[Example, ...]:
    """Pictures with their first masks."""
    return tuple(map(smaller, with_first_masks(Perfect(), pictures(count), TrainConfig())))


def three(items: Sequence[Item]) -> list[Item]:
    """The items, and where they are too few small ones in corners that are free."""
    chosen, side = list(items), SIDE // 8
    for x, y in ((0, 0), (SIDE - side, 0), (0, SIDE - side), (SIDE - side, SIDE - side)):
        corner = Item((x, y, x + side, y + side))
        if len(chosen) < REGIONS and not iou(as_boxes([corner.box]), as_boxes([item.box for item in chosen])).any():
            chosen.append(corner)
    return chosen


def segment(count: int = COUNT, **flags: Any) -> Attack[Items]:
    """Regions in which an oracle corrects a mask."""
    config = replace(TrainConfig(task="segment", task_model="oracle"), **flags)
    task_model = task_of(config).load_task_model("oracle", torch.device("cpu"))
    best = lambda example: error_regions(Draft.of(example).error, REGIONS)  # noqa: E731
    return of_regions("segment", Judge(drafts(count), config, task_model), lambda example: three(near(best, example)))


# ---------------------------------------------------------------------- boxes in the whole picture


def direct(count: int = COUNT, **flags: Any) -> Attack[Items]:
    """A list of boxes for whatever is asked for, in close-ups, whose things are large."""
    judge = Judge(close_ups(close_up)[:count], replace(TrainConfig(task="direct"), **flags))
    write = lambda items: boxes_answer([item.box for item in items])  # noqa: E731
    most = lambda example: write([shifted(item) for item in true_items(example)][: max(1, len(example.boxes_px) - 1)])  # noqa: E731
    return Attack(
        "direct",
        degenerate(),
        change_items(),
        lambda items: judge.blind(write(items)),
        {"IoU 0.7, one of several missing": judge.each(most)},
    )


# ---------------------------------------------------------------------- episodes


class Episode(NamedTuple):
    """An episode that is the same for every picture: zooms, one a turn, and an answer."""

    zooms: Items
    answer: str


NEXT_TURN = "\f"


def told(episode: Episode) -> str:
    """What is written in an episode."""
    return NEXT_TURN.join([boxes_answer([zoom.box]) for zoom in episode.zooms] + [f"<answer>{episode.answer}</answer>"])


@dataclass(frozen=True)
class EpisodeJudge(Judge):
    """A judge of episodes, whose text holds their turns; ``policy`` is the policy for which crops are cut."""

    policy: Any = None

    def rollout(self, example: Example, text: str) -> Rollout:
        conversation = self.task.start(self.policy, example, shown(example))
        for turn in text.split(NEXT_TURN):
            if conversation.step(turn, True) is None:
                break
        return Rollout(example, (), text, True, *conversation.result())


def chosen(example: Example) -> Example:
    """The question with four numbers to choose from."""
    reading, random = example.vqa, Random(example.id)
    others = [number for number in map(str, range(10, 100)) if number != reading.answer]
    options = random.sample([reading.answer, *random.sample(others, 3)], 4)
    letter = "ABCD"[options.index(reading.answer)]
    return replace(example, vqa=replace(reading, answers=(letter,), options=tuple(options)))


def zoom_qa(count: int = COUNT, choices: bool = False, **flags: Any) -> Attack[Episode]:
    """Zooms and an answer, the same for every plate. An honest policy zooms to the plate and misreads each fifth."""
    config = replace(TrainConfig(**PRESETS["zoom_qa"]), max_turns=4, max_zooms=3, **flags)
    bare = [
        replace(example, image=example.image.convert("1")) for example in pictures(count)
    ]  # nobody looks at the crops
    asked = [task_of(config).prepare(chosen(example) if choices else example) for example in bare]
    policy = VisionLanguageModel.load(str(ROOT / "data/tiny-tasks"), torch.float32)
    judge, fifth = EpisodeJudge(asked, config, policy=policy), {example.id for example in asked[::5]}

    def honest(example: Example) -> str:
        region = near(lambda one: eval_baselines.oracle_regions(one, 1), example)
        return told(Episode(tuple(region), "?" if example.id in fifth else example.vqa.answer))

    answers = list("ABCD") if choices else [str(number) for number in range(10, 100)]
    starts = [
        Episode(zooms, answer) for zooms in ((), strips(1, 400), SQUARES, SQUARES[:1] * 3) for answer in answers[:4]
    ]
    name = "zoom_qa, choices" if choices else "zoom_qa"
    change = partial(change_episode, answers)
    return Attack(
        name, starts, change, lambda one: judge.blind(told(one)), {"the plate, four of five right": judge.each(honest)}
    )


def change_episode(answers: Sequence[str], episode: Episode, random: Random) -> Episode:
    """Another answer, or other zooms."""
    if random.random() < 0.5:
        return episode._replace(answer=random.choice([*answers, " ".join(answers), ""]))
    return episode._replace(zooms=change_items(longest=REGIONS)(episode.zooms, random))


ATTACKS: Mapping[str, Callable[[], Attack]] = {
    "sense": sense,
    "segment": segment,
    "direct": direct,
    "zoom_qa": zoom_qa,
    "zoom_qa, choices": partial(zoom_qa, choices=True),
}
"""On the rewards as they are."""
SLOW: Mapping[str, Callable[[], Attack]] = {"sense, mllm": sense_mllm}
"""Likewise; a model works on every crop."""
HACKED: Mapping[str, Callable[[], Attack]] = {
    "sense, an oracle that sees everything": partial(sense, least_seen=0.0),
    "sense, heuristic terms alone": partial(sense, reward_weights=("task=0",)),
    "segment, an oracle that sees everything": partial(segment, least_seen=0.0, coverage="recall"),
}
"""On rewards that can be chosen, with which blind answers succeed."""
