"""The second tiny policy that ships with the project: the first one, taught the forms of all other tasks.

    python -m activeo3.forms                # from data/tiny into data/tiny-tasks; goes on where it was interrupted

It knows how an episode of zooms and an answer to each one-shot task look, and how to read a plate that is in
view (drills.py). Where to look, and what to choose for a question, is left to reinforcement:
``deepspeed train.py --preset zoom_qa``. It is a policy of its own because five million parameters hold only so
much: data/tiny stays as good at its two roles as it was.
"""

import argparse
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from activeo3 import (
    data_scene_crops,
    data_scenes,
    geometry,
    matching,
    processes,
    prompts,
    task_perception_words,
    terminal,
)
from activeo3.drills import Drill, drills_of, plate_sheet, reading_drill
from activeo3.geometry import Frame
from activeo3.lessons import CROP_VIEW, MERGE, Lesson, Pool, all_of, cell_of, crop_lesson, practice_sheet
from activeo3.model import ModelError, VisionLanguageModel, keep_freed_memory, mark_as_ours
from activeo3.packing import Prompt
from activeo3.types import Sampling
from activeo3.warmstart import Sight, picture_prefix, speak_loss, train, training_pictures


@dataclass(frozen=True)
class Forms:
    """What decides the result; an interrupted run goes on only under the same numbers."""

    seed: int = 0
    see_steps: int = 500
    speak_steps: int = 800
    crops: int = 2  # lessons of the task role, which keep the eye for things
    dense: int = 6  # sheets with many plates; a third of them when speaking
    reading: int = 6
    turns: int = 6
    close: int = 8
    see_lr: float = 1.0e-3
    speak_lr: float = 7e-4
    bf16: bool = True
    wording: str = "short"  # of episodes: zoom_roi teaches that form of a call

    @property
    def steps(self) -> int:
        """Steps of both stages together: first to see plates, then to speak."""
        return self.see_steps + self.speak_steps

    def lr(self, step: int) -> float:
        """A linear warm-up over 50 steps, then a line down to where speaking begins; from there a cosine to 2 %."""
        if step < self.see_steps:
            seen = step / self.see_steps
            return min(1.0, (step + 1) / 50) * (self.see_lr + (self.speak_lr - self.see_lr) * seen)
        spoken = (step - self.see_steps) / self.speak_steps
        return self.speak_lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * spoken)))


class PlateSight(nn.Module):
    """Linear readings of a visual token: does it hold a plate's centre, and which first or second figure?

    As in ``Sight``, logits of figures are dot products with word embeddings; dropped after the warm start.
    """

    def __init__(self, vlm: VisionLanguageModel) -> None:
        super().__init__()
        hidden = vlm.model.config.text_config.hidden_size
        self.there = nn.Linear(hidden, 1)
        self.first, self.second = (nn.Linear(hidden, hidden, bias=False) for _ in range(2))
        self.figures = [vlm.tokenizer(str(figure), add_special_tokens=False).input_ids[0] for figure in range(10)]

    def loss(
        self, features: Tensor, drills: Sequence[Drill], grids: Tensor, words: Tensor, legible: bool
    ) -> tuple[Tensor, dict[str, float]]:
        """Dense supervision of the visual tokens (N_tokens, hidden) of the drills' views, one after the other;
        figures only where the view is large enough to be ``legible``."""
        logit, present = self.there(features)[:, 0], torch.zeros(len(features), device=features.device)
        centres, cells, numbers, start = [], [], [], 0
        for drill, (_, patch_rows, patch_columns) in zip(drills, grids.tolist(), strict=True):
            rows, columns = patch_rows // MERGE, patch_columns // MERGE
            for boxes, number in drill.plates:
                centre, *figures = (start + cell_of(box, rows, columns) for box in boxes)
                centres.append(centre)
                cells.append(figures)
                numbers.append([int(figure) for figure in number])
            start += rows * columns
        present[torch.tensor(centres, dtype=torch.long)] = 1.0
        weight = 1.0 + 20.0 * present  # a plate is one token of hundreds
        objectness = F.binary_cross_entropy_with_logits(logit, present, weight=weight)
        if not (cells and legible):
            return objectness, {"plate": float(objectness.detach())}
        first, second = (
            head(features[[pair[i] for pair in cells]]) for i, head in enumerate((self.first, self.second))
        )
        digits = (
            torch.stack([first, second], dim=1) @ (4 * F.normalize(words, dim=-1))[self.figures].T
        )  # (plates, 2, 10)
        truth = torch.tensor(numbers, device=features.device)
        read = (digits.argmax(-1) == truth).float().mean()
        return objectness + 2 * F.cross_entropy(digits.flatten(0, 1), truth.flatten()), {
            "plate": float(objectness.detach()), "figures": float(read),
        }  # fmt: skip


