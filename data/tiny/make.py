"""Make the policies that ship with the project; the same command goes on where it was interrupted.

    python data/tiny/make.py roles                # data/tiny, from nothing: the sensing role and the task role
    python data/tiny/make.py tasks                # data/tiny-tasks, from data/tiny: the forms of the other tasks

A policy learns the form of its answers, and to see. Which regions are good for a query, where to zoom and what to
choose is left to reinforcement (lessons.py). The second policy is one of its own because five million parameters hold
only so much: data/tiny stays as good at its two roles as it was.
"""

import argparse
import math
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from lessons import (
    close_up_lesson,
    crop_lesson,
    first_turn_lesson,
    next_turn_lesson,
    reading_lesson,
    sheet_lesson,
    view_lesson,
)
from tiny_model import build
from training import Batch, Recipe, train
from views import CROP_VIEW, Rng, all_of, plate_sheet, practice_sheet, sample_pictures, training_scene

from activeo3 import data_scenes, geometry, matching, processes, prompts, terminal
from activeo3.answer_parsing import read_boxes
from activeo3.model import ModelError, VisionLanguageModel, keep_freed_memory, mark_as_ours
from activeo3.task_perception import perception_prompt, read_answer
from activeo3.types import Sampling

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Roles(Recipe):
    """data/tiny. Stages: see; speak, with a little of seeing; and settle, with more whole pictures than crops and
    without seeing: the form of the sensing role is easy, and learned late it does not crowd out the task role."""

    plates: ClassVar[bool] = False
    seed: int = 0
    see_steps: int = 1200
    speak_steps: int = 2000
    settle_steps: int = 1000
    crops: int = 16
    views: int = 4
    questions: int = 5
    see_lr: float = 1.5e-3
    speak_lr: float = 1.0e-3
    settle_lr: float = 5e-4
    bf16: bool = True

    @property
    def steps(self) -> int:
        """Steps of all stages together."""
        return self.see_steps + self.speak_steps + self.settle_steps

    def stage(self, step: int) -> tuple[str, float]:
        """(stage, how much of it is done, 0-1) at a step."""
        for name, length in (("see", self.see_steps), ("speak", self.speak_steps), ("settle", self.settle_steps)):
            if step < length:
                return name, step / length
            step -= length
        raise IndexError(f"there are {self.steps} steps only")

    def lr(self, step: int) -> float:
        """In each stage a linear warm-up over 100 steps at most, then a cosine: to 30 % of the peak when seeing
        is done, to 10 % when speaking is and to 2 % when all is."""
        stage, done = self.stage(step)
        peak, length, floor = {
            "see": (self.see_lr, self.see_steps, 0.3),
            "speak": (self.speak_lr, self.speak_steps, 0.1),
            "settle": (self.settle_lr, self.settle_steps, 0.02),
        }[stage]
        ramp = min(1.0, (done * length + 1) / min(100, length / 10))
        return peak * ramp * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))

    def batches(self, step: int, rng: Rng) -> list[Batch]:
        """Crops, the harder of the two, and whole views."""
        stage, _ = self.stage(step)
        crops, views = (self.crops * 3 // 8, self.views * 3) if stage == "settle" else (self.crops, self.views)
        sheets = round(crops * (0.75 if stage == "see" else 0.4))
        pairs = sample_pictures(practice_sheet, self.seed, step, sheets, rng)
        pairs += sample_pictures(training_scene, self.seed, step, crops - sheets, rng)
        of_crops = [crop_lesson(*pair, rng, self.questions) for pair in pairs]
        pairs = sample_pictures(training_scene, self.seed, step, views, rng)
        of_views = [view_lesson(*pair, rng) for pair in pairs]
        see = {"see": 1.0, "speak": 0.3, "settle": 0.0}[stage]
        crop_speak, view_speak = {"see": (0.0, 0.0), "speak": (4.0, 1.0), "settle": (4.0, 4.0)}[stage]
        return [Batch("crop", of_crops, see, crop_speak), Batch("view", of_views, 0.3 * see, view_speak)]


@dataclass(frozen=True)
class Tasks(Recipe):
    """data/tiny-tasks. Stages: see, things and plates; and speak."""

    plates: ClassVar[bool] = True
    seed: int = 0
    see_steps: int = 500
    speak_steps: int = 800
    crops: int = 2  # lessons of the task role, which keep the sight of things
    sheets: int = 6  # views with many plates; a third of them when speaking
    reading: int = 6
    turns: int = 6
    close: int = 8
    see_lr: float = 1.0e-3
    speak_lr: float = 7e-4
    bf16: bool = True
    wording: str = "short"  # of episodes: zoom_roi teaches that form of a call

    @property
    def steps(self) -> int:
        """Steps of both stages together."""
        return self.see_steps + self.speak_steps

    def lr(self, step: int) -> float:
        """A linear warm-up over 50 steps, then a line down to where speaking begins; from there a cosine to 2 %."""
        if step < self.see_steps:
            done = step / self.see_steps
            return min(1.0, (step + 1) / 50) * (self.see_lr + (self.speak_lr - self.see_lr) * done)
        done = (step - self.see_steps) / self.speak_steps
        return self.speak_lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))

    def batches(self, step: int, rng: Rng) -> list[Batch]:
        """Lessons of the task role, of reading, of episodes and of things in a close-up."""
        speak = step >= self.see_steps
        sheets, turns = (self.sheets // 3, self.turns) if speak else (self.sheets, 0)
        sample = lambda make, count: sample_pictures(make, self.seed, step, count, rng)  # noqa: E731
        pairs = sample(practice_sheet, self.crops // 2) + sample(training_scene, self.crops - self.crops // 2)
        lessons = [
            [crop_lesson(*pair, rng, 5) for pair in pairs],
            [sheet_lesson(*pair, rng) for pair in sample(plate_sheet, sheets)],
            [reading_lesson(*pair, rng) for pair in sample(training_scene, self.reading)],
            [first_turn_lesson(*pair, rng, self.wording) for pair in sample(training_scene, turns // 2)],
            [next_turn_lesson(*pair, rng, self.wording) for pair in sample(training_scene, turns)],
            [close_up_lesson(*pair, rng) for pair in sample(training_scene, self.close)],
        ]
        weights = [  # name, see, speak, plates, digits
            ("task", 0.3, 2.0, False, False),
            ("sheet", 0.3, 0.0, True, True),
            ("read", 0.3, 2.0, True, True),
            ("first", 0.1, 1.0, True, False),
            ("next", 0.0, 2.0, False, False),
            ("close", 0.3, 2.0, True, False),
        ]
        return [
            Batch(name, batch, see, spoken if speak else 0.0, plates, digits)
            for (name, see, spoken, plates, digits), batch in zip(weights, lessons)
        ]


RECIPES: dict[str, type[Recipe]] = {"roles": Roles, "tasks": Tasks}


# ---------------------------------------------------------------------- what it has learned


def task_scores(vlm: VisionLanguageModel, pictures: int, seed: int = 1) -> dict[str, float]:
    """Precision and recall at IoU 0.5 of the task role, asked for present kinds in unseen validation crops, and the
    share of questions about absent kinds that are answered with a box."""
    rng = np.random.default_rng(seed)
    lessons = []
    for index in range(pictures):
        scene = data_scenes.scene("val", index)
        picture = scene.render()
        lessons += [crop_lesson(scene, picture, rng, 3) for _ in range(2)]
    asked = [(lesson.view, turn) for lesson in lessons for turn in lesson.turns]
    found = matched = true = false_alarms = absent = 0
    for start in range(0, len(asked), 96):
        views, turns = zip(*asked[start : start + 96])
        texts = _greedy(vlm, views, [turn.question for turn in turns], 160)
        for text, turn in zip(texts, turns):
            boxes, truth = (geometry.as_boxes(read_boxes(part).boxes_text) for part in (text, turn.answer))
            hits = geometry.iou(boxes, truth) >= 0.5
            found, true = found + len(boxes), true + len(truth)
            matched += int(min(hits.any(0).sum(), hits.any(1).sum())) if hits.size else 0
            absent += len(truth) == 0
            false_alarms += len(truth) == 0 and len(boxes) > 0
    parts = {"precision": (matched, found), "recall": (matched, true), "false alarms": (false_alarms, absent)}
    return {name: part / max(1, whole) for name, (part, whole) in parts.items()}


def reading_score(vlm: VisionLanguageModel, pictures: int, seed: int = 1) -> float:
    """The share of plates in unseen validation crops whose number is read right."""
    rng = np.random.default_rng(seed)
    scenes = [data_scenes.scene("val", index) for index in range(pictures)]
    lessons = [reading_lesson(scene, scene.render(), rng) for scene in scenes]
    texts = _greedy(vlm, [lesson.view for lesson in lessons], [data_scenes.QUESTION] * pictures, 24)
    pairs = [(text, lesson.plate[1]) for text, lesson in zip(texts, lessons) if lesson.plate]
    return float(np.mean([text == prompts.final_answer(number) for text, number in pairs]))


def naming_score(vlm: VisionLanguageModel, pictures: int) -> float:
    """The share of right names among the things that greedy answers find in unseen validation close-ups."""
    examples = [data_scenes.close_up("val", index) for index in range(pictures)]
    views = [geometry.crop(example.image, all_of(example.image), CROP_VIEW) for example in examples]
    asked = vlm.encode(views, [perception_prompt("detection", data_scenes.KINDS, "short")] * pictures)
    answers = vlm.generate(asked, 1, Sampling(temperature=0, max_new_tokens=240))
    right = []
    for example, (ids,) in zip(examples, answers):
        answer = read_answer("detection", vlm.decode(ids), vlm.is_finished(ids))
        frame = geometry.Frame(all_of(example.image), (1000, 1000))
        boxes_px, things = frame.to_px(geometry.as_boxes(answer.boxes_text)), example.objects
        terms = matching.detection_terms(
            boxes_px, answer.labels, matching.Truth(things.boxes_px, things.labels), reward="paper"
        )
        right.append(terms["class"])  # of the matched pairs
    return float(np.mean(right))


def _greedy(vlm: VisionLanguageModel, views: list, questions: list[str], tokens: int) -> list[str]:
    answers = vlm.generate(vlm.encode(views, questions), 1, Sampling(temperature=0, max_new_tokens=tokens))
    return [vlm.decode(ids) for (ids,) in answers]


# ---------------------------------------------------------------------- the command


def report(name: str, vlm: VisionLanguageModel, pictures: int) -> str:
    """What a finished policy can do, in words."""
    if name == "roles":
        return ", ".join(f"{key} {value:.3f}" for key, value in task_scores(vlm, pictures).items())
    return f"numbers read {reading_score(vlm, pictures):.3f}, things named {naming_score(vlm, pictures):.3f}"


def options_of(name: str, recipe: type[Recipe]) -> argparse.ArgumentParser:
    """The command line of one policy: the recipe's own numbers, and where things lie."""
    parser = argparse.ArgumentParser(add_help=False)
    out = HERE if name == "roles" else HERE.parent / "tiny-tasks"
    parser.add_argument("--out", type=Path, default=out, help="the finished policy [%(default)s]")
    work = Path("runs") / f"make-{name}"
    parser.add_argument("--work", type=Path, default=work, help="where an unfinished one waits [%(default)s]")
    start = "" if name == "roles" else str(HERE)
    parser.add_argument("--start", default=start, help="the policy to begin with; none: from nothing [%(default)s]")
    parser.add_argument("--pictures", type=int, default=100, help="validation pictures to measure on [%(default)s]")
    parser.add_argument("--measure", type=Path, help="measure the policy in this folder instead of making one")
    for field in fields(recipe):
        choices = prompts.EPISODE_WORDINGS if field.name == "wording" else None
        if field.type in (int, str):
            parser.add_argument(
                f"--{field.name}", type=field.type, default=field.default, choices=choices, help="[%(default)s]"
            )
    return parser


def main() -> None:
    """Make a policy in a folder that train.py can start from, or take one, and measure it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    policies = parser.add_subparsers(dest="policy", required=True)
    for name, kind in RECIPES.items():
        policies.add_parser(name, parents=[options_of(name, kind)], help=f"{kind.__doc__.split('.')[0]}")
    options = parser.parse_args()
    try:
        folder = options.measure or make(options)
        vlm = VisionLanguageModel.load(str(folder), torch.float32)
    except (ModelError, ValueError) as error:
        sys.exit(f"activeo3: {error}")
    print(f"{folder}: in unseen crops, {report(options.policy, vlm, options.pictures)}")


def make(options: argparse.Namespace) -> Path:
    """The folder of a policy that is made with these options."""
    recipe_class = RECIPES[options.policy]
    recipe = recipe_class(
        **{field.name: getattr(options, field.name) for field in fields(recipe_class) if field.name in options}
    )
    keep_freed_memory()
    vlm = VisionLanguageModel.load(options.start, torch.float32) if options.start else build(recipe.seed)
    train(vlm, recipe, options.work)
    vlm.model.to("cpu", torch.bfloat16)  # half the size on disk; train.py computes in float32 again
    options.out.mkdir(parents=True, exist_ok=True)
    vlm.save(options.out)
    mark_as_ours(options.out)
    return options.out


if __name__ == "__main__":
    terminal.protect()
    processes.watch()
    processes.tell(
        kept=lambda: "its last saved step waits in the folder of --work, and the same command goes on from it"
    )
    with processes.one_sentence():
        main()
