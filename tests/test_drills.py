"""What the second tiny policy is taught: forms that are right, choices that listen to nothing, plates that are read."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from activeo3 import data_scenes, drills, forms, geometry, lessons, prompts, tiny, warmstart
from activeo3.answer_parsing import read_boxes
from activeo3.drills import Drill
from activeo3.model import VisionLanguageModel
from activeo3.task_perception_words import read_answer
from activeo3.zoom_calls import Limits, judged, read_turn

SMALL = forms.Forms(see_steps=1, speak_steps=1, crops=1, dense=1, reading=3, turns=2, close=2, bf16=False)
MAKE: dict[str, Callable[..., Drill]] = {
    "reading": drills.reading_drill, "first": drills.first_turn_drill, "next": drills.next_turn_drill, "close": drills.close_up_drill,
}  # fmt: skip


@cache
def many(kind: str, count: int = 60) -> list[tuple[data_scenes.Scene, Drill]]:
    """Drills about the world's first training pictures, which are not painted: few tests need to see them."""
    rng = np.random.default_rng(5)
    world = [data_scenes.scene("train", index) for index in range(count)]
    return [(scene, MAKE[kind](scene, Image.new("RGB", scene.size), rng)) for scene in world]


@pytest.fixture(scope="module")
def policy() -> VisionLanguageModel:
    """The untrained tiny policy, with the attention that the warm start uses."""
    vlm = tiny.build(0)
    vlm.model.set_attn_implementation({"text_config": "eager"})
    return vlm


def test_every_answer_has_the_form_that_its_reader_wants() -> None:
    seen = {"zoom": 0, "zooms": 0, "answer": 0, "grounding": 0, "counting": 0, "detection": 0, "ocr": 0}
    for kind in MAKE:
        for _, drill in many(kind):
            for turn in drill.dialogue:
                question = turn.question
                if question.startswith(data_scenes.QUESTION) or question == prompts.shown("zoom_executed", "short"):
                    said = read_turn(turn.answer)
                    assert said.zooms != (said.answer is not None) and not said.malformed
                    listed = read_boxes(turn.answer.partition("</think>")[2]).boxes_text if said.zooms else ()
                    assert len(listed) == len(turn.about) if "at once" in question else said.zooms == len(turn.about)
                    seen["answer" if not said.zooms else "zooms" if "at once" in question else "zoom"] += 1
                else:
                    task = {"Find the": "grounding", "Count ev": "counting", "Find and": "detection", "Read.": "ocr"}[
                        question[:8]
                    ]
                    answer = read_answer(task, turn.answer)
                    assert answer.error is None and len(answer.boxes_text) == len(turn.about)
                    seen[task] += 1
    assert min(seen.values()) > 50, seen


def test_the_other_systems_call_is_taught_with_the_same_regions(policy: VisionLanguageModel) -> None:
    """Under --wording zoom_roi: the same zooms as tags in the thought, each with its place among the tokens."""
    zooms = 0
    for kind in ("first", "next"):
        for index in range(12):
            scene = data_scenes.scene("train", index)
            made = [
                MAKE[kind](scene, Image.new("RGB", scene.size), np.random.default_rng(index), wording)
                for wording in ("short", "zoom_roi")
            ]
            for plain, tagged in zip(made[0].dialogue, made[1].dialogue, strict=True):
                said, other = read_turn(plain.answer), read_turn(tagged.answer)
                assert (
                    said.answer == other.answer
                    and len(said.calls) == len(other.calls) == len(tagged.about)
                    and plain.about == tagged.about
                )
                assert [tuple(value / 1000 for value in call.box) for call in said.calls] == [
                    call.box for call in other.calls
                ]
                if not other.calls:
                    continue
                assert (
                    tagged.answer.startswith("<think> ")
                    and tagged.answer.endswith(" /></think>")
                    and all(call.shares for call in other.calls)
                )
                told = policy.tokenizer(tagged.answer, add_special_tokens=False).input_ids
                spans = warmstart._box_spans(policy, told)
                inside = [policy.tokenizer.decode(told[first : last + 1]) for first, last in spans]
                assert all(
                    "<zoom_roi x0=" in text and text.endswith('"') and text.count('="') == 4 for text in inside
                ) and len(spans) == len(other.calls)
                zooms += len(spans)
    assert zooms > 50


def test_zooms_are_of_a_size_that_is_shown_and_hold_what_the_thought_names() -> None:
    held = zooms = 0
    for _, drill in many("first") + many("next"):
        frame = geometry.Frame((0.0, 0.0, 1000.0, 1000.0), (1000, 1000))
        for turn in drill.dialogue:
            call = read_turn(turn.answer).call
            if call is None or "at once" in turn.question:
                continue
            assert judged(call, frame, Limits(least=0.005)).status == "zoom_executed"
            inside = geometry.containment(drill.boxes[list(turn.about[0].things)], geometry.as_boxes([call.box]))
            held, zooms = held + bool(len(inside) and inside.max() > 0.5), zooms + 1
            name = turn.answer.removeprefix("<think> ").partition("<")[0]
            rows = turn.about[0].things
            assert rows == (len(drill.kinds),) if name == "plate" else {drill.kinds[row][0] for row in rows} == {name}
    assert zooms > 100 and held / zooms > 0.9


