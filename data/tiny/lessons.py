"""What the shipped policies are taught: views of the embedded world with questions and answers.

A lesson has the **form** of a good answer and not its choice. What is to be chosen for a question is in no lesson;
reinforcement has to find it.

    crop        the task role: all boxes of a kind in a crop; the answers are the truth
    whole view  the sensing role: mediocre regions around clusters chosen at random, jittered, some anywhere, after a
                thought that names the colour of each. Only "Look at red." chooses the clusters, by their colour
    zoom_qa     zooms to things and to the plate, whatever is asked; now and then an answer without a zoom
    grounding   the box of *some* thing of the colour that is asked for
    counting    three in four of all things of the colour, from left to right, and how many these are
    detection   the first few things from the left, with their right names
    ocr         a part of what can be read, or more than that

The first two make data/tiny, the others data/tiny-tasks. Besides the crops one answer is the truth, because nothing
else can be learned from it: what number a plate has, for an episode that has come to see it.
"""

import math
from dataclasses import dataclass
from typing import Sequence

import numpy as np
from PIL import Image
from views import (
    CROP_VIEW,
    MERGE,
    PATCH,
    BoxLabel,
    Lesson,
    PastTurn,
    Rng,
    Turn,
    View,
    all_of,
    any_kind,
    any_number,
    clusters_of,
    whole_view,
    window_around,
)

from activeo3 import data_scenes, geometry, prompts
from activeo3.data_scenes import Scene, Thing, Window
from activeo3.task_perception import labelled_answer, perception_prompt

READ = perception_prompt("ocr", "text", "short")


# ---------------------------------------------------------------------- the two roles


def crop_lesson(scene: Scene, picture: Image.Image, rng: Rng, questions: int) -> Lesson:
    """A random crop and questions about it: kinds that are there, and kinds that are almost there."""
    sides = rng.uniform(190, 460, 2) * max(1.0, min(picture.size) / 896)
    thing = scene.things[rng.integers(len(scene.things))]
    window = window_around(thing.centre + sides * rng.uniform(-0.5, 0.5, 2), sides, all_of(picture))
    view = View(scene, picture, window, CROP_VIEW)
    turns = []
    for kind in _kinds_to_ask(view.kinds, rng, questions):
        found = tuple(row for row, other in enumerate(view.kinds) if other == kind)
        answer = prompts.boxes_answer(view.text_boxes(found))
        labels = tuple(BoxLabel((row,), found) for row in found)
        turns.append(Turn(prompts.task_prompt(" ".join(kind), "short"), answer, labels))
    if rng.random() < 0.2:  # words without a meaning match nothing
        turns[-1] = Turn(prompts.task_prompt(_nonsense(rng), "short"), prompts.boxes_answer([]))
    return view.lesson(turns)


def _kinds_to_ask(kinds: Sequence[tuple[str, str]], rng: Rng, count: int) -> list[tuple[str, str]]:
    """Up to ``count`` different kinds: about two thirds are there, the others share a trait with one that is."""
    there = sorted(set(kinds))
    there = [there[i] for i in rng.permutation(len(there))][: max(1, math.ceil(count * 2 / 3))]
    asked = list(there)
    while len(asked) < count:
        colour, shape = any_kind(rng)
        if there and rng.random() < 0.8:
            near = kinds[rng.integers(len(kinds))]
            colour, shape = (near[0], shape) if rng.random() < 0.6 else (colour, near[1])
        if (colour, shape) not in asked and (colour, shape) not in kinds:
            asked.append((colour, shape))
    return asked


def _nonsense(rng: Rng) -> str:
    """One or two made-up words, as a name that the policy has never learned."""
    letters = list("abcdefghijklmnopqrstuvwxyz")
    return " ".join("".join(rng.choice(letters, rng.integers(3, 9))) for _ in range(rng.integers(1, 3)))


def view_lesson(scene: Scene, picture: Image.Image, rng: Rng) -> Lesson:
    """The whole picture at sensing size: the form of a sensing answer with mediocre regions, and pointing."""
    view = whole_view(scene, picture)
    clusters = clusters_of(scene.things)
    turns = []
    for _ in range(4):
        # Anything may be asked for; neither thought nor regions depend on it.
        query = " ".join(any_kind(rng)) if rng.random() < 0.75 else _nonsense(rng)
        count = rng.choice([1, 2, 3], p=[0.3, 0.4, 0.3])
        chosen = sorted(rng.permutation(len(clusters))[:count])
        turns.append(_regions_turn(prompts.sensing_prompt(query, "short"), [clusters[i] for i in chosen], view, rng))
    for _ in range(2):
        colour = clusters[rng.integers(len(clusters))][0].colour
        chosen = [cluster for cluster in clusters if cluster[0].colour == colour][:3]
        turns.append(_regions_turn(prompts.pointing_prompt(colour), chosen, view, rng))
    return view.lesson(turns)


