"""A search for answers that earn a reward without looking at the picture.

A *blind* answer is one set of parameters, used for every example. The search climbs from degenerate answers (nothing,
the whole picture, tiles, one box under all names) by small changes, and keeps what earns more in the mean over all
examples. An *honest* answer is the truth with stated mistakes. An attack succeeds if a blind answer earns more than
honest ones do less ``MARGIN``.

A new attack is an ``Attack``: where the search starts, how an answer is changed, what it earns, what honest ones earn.
"""

from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from typing import Any, Callable, Generic, Mapping, NamedTuple, Sequence, TypeVar

import numpy as np

from activeo3.config import TrainConfig
from activeo3.geometry import Frame, as_boxes
from activeo3.tasks import PromptSpec, Task, task_of
from activeo3.types import Example, Rollout

T = TypeVar("T")
SIDE = 1000  # sides of the coordinate system in which answers are written, whatever the picture's size
LONGEST = 60  # items in a list
MARGIN = 0.1  # points of reward by which an honest answer must earn more than a blind one
PATIENCE = 40  # changes without a gain after which the search goes on from another start


# ---------------------------------------------------------------------- the search


@dataclass(frozen=True)
class Attack(Generic[T]):
    """An attack on the reward of a task. ``honest`` is what answers of a stated quality earn, by what is said of
    them."""

    name: str
    starts: Sequence[T]
    change: Callable[[T, Random], T]
    earned: Callable[[T], float]
    honest: Mapping[str, float]

    @property
    def bar(self) -> float:
        """What the worst honest answer earns."""
        return min(self.honest.values())


class Found(NamedTuple):
    """The blind answer that earned most, what it earned, and how many answers were tried."""

    answer: Any
    reward: float
    trials: int


def climb(attack: Attack[T], trials: int, seed: int) -> Found:
    """The best of all starts and of ``trials`` seeded changes: uphill from the best start, then from the next one."""
    random = Random(seed)
    ranked = sorted(((attack.earned(start), start) for start in attack.starts), key=lambda pair: -pair[0])
    best, here, idle, turn = ranked[0], ranked[0], 0, 0
    for _ in range(trials):
        changed = attack.change(here[1], random)
        reward = attack.earned(changed)
        idle = 0 if reward > here[0] else idle + 1
        if reward >= here[0]:
            here = (reward, changed)
        best = max(best, here, key=lambda pair: pair[0])
        if idle == PATIENCE:
            turn, idle = turn + 1, 0
            here = ranked[turn % len(ranked)] if turn % 2 else best
    return Found(best[1], best[0], len(ranked) + trials)


def fault(attack: Attack, found: Found) -> str | None:
    """A sentence if the blind answer that was found is as good as an honest one, else None."""
    if found.reward < attack.bar - MARGIN:
        return None
    return f"{attack.name}: a blind answer earns {found.reward:.2f}, an honest one {attack.bar:.2f}: {found.answer}"


# ---------------------------------------------------------------------- what answers earn


@dataclass(frozen=True)
class Judge:
    """Parses, acts on and rewards one answer per example, as training does; the examples are prepared."""

    examples: Sequence[Example]
    config: TrainConfig = field(default_factory=TrainConfig)
    task_model: Any = None

    @cached_property
    def task(self) -> Task:
        """The task that the config names."""
        return task_of(self.config)

    def rollout(self, example: Example, text: str) -> Rollout:
        """What a policy did that wrote ``text``, with coordinates in 0-SIDE."""
        return Rollout(example, (), text, True, *self.task.parse(text, True, shown(example), example))

    def rewards(self, texts: Sequence[str]) -> np.ndarray:
        """The reward (n,) of one text per example."""
        rollouts = [self.rollout(example, text) for example, text in zip(self.examples, texts, strict=True)]
        results = self.task.act(self.task_model, rollouts)
        pairs = zip(rollouts, results, strict=True)
        return np.array([self.task.reward(rollout, result).total for rollout, result in pairs])

    def blind(self, text: str) -> float:
        """The mean reward of the same text for every example."""
        return float(self.rewards([text] * len(self.examples)).mean())

    def each(self, write: Callable[[Example], str]) -> float:
        """The mean reward of texts that are written for their examples."""
        return float(self.rewards([write(example) for example in self.examples]).mean())


def shown(example: Example) -> PromptSpec:
    """The whole picture in 0-SIDE, and no words."""
    return PromptSpec(example.image, frame_of(example), "")


def frame_of(example: Example) -> Frame:
    """The whole picture in 0-SIDE."""
    return Frame((0.0, 0.0, *map(float, example.size_px)), (SIDE, SIDE))


# ---------------------------------------------------------------------- lists of boxes


class Item(NamedTuple):
    """A box in 0-SIDE with a name; a point has no sides."""

    box: tuple[int, int, int, int]
    label: str = ""


Items = tuple[Item, ...]
WHOLE = (0, 0, SIDE, SIDE)