def test_a_first_zoom_goes_to_the_plate_as_often_as_to_any_cluster() -> None:
    """The question is always about the plate; a policy that has learned no more than the lessons does not know that."""
    chosen, chance = [], []
    for scene, drill in many("first", 200):
        for turn in drill.dialogue:
            if turn.question == data_scenes.QUESTION and read_turn(turn.answer).zooms:
                chosen.append(turn.answer.startswith("<think> plate<"))
                chance.append(1 / (1 + len({thing.group for thing in scene.things})))
    assert len(chosen) > 400 and abs(np.mean(chosen) - np.mean(chance)) < 0.04


def test_a_number_is_the_plates_where_one_of_the_views_shows_it_and_else_a_guess() -> None:
    told = guessed = hits = 0
    for scene, drill in many("next", 150):
        answer = read_turn(drill.dialogue[0].answer).answer
        if answer is None:
            continue
        if drill.plate is not None:
            assert answer == scene.number == drill.plate[1] and drill.dialogue[0].read == len(drill.kinds) + 1
            told += 1
        elif len(drill.past) == 1 and not drill.beside:
            guessed, hits = guessed + 1, hits + (answer == scene.number)
    assert told > 30 and guessed > 10 and hits / guessed < 0.15


def test_the_box_of_a_one_shot_lesson_does_not_listen_to_the_shape() -> None:
    """Its colour is the one that is asked for, and its shape as often the right one as among all things of the colour."""
    right, chance = [], []
    for _, drill in many("close", 225):
        for turn in drill.dialogue:
            if turn.question.startswith("Find the "):
                colour, shape = turn.question.removeprefix("Find the ").removesuffix(".").split()
                (row,) = turn.about[0].things
                assert drill.kinds[row][0] == colour
                right.append(drill.kinds[row][1] == shape)
                chance.append(np.mean([kind[1] == shape for kind in drill.kinds if kind[0] == colour]))
    assert len(right) == 450 and abs(np.mean(right) - np.mean(chance)) < 0.05


def test_counting_and_detection_lessons_leave_things_out_and_transcripts_are_rarely_whole() -> None:
    """And what is listed stands from left to right."""
    whole: dict[str, list[bool]] = {"Count": [], "Find and": [], "Read": []}
    for scene, drill in many("close", 150) + many("reading", 150):
        for turn in drill.dialogue:
            if turn.question.startswith("Count"):
                colour = turn.question.split()[2]
                whole["Count"].append(len(turn.about) == sum(kind[0] == colour for kind in drill.kinds))
                assert turn.answer.endswith(f"] {len(turn.about)}")
                lefts = [box[0] for box in read_answer("counting", turn.answer).boxes_text]
                assert lefts == sorted(lefts)
            elif turn.question.startswith("Find and"):
                labels = read_answer("detection", turn.answer).labels
                lefts = [box[0] for box in read_answer("detection", turn.answer).boxes_text]
                assert lefts == sorted(lefts)
                assert labels == tuple(" ".join(drill.kinds[written.things[0]]) for written in turn.about)
                whole["Find and"].append(len(labels) == len(drill.kinds))
            elif turn.question.startswith("Read."):
                assert turn.answer[0] == scene.number[0]
                whole["Read"].append(turn.answer == scene.number)
    assert (
        0.05 < np.mean(whole["Count"]) < 0.5
        and 0.05 < np.mean(whole["Find and"]) < 0.4
        and 0.1 < np.mean(whole["Read"]) < 0.3
    )


def test_plates_of_a_sheet_are_where_they_are_said_to_be_and_nothing_stands_on_them() -> None:
    sheet = drills.plate_sheet(0, 3)
    picture = np.asarray(sheet.render().convert("L"), dtype=float)
    assert len(sheet.plates) == 42 and len(sheet.things) > 0
    for (x1, y1, x2, y2), number in sheet.plates:
        plate = picture[y1:y2, x1:x2]
        assert 10 <= int(number) <= 99 and np.median(plate) == 225 and 0.05 < (plate < 60).mean() < 0.5
        assert set(np.unique(plate)) <= {40.0, 225.0}