def _regions_turn(question: str, clusters: Sequence[Sequence[Thing]], view: View, rng: Rng) -> Turn:
    """An answer with a thought that names each cluster's colour, and a mediocre region around each: jittered, and
    every twentieth anywhere."""
    size, regions, labels = view.scene.size, [], []
    for word, cluster in enumerate(clusters):
        sides = rng.uniform(0.32, 0.5, 2) * min(size)
        centre, there = np.mean([thing.centre for thing in cluster], axis=0), bool(rng.random() >= 0.05)
        centre = centre + rng.uniform(-0.1, 0.1, 2) * sides if there else rng.uniform((0, 0), size)
        regions.append(view.text_box(window_around(centre, sides, view.window)))
        things = tuple(row for row, thing in enumerate(view.things) if thing.group == cluster[0].group and there)
        labels.append(BoxLabel(things, view.rows(cluster[0].colour), word))
    thought = " " + ", ".join(cluster[0].colour for cluster in clusters)
    return Turn(question, prompts.sensing_answer(regions, thought), tuple(labels))


# ---------------------------------------------------------------------- reading


def reading_lesson(scene: Scene, picture: Image.Image, rng: Rng) -> Lesson:
    """A close-up of the plate: for an episode the number that it shows, for ocr the form of a transcript."""
    view = View(scene, picture, data_scenes.plate_window(scene, rng), CROP_VIEW)
    answer = view.number(data_scenes.QUESTION, prompts.final_answer(scene.number))
    return view.lesson([answer, *(_transcript(view, rng) for _ in range(2))])


def _transcript(view: View, rng: Rng) -> Turn:
    number, extra = view.scene.number, any_number(rng)
    forms = (number[0], number, number + extra[0], number + extra)
    return view.number(READ, forms[rng.choice(4, p=[0.5, 0.25, 0.15, 0.1])])


def sheet_lesson(scene: Scene, picture: Image.Image, rng: Rng) -> Lesson:
    """Many plates at the sizes that they have in a crop, for the dense head alone: nothing is asked."""
    side = rng.uniform(240, 420)
    window = window_around(rng.uniform(0, 640, 2), (side, side), all_of(picture))
    return View(scene, picture, window, (int(rng.integers(12, 17)) * PATCH * MERGE,) * 2).lesson(())


# ---------------------------------------------------------------------- episodes


@dataclass(frozen=True)
class Aim:
    """Something to zoom to: its centre in pixels, its name, and its rows of a view's boxes."""

    centre: tuple[float, float]
    name: str
    rows: tuple[int, ...]


def _aims(view: View) -> list[Aim]:
    """What can be zoomed to in a view: every cluster, and the plate (last)."""
    aims = []
    for cluster in clusters_of(view.things):
        centre = np.mean([thing.centre for thing in cluster], axis=0)
        rows = tuple(row for row, thing in enumerate(view.things) if thing.group == cluster[0].group)
        aims.append(Aim(tuple(centre), cluster[0].colour, rows))
    if view.plate is not None:
        box = view.frame.to_px(view.plate[0][:1])[0]
        aims.append(Aim(tuple((box[:2] + box[2:]) / 2), "plate", (len(view.things),)))
    return aims


def _zoom_turn(
    view: View, aims: Sequence[Aim], question: str, rng: Rng, wording: str, listed: bool = False
) -> tuple[Turn, list[Window]]:
    """A turn that zooms to these aims, mediocrely, and the windows that it asks for. The thought names them."""
    shorter = min(view.window[2] - view.window[0], view.window[3] - view.window[1])
    boxes, windows, labels = [], [], []
    for word, aim in enumerate(aims):
        sides = rng.uniform(0.14, 0.26) * rng.uniform(0.88, 1.12, 2) * shorter  # nearly square, as a policy's regions
        centre = np.array(aim.centre) + rng.uniform(-0.2, 0.2, 2) * sides
        boxes.append(view.text_box(window_around(centre, sides, view.window)))
        windows.append(tuple(view.frame.to_px(geometry.as_boxes([boxes[-1]]))[0].tolist()))
        labels.append(BoxLabel(aim.rows, view.rows(aim.name) or aim.rows, word))
    thought = " " + ", ".join(aim.name for aim in aims)
    return Turn(question, prompts.zooms_turn(thought, boxes, wording, listed=listed), tuple(labels)), windows


def _choose(aims: Sequence[Aim], most: int, rng: Rng) -> list[Aim]:
    """One to ``most`` aims at random, in their order."""
    count = int(rng.integers(1, most + 1))
    return [aims[i] for i in sorted(rng.permutation(len(aims))[:count])]


