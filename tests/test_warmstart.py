"""What the tiny policy is taught from, and how: lessons say the truth about crops, and nothing about where to look."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from activeo3 import data_scenes, geometry, lessons, prompts, tiny, warmstart
from activeo3.answer_parsing import read_regions
from activeo3.lessons import Lesson
from activeo3.model import VisionLanguageModel
from activeo3.warmstart import WarmStart

SMALL = WarmStart(see_steps=1, speak_steps=1, settle_steps=2, crops=3, views=1, questions=2, bf16=False)


@pytest.fixture(scope="module")
def policy() -> VisionLanguageModel:
    """The untrained tiny policy, with the attention that the warm start uses."""
    vlm = tiny.build(0)
    vlm.model.set_attn_implementation({"text_config": "eager"})
    return vlm


@cache
def many(kind: str, count: int = 40, painted: bool = False) -> list[tuple[data_scenes.Scene, Lesson]]:
    """Lessons of one kind about the world's first training pictures, which few tests need to see."""
    rng, found = np.random.default_rng(3), []
    for index in range(count):
        scene = data_scenes.scene("train", index)
        make = lessons.view_lesson if kind == "view" else lambda *args: lessons.crop_lesson(*args, 4)
        found.append((scene, make(scene, scene.render() if painted else Image.new("RGB", scene.size), rng)))
    return found


def test_the_answers_about_crops_are_the_truth() -> None:
    """Every box of an answer is that of a thing of the kind that is asked for, and none of them is left out."""
    nothing = 0
    for _, lesson in many("crop"):
        for turn in lesson.dialogue:
            kind = tuple(turn.question.removeprefix("Find every ").removesuffix(".").split())
            rows = [row for row, other in enumerate(lesson.kinds) if other == kind]
            assert [written.things for written in turn.about] == [(row,) for row in rows]
            assert turn.answer == prompts.boxes_answer([lessons.rounded(lesson.boxes[row]) for row in rows])
            nothing += not rows
    assert nothing > 20  # a policy that has never seen an empty answer always finds something


def test_an_answer_about_a_whole_picture_says_what_its_regions_hold() -> None:
    """The k-th colour of the thought is that of the cluster in the k-th region; one in twenty is not there."""
    held = regions = 0
    for _, lesson in many("view"):
        for turn in lesson.dialogue:
            action = read_regions(turn.answer)
            assert action.error is None and 1 <= len(action.boxes_text) <= 3
            named = colours_of(turn)
            assert len(named) == len(action.boxes_text) == len(turn.about)
            for said, (colour, box, written) in enumerate(zip(named, action.boxes_text, turn.about)):
                assert written.said == said and {lesson.kinds[row][0] for row in written.kin} == {colour}
                assert set(written.things) <= set(written.kin)
                inside = geometry.containment(lesson.boxes[list(written.things)], geometry.as_boxes([box]))
                held, regions = held + bool(len(inside) and inside.mean() > 0.5), regions + 1
    assert 0.9 < held / regions < 0.99


def test_pointing_names_every_cluster_of_the_colour_and_no_other() -> None:
    several = 0
    for scene, lesson in many("view"):
        for turn in lesson.dialogue:
            if turn.question.startswith("Look at "):
                colour = turn.question.removeprefix("Look at ").removesuffix(".")
                there = {thing.group for thing in scene.things if thing.colour == colour}
                assert colours_of(turn) == [colour] * min(3, len(there)) != []
                several += len(there) > 1
    assert several > 10


def test_no_sensing_answer_listens_to_its_query() -> None:
    """The colour that is asked for is named as often as a colour that is asked for about another picture: GRPO,
    not the warm start, has to find out that a question says where to look."""
    turns = [turn for _, lesson in many("view", 120) for turn in lesson.dialogue if "Look at" not in turn.question]
    asked = [next((word for word in turn.question.split() if word in data_scenes.COLOURS), None) for turn in turns]
    pairs = [(colour, colours_of(turn)) for colour, turn in zip(asked, turns) if colour]
    own = np.mean([colour in named for colour, named in pairs])
    other = np.mean([[pairs[i - shift][0] in pairs[i][1] for i in range(len(pairs))] for shift in range(1, 60)])
    assert len(pairs) > 250 and abs(own - other) < 0.06


def colours_of(turn: lessons.Turn) -> list[str]:
    """The colours that an answer's thought names, in order."""
    return turn.answer.split("</think>")[0].removeprefix("<think> ").split(", ")


def test_some_queries_are_words_that_nobody_knows() -> None:
    known = {*data_scenes.COLOURS, *data_scenes.SHAPES}
    for kind, low, high in (("crop", 0.02, 0.12), ("view", 0.1, 0.25)):
        turns = [turn for _, lesson in many(kind) for turn in lesson.dialogue]
        strange = [turn for turn in turns if not known & set(turn.question.strip(".?").split())]
        assert low < len(strange) / len(turns) < high
        assert kind == "view" or all(turn.answer == "[]" for turn in strange)