def prefixes_of(vlm: VisionLanguageModel, lessons: Sequence[Lesson]) -> list[Prompt]:
    """All that comes before the words beside each lesson's view: turns that lie behind, and the view itself."""
    tokenize = lambda text: vlm.tokenizer(text, add_special_tokens=False).input_ids  # noqa: E731
    done = []
    for lesson in lessons:
        past, beside = (lesson.past, lesson.beside) if isinstance(lesson, Drill) else ((), ())
        shown = [*((turn.views, turn.words) for turn in past), ((*beside, lesson.view), "")]
        parts = [vlm.encode([shown[0][0]], [shown[0][1]])[0]]
        parts += vlm.encode_next([views for views, _ in shown[1:]], [words for _, words in shown[1:]]) if past else []
        ids = parts[0].ids.tolist()
        for turn, part in zip(past, parts[1:]):
            ids += tokenize(f"{turn.said}<|im_end|>") + part.ids.tolist()
        pixels, grids = torch.cat([part.pixels for part in parts]), torch.cat([part.grids for part in parts])
        done.append(picture_prefix(vlm, Prompt(torch.tensor(ids), pixels, grids)))
    return done


WEIGHTS: dict[str, tuple[float, float]] = {
    "task": (0.3, 2.0), "sheet": (0.3, 0.0), "read": (0.3, 2.0), "first": (0.1, 1.0), "next": (0.0, 2.0),
    "close": (0.3, 2.0),
}  # fmt: skip
"""The kinds of lesson of a step, in order: how much it counts to see the things, and to speak."""


def step_loss(
    vlm: VisionLanguageModel, sight: Sight, plates: PlateSight, config: Forms, batches: Sequence[Sequence[Lesson]]
) -> tuple[Tensor, dict[str, float]]:
    """Loss and readings of one step over lessons of all kinds of WEIGHTS.

    Lessons without a question are for the eye alone; an empty list is left out.
    """
    device = vlm.model.device
    total, readings = torch.zeros((), device=device), {}
    words = vlm.model.get_input_embeddings().weight
    for (name, (see, speak)), batch in zip(WEIGHTS.items(), batches, strict=True):
        if not batch:
            continue
        prefixes = prefixes_of(vlm, batch)
        pixels, grids = torch.cat([p.pixels for p in prefixes]), torch.cat([p.grids for p in prefixes])
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.bf16):
            seen = vlm.model.model.get_image_features(pixels.to(device), grids.to(device), return_dict=True)
            if see:
                features = torch.cat(list(seen.pooler_output)).float()
                loss, seeing = sight.loss(features, batch, grids, words)
                total = total + see * loss
                if name != "task":
                    loss, reading = plates.loss(
                        features, batch, grids, words, legible=name in ("sheet", "read", "next")
                    )
                    total, seeing = total + loss, seeing | reading
                readings |= {
                    f"{name}/{key}": seeing[key] for key in ("shape", "hundreds", "plate", "figures") if key in seeing
                }
            if all(lesson.dialogue for lesson in batch):
                spoken, gaze = speak_loss(vlm, batch, prefixes, seen)
                total = total + speak * spoken + gaze
                readings |= {f"{name}/loss": float(spoken.detach()), f"{name}/gaze": float(gaze.detach())}
    return total, readings