def test_what_lies_behind_a_lesson_reads_as_the_chat_template_writes_it(policy: VisionLanguageModel) -> None:
    """The prefix and the question, against the template's own words for the whole conversation."""
    rng, seen = np.random.default_rng(1), set()
    for index in range(12):
        scene = data_scenes.scene("train", index)
        drill = drills.next_turn_drill(scene, scene.render(), rng)
        (prefix,) = forms.prefixes_of(policy, [drill])
        (branch,), (start,), _ = (
            part[0] for part in warmstart.tokenized(policy, [replace(drill, dialogue=drill.dialogue[:1])])
        )
        chat = []
        for turn in drill.past:
            chat.append(
                {
                    "role": "user",
                    "content": [{"type": "image"}] * len(turn.views) + [{"type": "text", "text": turn.words}],
                }
            )
            chat.append({"role": "assistant", "content": turn.said})
        views = [view for turn in drill.past for view in turn.views] + [*drill.beside, drill.view]
        content = [{"type": "image"}] * (1 + len(drill.beside)) + [{"type": "text", "text": drill.dialogue[0].question}]
        chat.append({"role": "user", "content": content})
        text = policy.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        for view in views:
            tokens = view.width // 16 * (view.height // 16)
            text = text.replace("<|image_pad|>", "\0" * tokens, 1)
        ids = policy.tokenizer(text.replace("\0", "<|image_pad|>"), add_special_tokens=False).input_ids
        assert prefix.ids.tolist() + branch[:start] == ids
        assert prefix.grids[:, 1:].prod(1).tolist() == [view.width // 8 * (view.height // 8) for view in views]
        seen.add((len(drill.past), len(drill.beside)))
    assert {(1, 0), (2, 0)} <= seen and any(beside for _, beside in seen)


def test_the_gaze_finds_the_plate_and_the_things_of_the_last_view(policy: VisionLanguageModel) -> None:
    """While figures are read, the visual token is the one of the last picture that holds the plate's centre."""
    figures = boxes = 0
    for kind in MAKE:
        part = [drill for _, drill in many(kind)[:4]]
        prefixes = forms.prefixes_of(policy, part)
        branches, starts, told = warmstart.tokenized(policy, part)
        packed = policy.pack(prefixes, branches)
        targets = warmstart._gaze_targets(policy, part, packed, starts, told)
        ids, word = packed.inputs["input_ids"], policy.tokenizer.convert_ids_to_tokens
        for r, query, words, things in zip(targets.rows, targets.queries, targets.words, targets.things):
            rows, columns = part[r].view.height // 16, part[r].view.width // 16
            last = (ids[r] == policy.image_token).nonzero()[-rows * columns :, 0]
            cells = {int(last[lessons.cell_of(box, rows, columns)]) for box in part[r].boxes}
            assert set(things) <= cells
            predicted = word(int(ids[r, query + 1]))
            if words is None and predicted.isdigit() and part[r].plate is not None:
                places, number = part[r].plate
                at = {
                    int(last[lessons.cell_of(box, rows, columns)])
                    for box, digit in zip(places[1:], number)
                    if digit == predicted
                }
                figures += set(things) <= at
            boxes += predicted.endswith('{"')
    assert figures > 8 and boxes > 40


def test_an_interrupted_lesson_plan_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """Bit for bit, and everything that is taught moves: no loss is without a gradient."""
    torch.manual_seed(0)
    whole = tiny.build(1)
    before = {name: tensor.clone() for name, tensor in whole.model.state_dict().items()}
    forms.teach(whole, SMALL, tmp_path / "whole")
    torch.manual_seed(0)
    broken = tiny.build(1)
    original, calls = forms.step_loss, []

    def stops(*args: object) -> object:
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return original(*args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(forms, "step_loss", stops)
        patch.setattr(forms, "train", lambda *args: warmstart.train(*args, save_every=1))
        forms.teach(broken, SMALL, tmp_path / "broken")
    broken = tiny.build(2)
    forms.teach(broken, SMALL, tmp_path / "broken")
    for (name, ours), theirs in zip(whole.model.state_dict().items(), broken.model.state_dict().values()):
        assert torch.equal(ours, theirs), name
        assert not torch.equal(ours, before[name]) or ours.dtype != torch.float32, name


def test_the_shipped_policy_reads_and_names_as_its_card_says() -> None:
    shipped = VisionLanguageModel.load("data/tiny-tasks", torch.float32)
    assert forms.reading_scores(shipped, 24) > 0.9
    assert forms.naming_scores(shipped, 24) > 0.85
    shuffled = VisionLanguageModel.load("data/tiny-tasks", torch.float32)
    generator = torch.Generator().manual_seed(0)
    for parameter in shuffled.model.model.visual.merger.parameters():
        parameter.data = parameter.data.flatten()[torch.randperm(parameter.numel(), generator=generator)].view_as(
            parameter
        )
    assert forms.reading_scores(shuffled, 24) < 0.2 and forms.naming_scores(shuffled, 24) < 0.3
