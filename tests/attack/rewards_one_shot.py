"""Attacks on the rewards of the one-shot tasks: lists of boxes, numbers and texts that are the same for every picture.

Detection is attacked in two more ways: with all boxes right and names that are the same for each of them, and with one
thing right and a blind list beside it. Honest answers have most things right.
"""

from dataclasses import replace
from functools import cache, partial
from random import Random
from typing import Callable, Mapping, Sequence

import numpy as np

from activeo3.config import TrainConfig
from activeo3.data_scenes import KINDS, close_up, plate
from activeo3.task_perception import labelled_answer
from activeo3.tasks import task_of
from activeo3.types import Count, Example

from .reward_search import Attack, Item, Items, Judge, change_items, degenerate, shifted, true_items

COUNT = 50  # examples
Names = tuple[str, ...]


@cache
def pictures(make: Callable[[str, int], Example]) -> tuple[Example, ...]:
    """Close-ups of the embedded world, of things or of plates."""
    return tuple(make("train", index) for index in range(COUNT))


@cache
def questions(task: str) -> tuple[Example, ...]:
    """Close-ups that are posed as questions of the task."""
    prepare = task_of(TrainConfig(task=task)).prepare
    return tuple(map(prepare, pictures(plate if task == "ocr" else close_up)))


def judge(task: str, pointed: bool = False, **flags: object) -> Judge:
    """The task's reward at its defaults, but for the flags; ``pointed``: of counting, only points are known."""
    examples = [points_alone(example) for example in questions(task)] if pointed else questions(task)
    return Judge(examples, replace(TrainConfig(task=task), **flags))  # type: ignore[arg-type]


def points_alone(example: Example) -> Example:
    """The question of counting with the centres of the things in the place of their boxes."""
    middle = (example.boxes_px[:, :2] + example.boxes_px[:, 2:]) / 2
    return replace(example, count=Count(example.count.number, np.tile(middle, 2)))


# ---------------------------------------------------------------------- how answers are written


def listed(items: Sequence[Item]) -> str:
    """An answer of detection."""
    return labelled_answer([item.box for item in items], [item.label for item in items])


def counted(items: Sequence[Item]) -> str:
    """An answer of counting: places, and how many they are."""
    return f"{labelled_answer([item.box for item in items], [''] * len(items))} {len(items)}"


def located(items: Sequence[Item]) -> str:
    """An answer of grounding: the first box."""
    return str(list(items[0].box)) if items else "[]"


# ---------------------------------------------------------------------- honest answers


def most_found(example: Example) -> list[Item]:
    """All things but the last, if there are several, with an IoU of 0.7 and true names."""
    items = [
        shifted(item) for item in true_items(example, example.objects.labels if example.query == "everything" else None)
    ]
    return items[:-1] if len(items) > 1 else items


def one_misnamed(items: Sequence[Item]) -> list[Item]:
    """The items with a wrong name for the first, if there are several."""
    first = (
        items[:1]
        if len(items) < 2
        else [items[0]._replace(label=next(name for name in KINDS if name != items[0].label))]
    )
    return [*first, *items[1:]]


def misread(example: Example) -> str:
    """The number on the plate with a letter in the place of its last figure."""
    return example.text[:-1] + "x"


# ---------------------------------------------------------------------- the attacks


def of_lists(
    task: str, write: Callable[[Sequence[Item]], str], honest: str, labels: Names = ("",), **flags: bool | str
) -> Attack[Items]:
    """A blind list of boxes against one with most things found, which is described by ``honest``; for flags see
    ``judge``."""
    scored = judge(task, **flags)  # type: ignore[arg-type]
    bar = scored.each(
        lambda example: write(one_misnamed(most_found(example)) if task == "detection" else most_found(example))
    )
    return Attack(
        task, degenerate(labels), change_items(labels), lambda items: scored.blind(write(items)), {honest: bar}
    )


MOST = "IoU 0.7, one of several missing"
counting = partial(of_lists, "counting", counted, MOST)
grounding = partial(of_lists, "grounding", located, "IoU 0.7")
detection = partial(of_lists, "detection", listed, f"{MOST}, one of several misnamed", KINDS)


def names_blind(**flags: object) -> Attack[Names]:
    """All boxes of a detection are right, and each stands under the same names."""
    scored = judge("detection", **flags)
    write = lambda names: (
        lambda example: listed([item._replace(label=name) for item in true_items(example) for name in names])
    )  # noqa: E731
    starts: list[Names] = [KINDS, KINDS[:1], KINDS[:6], KINDS[::6]]
    return Attack(
        "detection, names blind",
        starts,
        change_names,
        lambda names: scored.each(write(names)),
        detection(**flags).honest,
    )


def change_names(names: Names, random: Random) -> Names:
    """One name more or less, another one, or all of them."""
    place = random.randrange(len(names))
    other = (*names[:place], *names[place + 1 :])
    return random.choice(
        [(*names, random.choice(KINDS)), (*other, random.choice(KINDS)), other or names, (*names, names[place]), KINDS]
    )


def one_thing(**flags: object) -> Attack[Items]:
    """One thing of a detection is right, and a blind list stands beside it; of pictures with three things or more."""
    whole = judge("detection", **flags)
    scored = replace(whole, examples=[example for example in whole.examples if len(example.boxes_px) > 2])
    first = lambda example: true_items(example, example.objects.labels)[:1]  # noqa: E731
    honest = scored.each(lambda example: listed(one_misnamed(most_found(example))))
    return Attack(
        "detection, one thing", degenerate(KINDS), change_items(KINDS), lambda items: scored.each(lambda one: listed([*first(one), *items])),
        {f"{MOST}, one misnamed": honest},
    )  # fmt: skip


def ocr(**flags: object) -> Attack[str]:
    """A blind text against one with a wrong figure."""
    scored = judge("ocr", **flags)
    starts = ["0", "11", "123", "0123456789", "1" * 40, "a", "12 12 12 12"]
    return Attack("ocr", starts, change_text, scored.blind, {"one of two figures wrong": scored.each(misread)})


def change_text(text: str, random: Random) -> str:
    """One letter more, less or another, or all of it once more."""
    place, letter = random.randrange(len(text) + 1), random.choice("0123456789 a")
    return random.choice(
        [
            text[:place] + letter + text[place:],
            text[:place] + text[place + 1 :],
            text[:place] + letter + text[place + 1 :],
            text * 2,
        ]
    )[:80]


ATTACKS: Mapping[str, Callable[[], Attack]] = {
    "grounding": grounding,
    "counting": counting,
    "counting, points": partial(counting, pointed=True),
    "detection": detection,
    "detection, names blind": names_blind,
    "detection, one thing": one_thing,
    "ocr": ocr,
}
"""On the rewards as they are."""

_PAPER = {"perception_reward": "paper", "places": "distance"}
HACKED: Mapping[str, Callable[[], Attack]] = {
    "counting, paper": partial(counting, **_PAPER),
    "counting, inside of points": partial(counting, pointed=True, places="inside"),
    "detection, names blind, paper": partial(names_blind, **_PAPER),
    "detection, one thing, paper": partial(one_thing, **_PAPER),
}
"""On rewards that can be chosen, with which blind answers succeed."""