def teach(vlm: VisionLanguageModel, config: Forms, folder: Path) -> None:
    """Teach the forms, or go on from ``folder/state.pt``. Raises ValueError as ``train`` does."""
    sight, plates = Sight(vlm).to(vlm.model.device), PlateSight(vlm).to(vlm.model.device)
    things = Pool(lambda index: practice_sheet(config.seed, index))
    sheets = Pool(lambda index: plate_sheet(config.seed, index))
    pictures = training_pictures(config.seed)

    def loss_of(step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        pairs = things.draw(step, config.crops // 2, rng) + pictures.draw(step, config.crops - config.crops // 2, rng)
        crops = [crop_lesson(*pair, rng, 5) for pair in pairs]
        if step < config.see_steps:
            drills = drills_of(sheets, pictures, step, rng, config.dense, config.reading, 0, config.close)
            silent = [[replace(lesson, dialogue=()) for lesson in batch] for batch in [crops, *drills]]
            return step_loss(vlm, sight, plates, config, silent)
        drills = drills_of(
            sheets, pictures, step, rng, config.dense // 3, config.reading, config.turns, config.close, config.wording
        )
        return step_loss(vlm, sight, plates, config, [crops, *drills])

    train(vlm, {"sight": sight, "plates": plates}, config, folder, loss_of)


def reading_scores(vlm: VisionLanguageModel, pictures: int, seed: int = 1) -> float:
    """The share of plates in unseen validation crops whose number is read right."""
    rng = np.random.default_rng(seed)
    drills = []
    for index in range(pictures):
        scene = data_scenes.scene("val", index)
        drills.append(reading_drill(scene, scene.render(), rng))
    asked = vlm.encode([drill.view for drill in drills], [data_scenes.QUESTION] * len(drills))
    answers = vlm.generate(asked, 1, Sampling(temperature=0, max_new_tokens=24))
    said = [vlm.decode(ids) for (ids,) in answers]
    return float(
        np.mean([text == prompts.final_answer(drill.plate[1]) for text, drill in zip(said, drills) if drill.plate])
    )


def naming_scores(vlm: VisionLanguageModel, pictures: int) -> float:
    """The share of right names among the things that greedy answers find in unseen validation close-ups."""
    examples = [data_scene_crops.close_up("val", index) for index in range(pictures)]
    views = [geometry.crop(example.image, all_of(example.image), CROP_VIEW) for example in examples]
    asked = vlm.encode(
        views, [task_perception_words.perception_prompt("detection", data_scenes.KINDS, "short")] * pictures
    )
    answers = vlm.generate(asked, 1, Sampling(temperature=0, max_new_tokens=240))
    right = []
    for example, (ids,) in zip(examples, answers):
        answer, things = (
            task_perception_words.read_answer("detection", vlm.decode(ids), vlm.is_finished(ids)),
            example.objects,
        )
        boxes_px = Frame(all_of(example.image), (1000, 1000)).to_px(geometry.as_boxes(answer.boxes_text))
        terms = matching.detection_terms(
            boxes_px, answer.labels, things.boxes_px, things.labels, reward="paper"
        )  # of the pairs
        right.append(terms["class"])
    return float(np.mean(right))


def main() -> None:
    """Make the policy, measure how it reads and names, and write the folder that the presets of its tasks start from."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", default="data/tiny", help="the policy to begin with [data/tiny]")
    parser.add_argument(
        "--out", type=Path, default=Path("data/tiny-tasks"), help="the finished policy [data/tiny-tasks]"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("runs/forms"), help="where an unfinished one waits [runs/forms]"
    )
    parser.add_argument("--pictures", type=int, default=100, help="validation pictures to measure on [100]")
    for name in ("seed", "see_steps", "speak_steps"):
        parser.add_argument(
            f"--{name}", type=int, default=getattr(Forms, name), help=f"see forms.Forms [{getattr(Forms, name)}]"
        )
    parser.add_argument(
        "--wording", default=Forms.wording, choices=prompts.EPISODE_WORDINGS, help="of episodes [short]"
    )
    options = parser.parse_args()
    keep_freed_memory()
    try:
        vlm = VisionLanguageModel.load(options.start, torch.float32)
        if torch.cuda.is_available():
            vlm.model.to("cuda")
        teach(vlm, Forms(options.seed, options.see_steps, options.speak_steps, wording=options.wording), options.work)
    except (ModelError, ValueError) as error:
        sys.exit(f"activeo3: {error}")
    vlm.model.to("cpu", torch.bfloat16)  # half the size on disk; train.py computes in float32 again
    options.out.mkdir(parents=True, exist_ok=True)
    vlm.save(options.out)
    mark_as_ours(options.out)
    saved = VisionLanguageModel.load(str(options.out), torch.float32)
    read, named = reading_scores(saved, options.pictures), naming_scores(saved, options.pictures)
    print(f"{options.out}: in unseen crops, numbers read {read:.3f}, things named {named:.3f}")


if __name__ == "__main__":
    terminal.protect()
    processes.watch()
    processes.tell(
        kept=lambda: "its last saved step waits in the folder of --work, and the same command goes on from it"
    )
    with processes.one_sentence():
        main()