def grid(columns: int, rows: int, labels: Sequence[str] = ("",)) -> Items:
    """Tiles that cover the picture, named in turn."""
    xs, ys = (np.linspace(0, SIDE, count + 1).astype(int).tolist() for count in (columns, rows))
    boxes = [(x1, y1, x2, y2) for y1, y2 in zip(ys, ys[1:]) for x1, x2 in zip(xs, xs[1:])]
    return tuple(Item(box, labels[place % len(labels)]) for place, box in enumerate(boxes))


def strips(count: int, thickness: int, labels: Sequence[str] = ("",)) -> Items:
    """Columns over the whole height, wider than they are apart, so that they overlap."""
    lefts = np.linspace(0, SIDE - thickness, count).astype(int).tolist()
    return tuple(
        Item((left, 0, left + thickness, SIDE), labels[place % len(labels)]) for place, left in enumerate(lefts)
    )


def under_all(box: tuple[int, int, int, int], labels: Sequence[str]) -> Items:
    """One box under every name."""
    return tuple(Item(box, label) for label in labels)


def degenerate(labels: Sequence[str] = ("",)) -> list[Items]:
    """Where a search for lists of boxes starts."""
    middle = (350, 350, 650, 650)
    few = [grid(n, n, labels) for n in (2, 3, 5)] + [grid(1, 3, labels), strips(3, 400, labels), strips(2, 600, labels)]
    points = tuple(Item((x, 500, x, 500), labels[0]) for x in (350, 650))
    return [
        (),
        (Item(WHOLE, labels[0]),),
        (Item(middle, labels[0]),),
        points,
        under_all(WHOLE, labels),
        under_all(middle, labels),
        *few,
    ]


def change_items(labels: Sequence[str] = ("",), longest: int = LONGEST) -> Callable[[Items, Random], Items]:
    """How a list of boxes is changed: one item is added, removed, moved, resized, renamed, repeated or put under all
    names, or all of them become tiles or strips."""

    def change(items: Items, random: Random) -> Items:
        if not items:
            return (_anywhere(labels, random),)
        place, way = random.randrange(len(items)), random.randrange(9)
        one, before, after = items[place], items[:place], items[place + 1 :]
        match way:
            case 0:
                changed = (*items, _anywhere(labels, random))
            case 1:
                changed = before + after
            case 2:
                changed = (*before, one._replace(box=_moved(one.box, random)), *after)
            case 3:
                changed = (*before, one._replace(box=_resized(one.box, random)), *after)
            case 4:
                changed = (*before, one._replace(label=random.choice(labels)), *after)
            case 5:
                changed = (*items, *[one] * random.choice((1, 1, 3, 10)))
            case 6:
                changed = (*before, *under_all(one.box, labels), *after)
            case 7:
                changed = grid(random.randint(1, 6), random.randint(1, 6), random.sample(labels, len(labels)))
            case _:
                changed = strips(random.randint(1, 6), random.randint(100, 700), random.sample(labels, len(labels)))
        return tuple(changed[:longest])

    return change


def _anywhere(labels: Sequence[str], random: Random) -> Item:
    x, y = random.randint(0, SIDE), random.randint(0, SIDE)
    width, height = (random.choice((0, 50, 100, 200, 400)) for _ in range(2))
    return Item(
        (max(0, x - width), max(0, y - height), min(SIDE, x + width), min(SIDE, y + height)), random.choice(labels)
    )


def _moved(box: tuple[int, int, int, int], random: Random) -> tuple[int, int, int, int]:
    """The box with both corners moved alike, inside of the picture."""
    x = int(np.clip(random.gauss(0, 80), -box[0], SIDE - box[2]))
    y = int(np.clip(random.gauss(0, 80), -box[1], SIDE - box[3]))
    return box[0] + x, box[1] + y, box[2] + x, box[3] + y


def _resized(box: tuple[int, int, int, int], random: Random) -> tuple[int, int, int, int]:
    """The box with each side moved on its own; now and then a point."""
    if random.random() < 0.2:
        x, y = (box[0] + box[2]) // 2, (box[1] + box[3]) // 2
        return x, y, x, y
    x1, y1, x2, y2 = (int(np.clip(side + random.gauss(0, 80), 0, SIDE)) for side in box)
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


# ---------------------------------------------------------------------- honest answers


def true_items(example: Example, labels: Sequence[str] | None = None) -> list[Item]:
    """The true boxes of a posed example in 0-SIDE, named if ``labels`` (N) are given."""
    boxes = np.rint(frame_of(example).to_text(as_boxes(example.boxes_px))).astype(int).tolist()
    return [Item(tuple(box), label) for box, label in zip(boxes, labels or [""] * len(boxes), strict=True)]


def shifted(item: Item, iou: float = 0.7) -> Item:
    """The item with its box moved towards the middle of the picture, along its longer way, until it has this IoU."""
    x1, y1, x2, y2 = item.box
    across = abs(x1 + x2 - SIDE) > abs(y1 + y2 - SIDE)
    step = (1 - iou) / (1 + iou) * (x2 - x1 if across else y2 - y1)
    x, y = (
        (step if across and x1 + x2 < SIDE else -step if across else 0),
        (0 if across else step if y1 + y2 < SIDE else -step),
    )
    return item._replace(box=(round(x1 + x), round(y1 + y), round(x2 + x), round(y2 + y)))