def test_the_gaze_points_at_the_words_and_at_the_things(policy: VisionLanguageModel) -> None:
    """While a box is written, the words are those of its kind and the visual tokens those that hold its things."""
    batch = [lesson for _, lesson in many("crop", 2)] + [lesson for _, lesson in many("view", 2)]
    for part, asks in ((batch[:2], True), (batch[2:], False)):
        encoded = policy.encode([lesson.view for lesson in part], [""] * len(part))
        prefixes = [warmstart.picture_prefix(policy, prompt) for prompt in encoded]
        branches, starts, told = warmstart.tokenized(policy, part)
        packed = policy.pack(prefixes, branches)
        targets = warmstart._gaze_targets(policy, part, packed, starts, told)
        ids, tokens = packed.inputs["input_ids"], policy.tokenizer.convert_ids_to_tokens
        boxes = sum(bool(written.things) for lesson in part for turn in lesson.dialogue for written in turn.about)
        openings = 0
        for r, query, words, things, kin in zip(
            targets.rows, targets.queries, targets.words, targets.things, targets.kin
        ):
            assert set(things) <= set(kin) and {int(ids[r, cell]) for cell in kin} == {policy.image_token}
            first = int((ids[r] == policy.image_token).nonzero()[0])
            grid = part[r].view.height // 16, part[r].view.width // 16
            cells = {first + lessons.cell_of(box, *grid): kind for box, kind in zip(part[r].boxes, part[r].kinds)}
            said = [word.removeprefix("Ġ") for word in tokens(ids[r, list(words)].tolist())]
            assert {cells[cell][0] for cell in kin} == {said[0]} or len(cells) < len(
                part[r].boxes
            )  # two things in a cell
            assert said[1] in data_scenes.SHAPES if asks else said[1] == said[0]
            openings += tokens(int(ids[r, query + 1])).endswith('{"')
        assert openings == boxes > 0


def test_packed_questions_are_as_good_as_asked_one_by_one(policy: VisionLanguageModel) -> None:
    """The next-token loss of all questions on one shared picture is that of separate plain rows."""
    part = [lesson for _, lesson in many("crop", 2, painted=True)]
    part[1] = replace(part[1], dialogue=part[1].dialogue[:2])  # fewer questions than its neighbour
    encoded = policy.encode([lesson.view for lesson in part], [""] * len(part))
    prefixes = [warmstart.picture_prefix(policy, prompt) for prompt in encoded]
    pixels, grids = torch.cat([p.pixels for p in encoded]), torch.cat([p.grids for p in encoded])
    with torch.no_grad():
        seen = policy.model.model.get_image_features(pixels, grids, return_dict=True)
        packed, _ = warmstart.speak_loss(policy, part, prefixes, seen)
        losses = []
        for lesson in part:
            for turn in lesson.dialogue:
                (prompt,) = policy.encode([lesson.view], [turn.question])
                answer = policy.tokenizer(
                    f"{turn.answer}<|im_end|>", add_special_tokens=False, return_tensors="pt"
                ).input_ids[0]
                ids = torch.cat([prompt.ids, answer])[None]
                policy.model.model.rope_deltas = None
                logits = policy.model(
                    input_ids=ids,
                    mm_token_type_ids=(ids == policy.image_token).long(),
                    **policy._visual([[prompt]], ids),
                ).logits[0, len(prompt.ids) - 1 : -1]
                losses += torch.nn.functional.cross_entropy(logits, answer, reduction="none").tolist()
    assert abs(float(packed) - np.mean(losses)) < 1e-5


def test_an_interrupted_warm_start_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """Through all three stages, bit for bit; and another recipe does not go on from this one's state."""
    torch.manual_seed(0)
    whole = tiny.build(1)
    warmstart.warm_start(whole, SMALL, tmp_path / "whole", save_every=1)
    torch.manual_seed(0)
    broken = tiny.build(1)

    class Interrupted(Exception):
        pass

    def until(step: int) -> None:
        original = warmstart.step_loss

        def stops(*args: object) -> object:
            if args[-1] == step:
                raise Interrupted
            return original(*args)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(warmstart, "step_loss", stops)
            warmstart.warm_start(broken, SMALL, tmp_path / "broken", save_every=1)

    for step in (1, 3):
        until(step)
        broken = tiny.build(2)  # whatever was in memory is gone
    warmstart.warm_start(broken, SMALL, tmp_path / "broken", save_every=1)
    for (name, ours), theirs in zip(whole.model.state_dict().items(), broken.model.state_dict().values()):
        assert torch.equal(ours, theirs), name
    with pytest.raises(ValueError, match="remove it to start anew"):
        warmstart.warm_start(broken, replace(SMALL, seed=1), tmp_path / "broken")


def test_the_learning_rate_rises_and_falls_in_every_stage() -> None:
    config = WarmStart()
    ends = np.cumsum([0, config.see_steps, config.speak_steps, config.settle_steps])
    for first, end, peak in zip(ends, ends[1:], (config.see_lr, config.speak_lr, config.settle_lr)):
        rates = [config.lr(step) for step in range(first, end)]
        assert rates[0] < 0.05 * peak and 0.9 * peak < max(rates) <= peak and rates[-1] < 0.31 * peak
    with pytest.raises(IndexError):
        config.stage(config.steps)