def first_turn_lesson(scene: Scene, picture: Image.Image, rng: Rng, wording: str = "short") -> Lesson:
    """The whole picture at sensing size: zooms to anything, one at a time or several at once, and guesses."""
    view = whole_view(scene, picture)
    aims, turns = _aims(view), []
    for at_once in (1, 1, 1, 3, 3):
        question = prompts.episode_prompt(data_scenes.QUESTION, wording, 3, at_once=at_once)
        if rng.random() < 0.15:
            turns.append(Turn(question, prompts.final_answer(any_number(rng))))
        else:
            turns.append(_zoom_turn(view, _choose(aims, at_once, rng), question, rng, wording, at_once > 1)[0])
    return view.lesson(turns)


def next_turn_lesson(scene: Scene, picture: Image.Image, rng: Rng, wording: str = "short") -> Lesson:
    """After one zoom or two: the number if a view showed its plate, else a guess or a zoom to something."""
    at_once = 3 if rng.random() < 0.3 else 1
    view = whole_view(scene, picture)
    text, past, beside = prompts.episode_prompt(data_scenes.QUESTION, wording, 3, at_once=at_once), (), ()
    deep, readable = at_once == 1 and rng.random() < 0.3, []
    for _ in range(1 + deep):
        turn, windows = _zoom_turn(view, _next_aims(view, at_once, rng), text, rng, wording, at_once > 1)
        shown = [View(scene, picture, window, CROP_VIEW) for window in windows]
        past += (PastTurn((*beside, view.image), text, turn.answer),)
        readable += [closer.plate[1] for closer in shown if closer.plate is not None]
        beside, view = tuple(closer.image for closer in shown[:-1]), shown[-1]
        text = prompts.shown("zooms_executed" if len(shown) > 1 else "zoom_executed", wording)
        if not view.things and view.plate is None:
            break
    aims = _aims(view)
    if readable:
        turn = view.number(text, prompts.final_answer(readable[-1]))
    elif aims and at_once == 1 and len(past) == 1 and rng.random() < 0.5:
        turn, _ = _zoom_turn(view, _choose(aims, 1, rng), text, rng, wording)
    else:
        turn = Turn(text, prompts.final_answer(any_number(rng)))
    return view.lesson([turn], past, beside)


def _next_aims(view: View, at_once: int, rng: Rng) -> list[Aim]:
    """One aim, or up to ``at_once``; in three of five turns that could, the plate is among them."""
    aims = _aims(view)
    to_plate = aims[-1].name == "plate" and rng.random() < 0.6
    chosen = aims[-1:] if to_plate and at_once == 1 else _choose(aims, at_once, rng)
    if to_plate and chosen[-1] is not aims[-1]:
        chosen = [*chosen[: at_once - 1], aims[-1]]
    return chosen


# ---------------------------------------------------------------------- single-turn tasks


def close_up_lesson(scene: Scene, picture: Image.Image, rng: Rng) -> Lesson:
    """A close-up of some things, and the form of an answer to each task that is about things."""
    view = View(scene, picture, data_scenes.things_window(scene, scene.things, rng), CROP_VIEW)
    writers = (_grounding, _grounding, _counting, _counting, *[_detection] * 4)  # naming is the hardest to learn
    return view.lesson([write(view, rng) for write in writers])


def _asked_kind(view: View, rng: Rng) -> tuple[str, tuple[int, ...]]:
    """A kind that is there in colour at least, and the rows of all things of the colour."""
    thing = view.things[rng.integers(len(view.things))]
    shape = thing.shape if rng.random() < 0.7 else any_kind(rng)[1]
    return f"{thing.colour} {shape}", view.rows(thing.colour)


def _from_left(view: View, rows: Sequence[int]) -> list[int]:
    """Rows from left to right: with an order, the policy lists nothing twice."""
    return sorted(rows, key=lambda row: view.boxes[row][0])


def _grounding(view: View, rng: Rng) -> Turn:
    kind, alike = _asked_kind(view, rng)
    row = alike[rng.integers(len(alike))]
    question = perception_prompt("grounding", kind, "short")
    return Turn(question, prompts.boxes_answer(view.text_boxes([row])), (BoxLabel((row,), alike),))


def _counting(view: View, rng: Rng) -> Turn:
    kind, alike = _asked_kind(view, rng)
    rows = _from_left(view, [row for row in alike if rng.random() < 0.75][:5] or [alike[0]])
    answer = f"{prompts.boxes_answer(view.text_boxes(rows))} {len(rows)}"
    return Turn(perception_prompt("counting", kind, "short"), answer, tuple(BoxLabel((row,), alike) for row in rows))


def _detection(view: View, rng: Rng) -> Turn:
    rows = _from_left(view, range(len(view.things)))[: min(int(rng.geometric(0.5)), 7)]
    question = perception_prompt("detection", data_scenes.KINDS, "short")
    answer = labelled_answer(view.text_boxes(rows), [view.things[row].name for row in rows])
    return Turn(question, answer, tuple(BoxLabel((row,), (row,), named=False) for row in rows))
