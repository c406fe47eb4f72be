"""How the shipped policies are made: lessons say the truth about crops and plates, and nothing about where to look."""

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Callable

import lessons
import make
import numpy as np
import pytest
import tiny_model
import torch
import training
import views
from PIL import Image
from views import Lesson

from activeo3 import data_scenes, geometry, prompts
from activeo3.answer_parsing import read_boxes, read_regions
from activeo3.model import VisionLanguageModel
from activeo3.task_perception import read_answer
from activeo3.zoom_calls import Limits, check_zoom, read_turn

ROLES = make.Roles(see_steps=1, speak_steps=1, settle_steps=2, crops=3, views=1, questions=2, bf16=False)
TASKS = make.Tasks(see_steps=1, speak_steps=1, crops=1, sheets=1, reading=3, turns=2, close=2, bf16=False)
MAKE: dict[str, Callable[..., Lesson]] = {
    "crop": lambda *args: lessons.crop_lesson(*args, 4), "view": lessons.view_lesson, "reading": lessons.reading_lesson,
    "first": lessons.first_turn_lesson, "next": lessons.next_turn_lesson, "close": lessons.close_up_lesson,
}  # fmt: skip
OF_TASKS = ("reading", "first", "next", "close")


@pytest.fixture(scope="module")
def policy() -> VisionLanguageModel:
    """The untrained tiny policy, with the attention that the training uses."""
    vlm = tiny_model.build(0)
    vlm.model.set_attn_implementation({"text_config": "eager"})
    return vlm


@cache
def training_scene(index: int) -> data_scenes.Scene:
    return data_scenes.scene("train", index)


@cache
def many(kind: str, count: int = 40, painted: bool = False) -> list[tuple[data_scenes.Scene, Lesson]]:
    """Lessons of one kind about the world's first training pictures, which few tests need to see."""
    rng, found = np.random.default_rng(3 if kind in ("crop", "view") else 5), []
    for scene in map(training_scene, range(count)):
        found.append((scene, MAKE[kind](scene, scene.render() if painted else Image.new("L", scene.size), rng)))
    return found


def test_the_answers_about_crops_are_the_truth() -> None:
    """Every box of an answer is that of a thing of the kind that is asked for, and none of them is left out."""
    nothing = 0
    for _, lesson in many("crop"):
        for turn in lesson.turns:
            kind = tuple(turn.question.removeprefix("Find every ").removesuffix(".").split())
            rows = [row for row, other in enumerate(lesson.kinds) if other == kind]
            assert [label.things for label in turn.labels] == [(row,) for row in rows]
            assert turn.answer == prompts.boxes_answer([views.rounded(lesson.boxes[row]) for row in rows])
            nothing += not rows
    assert nothing > 20  # a policy that has never seen an empty answer always finds something


def test_an_answer_about_a_whole_picture_says_what_its_regions_hold() -> None:
    """The k-th colour of the thought is that of the cluster in the k-th region; one in twenty is not there."""
    held = regions = 0
    for _, lesson in many("view"):
        for turn in lesson.turns:
            action = read_regions(turn.answer)
            assert action.error is None and 1 <= len(action.boxes_text) <= 3
            named = colours_of(turn)
            assert len(named) == len(action.boxes_text) == len(turn.labels)
            for said, (colour, box, label) in enumerate(zip(named, action.boxes_text, turn.labels)):
                assert label.word == said and {lesson.kinds[row][0] for row in label.same_query} == {colour}
                assert set(label.things) <= set(label.same_query)
                inside = geometry.containment(lesson.boxes[list(label.things)], geometry.as_boxes([box]))
                held, regions = held + bool(len(inside) and inside.mean() > 0.5), regions + 1
    assert 0.9 < held / regions < 0.99


def test_pointing_names_every_cluster_of_the_colour_and_no_other() -> None:
    several = 0
    for scene, lesson in many("view"):
        for turn in lesson.turns:
            if turn.question.startswith("Look at "):
                colour = turn.question.removeprefix("Look at ").removesuffix(".")
                there = {thing.group for thing in scene.things if thing.colour == colour}
                assert colours_of(turn) == [colour] * min(3, len(there)) != []
                several += len(there) > 1
    assert several > 10


def test_no_sensing_answer_listens_to_its_query() -> None:
    """The colour that is asked for is named as often as a colour that is asked for about another picture: GRPO,
    not the warm start, has to find out that a question says where to look."""
    turns = [turn for _, lesson in many("view", 120) for turn in lesson.turns if "Look at" not in turn.question]
    asked = [next((word for word in turn.question.split() if word in data_scenes.COLOURS), None) for turn in turns]
    pairs = [(colour, colours_of(turn)) for colour, turn in zip(asked, turns) if colour]
    own = np.mean([colour in named for colour, named in pairs])
    other = np.mean([[pairs[i - shift][0] in pairs[i][1] for i in range(len(pairs))] for shift in range(1, 60)])
    assert len(pairs) > 250 and abs(own - other) < 0.06


def colours_of(turn: views.Turn) -> list[str]:
    """The colours that an answer's thought names, in order."""
    return turn.answer.split("</think>")[0].removeprefix("<think> ").split(", ")


def test_some_queries_are_words_that_nobody_knows() -> None:
    known = {*data_scenes.COLOURS, *data_scenes.SHAPES}
    for kind, low, high in (("crop", 0.02, 0.12), ("view", 0.1, 0.25)):
        turns = [turn for _, lesson in many(kind) for turn in lesson.turns]
        strange = [turn for turn in turns if not known & set(turn.question.strip(".?").split())]
        assert low < len(strange) / len(turns) < high
        assert kind == "view" or all(turn.answer == "[]" for turn in strange)


def wanted_attention(
    policy: VisionLanguageModel, part: list[Lesson]
) -> tuple[training.Packed, training.AttentionTargets]:
    """The packed rows of lessons, and what some heads are to attend to."""
    tokens = training.tokenize(policy, part)
    packed = policy.pack(training.prefixes_of(policy, part), tokens.branches)
    return packed, training.attention_targets(policy, part, packed, tokens)


def test_the_attention_wanted_is_on_the_words_and_at_the_things(policy: VisionLanguageModel) -> None:
    """While a box is label, the words are those of its kind and the visual tokens those that hold its things."""
    batch = [lesson for _, lesson in many("crop", 2)] + [lesson for _, lesson in many("view", 2)]
    for part, asks in ((batch[:2], True), (batch[2:], False)):
        packed, targets = wanted_attention(policy, part)
        ids, tokens = packed.inputs["input_ids"], policy.tokenizer.convert_ids_to_tokens
        boxes = sum(bool(label.things) for lesson in part for turn in lesson.turns for label in turn.labels)
        openings = 0
        for r, query, words, things, same in zip(
            targets.rows, targets.queries, targets.words, targets.things, targets.same_query
        ):
            assert set(things) <= set(same) and {int(ids[r, cell]) for cell in same} == {policy.image_token}
            first = int((ids[r] == policy.image_token).nonzero()[0])
            grid = part[r].view.height // 16, part[r].view.width // 16
            cells = {first + views.cell_of(box, *grid): kind for box, kind in zip(part[r].boxes, part[r].kinds)}
            named = [word.removeprefix("Ġ") for word in tokens(ids[r, list(words)].tolist())]
            assert {cells[cell][0] for cell in same} == {named[0]} or len(cells) < len(
                part[r].boxes
            )  # two things in a cell
            assert named[1] in data_scenes.SHAPES if asks else named[1] == named[0]
            openings += tokens(int(ids[r, query + 1])).endswith('{"')
        assert openings == boxes > 0


def test_packed_questions_are_as_good_as_asked_one_by_one(policy: VisionLanguageModel) -> None:
    """The next-token loss of all questions on one shared picture is that of separate plain rows."""
    part = [lesson for _, lesson in many("crop", 2, painted=True)]
    part[1] = replace(part[1], turns=part[1].turns[:2])  # fewer questions than its neighbour
    prefixes = training.prefixes_of(policy, part)
    pixels, grids = torch.cat([p.pixels for p in prefixes]), torch.cat([p.grids for p in prefixes])
    with torch.no_grad():
        seen = policy.model.model.get_image_features(pixels, grids, return_dict=True)
        packed, _ = training.answer_loss(policy, part, prefixes, seen)
        losses = []
        for lesson in part:
            for turn in lesson.turns:
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


@pytest.mark.parametrize("recipe", [ROLES, TASKS], ids=["roles", "tasks"])
def test_an_interrupted_training_goes_on_as_if_nothing_had_happened(recipe: training.Recipe, tmp_path: Path) -> None:
    """Through all stages, bit for bit; all weights move; and another recipe does not go on from this one's state."""
    whole, before = tiny_model.build(1), tiny_model.build(1).model.state_dict()
    torch.manual_seed(0)
    training.train(whole, recipe, tmp_path / "whole", save_every=1)
    original, calls = training.step_loss, []

    def stops(*args: object) -> object:
        calls.append(1)
        if len(calls) in (2, 4):
            raise KeyboardInterrupt
        return original(*args)

    torch.manual_seed(0)
    broken = tiny_model.build(1)
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "step_loss", stops)
        for _ in range(1 if recipe is TASKS else 2):
            with pytest.raises(KeyboardInterrupt):
                training.train(broken, recipe, tmp_path / "broken", save_every=1)
            broken = tiny_model.build(2)  # what was in memory is gone
    training.train(broken, recipe, tmp_path / "broken", save_every=1)
    for (name, ours), theirs in zip(whole.model.state_dict().items(), broken.model.state_dict().values()):
        assert torch.equal(ours, theirs), name
        assert not torch.equal(ours, before[name]) or ours.dtype != torch.float32, name
    with pytest.raises(ValueError, match="remove it to start anew"):
        training.train(broken, replace(recipe, seed=1), tmp_path / "broken")


def test_the_command_leaves_a_policy_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """From the shipped policy in two steps; a recipe's other numbers, and a folder that is none, are one sentence."""
    few = "--see_steps 1 --speak_steps 1 --crops 1 --sheets 1 --reading 1 --turns 2 --close 1 --pictures 2".split()
    command = ["make.py", "tasks", "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"), *few]
    monkeypatch.setattr(sys, "argv", command)
    make.main()
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{tmp_path / 'out'}: in unseen crops, numbers read ")
    made = VisionLanguageModel.load(str(tmp_path / "out"), torch.float32)
    assert made.parameters == tiny_model.build(0).parameters
    for changed, said in ((["--seed", "1"], "remove it to start anew"), (["--start", "nowhere"], "nowhere")):
        monkeypatch.setattr(sys, "argv", [*command, *changed])
        with pytest.raises(SystemExit, match=said):
            make.main()


def test_the_learning_rate_rises_and_falls_in_every_stage() -> None:
    config = make.Roles()
    ends = np.cumsum([0, config.see_steps, config.speak_steps, config.settle_steps])
    for first, end, peak in zip(ends, ends[1:], (config.see_lr, config.speak_lr, config.settle_lr)):
        rates = [config.lr(step) for step in range(first, end)]
        assert rates[0] < 0.05 * peak and 0.9 * peak < max(rates) <= peak and rates[-1] < 0.31 * peak
    with pytest.raises(IndexError):
        config.stage(config.steps)


def test_every_answer_has_the_form_that_its_reader_wants() -> None:
    seen = {"zoom": 0, "zooms": 0, "answer": 0, "grounding": 0, "counting": 0, "detection": 0, "ocr": 0}
    for kind in OF_TASKS:
        for _, lesson in many(kind, 60):
            for turn in lesson.turns:
                question = turn.question
                if question.startswith(data_scenes.QUESTION) or question == prompts.shown("zoom_executed", "short"):
                    said = read_turn(turn.answer)
                    assert said.zooms != (said.answer is not None) and not said.malformed
                    listed = read_boxes(turn.answer.partition("</think>")[2]).boxes_text if said.zooms else ()
                    assert len(listed) == len(turn.labels) if "at once" in question else said.zooms == len(turn.labels)
                    seen["answer" if not said.zooms else "zooms" if "at once" in question else "zoom"] += 1
                else:
                    task = {"Find the": "grounding", "Count ev": "counting", "Find and": "detection", "Read.": "ocr"}[
                        question[:8]
                    ]
                    answer = read_answer(task, turn.answer)
                    assert answer.error is None and len(answer.boxes_text) == len(turn.labels)
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
            for plain, tagged in zip(made[0].turns, made[1].turns, strict=True):
                said, other = read_turn(plain.answer), read_turn(tagged.answer)
                assert (
                    said.answer == other.answer
                    and len(said.calls) == len(other.calls) == len(tagged.labels)
                    and plain.labels == tagged.labels
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
                ids = policy.tokenizer(tagged.answer, add_special_tokens=False).input_ids
                spans = training._box_spans(policy, ids)
                inside = [policy.tokenizer.decode(ids[first : last + 1]) for first, last in spans]
                assert all(
                    "<zoom_roi x0=" in text and text.endswith('"') and text.count('="') == 4 for text in inside
                ) and len(spans) == len(other.calls)
                zooms += len(spans)
    assert zooms > 50


def test_zooms_are_of_a_size_that_is_shown_and_hold_what_the_thought_names() -> None:
    held = zooms = 0
    for _, lesson in many("first", 60) + many("next", 60):
        frame = geometry.Frame((0.0, 0.0, 1000.0, 1000.0), (1000, 1000))
        for turn in lesson.turns:
            call = read_turn(turn.answer).call
            if call is None or "at once" in turn.question:
                continue
            assert check_zoom(call, frame, Limits(least=0.005)).status == "zoom_executed"
            inside = geometry.containment(lesson.boxes[list(turn.labels[0].things)], geometry.as_boxes([call.box]))
            held, zooms = held + bool(len(inside) and inside.max() > 0.5), zooms + 1
            name = turn.answer.removeprefix("<think> ").partition("<")[0]
            rows = turn.labels[0].things
            assert rows == (len(lesson.kinds),) if name == "plate" else {lesson.kinds[row][0] for row in rows} == {name}
    assert zooms > 100 and held / zooms > 0.9


def test_a_first_zoom_goes_to_the_plate_as_often_as_to_any_cluster() -> None:
    """The question is always about the plate; a policy that has learned no more than the lessons does not know that."""
    chosen, chance = [], []
    for scene, lesson in many("first", 200):
        for turn in lesson.turns:
            if turn.question == data_scenes.QUESTION and read_turn(turn.answer).zooms:
                chosen.append(turn.answer.startswith("<think> plate<"))
                chance.append(1 / (1 + len({thing.group for thing in scene.things})))
    assert len(chosen) > 400 and abs(np.mean(chosen) - np.mean(chance)) < 0.04


def test_a_number_is_the_plates_where_one_of_the_views_shows_it_and_else_a_guess() -> None:
    told = guessed = hits = 0
    for scene, lesson in many("next", 150):
        answer = read_turn(lesson.turns[0].answer).answer
        if answer is None:
            continue
        if lesson.plate is not None:
            assert answer == scene.number == lesson.plate[1] and lesson.turns[0].digits == len(lesson.kinds) + 1
            told += 1
        elif len(lesson.past) == 1 and not lesson.beside:
            guessed, hits = guessed + 1, hits + (answer == scene.number)
    assert told > 30 and guessed > 10 and hits / guessed < 0.15


def test_the_box_of_a_one_shot_lesson_does_not_listen_to_the_shape() -> None:
    """Its colour is the one that is asked for, and its shape as often the right one as among all things of the
    colour."""
    right, chance = [], []
    for _, lesson in many("close", 225):
        for turn in lesson.turns:
            if turn.question.startswith("Find the "):
                colour, shape = turn.question.removeprefix("Find the ").removesuffix(".").split()
                (row,) = turn.labels[0].things
                assert lesson.kinds[row][0] == colour
                right.append(lesson.kinds[row][1] == shape)
                chance.append(np.mean([kind[1] == shape for kind in lesson.kinds if kind[0] == colour]))
    assert len(right) == 450 and abs(np.mean(right) - np.mean(chance)) < 0.05


def test_counting_and_detection_lessons_leave_things_out_and_transcripts_are_rarely_whole() -> None:
    """And what is listed stands from left to right."""
    whole: dict[str, list[bool]] = {"Count": [], "Find and": [], "Read": []}
    for scene, lesson in many("close", 150) + many("reading", 150):
        for turn in lesson.turns:
            if turn.question.startswith("Count"):
                colour = turn.question.split()[2]
                whole["Count"].append(len(turn.labels) == sum(kind[0] == colour for kind in lesson.kinds))
                assert turn.answer.endswith(f"] {len(turn.labels)}")
                lefts = [box[0] for box in read_answer("counting", turn.answer).boxes_text]
                assert lefts == sorted(lefts)
            elif turn.question.startswith("Find and"):
                labels = read_answer("detection", turn.answer).labels
                lefts = [box[0] for box in read_answer("detection", turn.answer).boxes_text]
                assert lefts == sorted(lefts)
                assert labels == tuple(" ".join(lesson.kinds[label.things[0]]) for label in turn.labels)
                whole["Find and"].append(len(labels) == len(lesson.kinds))
            elif turn.question.startswith("Read."):
                assert turn.answer[0] == scene.number[0]
                whole["Read"].append(turn.answer == scene.number)
    assert (
        0.05 < np.mean(whole["Count"]) < 0.5
        and 0.05 < np.mean(whole["Find and"]) < 0.4
        and 0.1 < np.mean(whole["Read"]) < 0.3
    )


def test_plates_of_a_sheet_are_where_they_are_said_to_be_and_nothing_stands_on_them() -> None:
    sheet = views.plate_sheet(0, 3)
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
        lesson = lessons.next_turn_lesson(scene, scene.render(), rng)
        (prefix,) = training.prefixes_of(policy, [lesson])
        tokens = training.tokenize(policy, [replace(lesson, turns=lesson.turns[:1])])
        (branch,), (start,) = tokens.branches[0], tokens.starts[0]
        chat = []
        for turn in lesson.past:
            chat.append(
                {
                    "role": "user",
                    "content": [{"type": "image"}] * len(turn.views) + [{"type": "text", "text": turn.text}],
                }
            )
            chat.append({"role": "assistant", "content": turn.answer})
        views = [view for turn in lesson.past for view in turn.views] + [*lesson.beside, lesson.view]
        content = [{"type": "image"}] * (1 + len(lesson.beside)) + [{"type": "text", "text": lesson.turns[0].question}]
        chat.append({"role": "user", "content": content})
        text = policy.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        for view in views:
            tokens = view.width // 16 * (view.height // 16)
            text = text.replace("<|image_pad|>", "\0" * tokens, 1)
        ids = policy.tokenizer(text.replace("\0", "<|image_pad|>"), add_special_tokens=False).input_ids
        assert prefix.ids.tolist() + branch[:start] == ids
        assert prefix.grids[:, 1:].prod(1).tolist() == [view.width // 8 * (view.height // 8) for view in views]
        seen.add((len(lesson.past), len(lesson.beside)))
    assert {(1, 0), (2, 0)} <= seen and any(beside for _, beside in seen)


def test_the_attention_wanted_is_on_the_plate_and_the_things_of_the_last_view(policy: VisionLanguageModel) -> None:
    """While figures are read, the visual token is the one of the last picture that holds the plate's centre."""
    figures = boxes = 0
    for kind in OF_TASKS:
        part = [lesson for _, lesson in many(kind)[:4]]
        packed, targets = wanted_attention(policy, part)
        ids, word = packed.inputs["input_ids"], policy.tokenizer.convert_ids_to_tokens
        for r, query, words, things in zip(targets.rows, targets.queries, targets.words, targets.things):
            rows, columns = part[r].view.height // 16, part[r].view.width // 16
            last = (ids[r] == policy.image_token).nonzero()[-rows * columns :, 0]
            cells = {int(last[views.cell_of(box, rows, columns)]) for box in part[r].boxes}
            assert set(things) <= cells
            predicted = word(int(ids[r, query + 1]))
            if words is None and predicted.isdigit() and part[r].plate is not None:
                places, number = part[r].plate
                at = {
                    int(last[views.cell_of(box, rows, columns)])
                    for box, digit in zip(places[1:], number)
                    if digit == predicted
                }
                figures += set(things) <= at
            boxes += predicted.endswith('{"')
    assert figures > 8 and boxes > 40


LOSSES = {
    "roles": (27.3626, 25.2930, 47.8618, 42.8888, 55.2870, 47.4728),
    "tasks": (34.8876, 37.0373, 86.5139, 62.1630),
}
"""Of the first steps, as they were when the shipped policies were made."""


@pytest.mark.parametrize("name", LOSSES)
def test_the_first_steps_are_those_that_made_the_shipped_policies(name: str, tmp_path: Path) -> None:
    if name == "roles":
        recipe: training.Recipe = make.Roles(
            see_steps=2, speak_steps=2, settle_steps=2, crops=3, views=1, questions=2, bf16=False
        )
        vlm = tiny_model.build(0)
    else:
        recipe = make.Tasks(see_steps=2, speak_steps=2, crops=2, sheets=3, reading=3, turns=4, close=2, bf16=False)
        torch.manual_seed(0)  # of the dense head
        vlm = VisionLanguageModel.load("data/tiny", torch.float32)
    losses, original = [], training.step_loss

    def noted(*args: object) -> object:
        loss, readings = original(*args)
        losses.append(float(loss.detach()))
        return loss, readings

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "step_loss", noted)
        training.train(vlm, recipe, tmp_path)
    assert losses == pytest.approx(LOSSES[name], rel=1e-4)


def test_the_shipped_policy_reads_and_names_as_its_card_says() -> None:
    shipped = VisionLanguageModel.load("data/tiny-tasks", torch.float32)
    assert make.reading_score(shipped, 24) > 0.9
    assert make.naming_score(shipped, 24) > 0.85
    shuffled = VisionLanguageModel.load("data/tiny-tasks", torch.float32)
    generator = torch.Generator().manual_seed(0)
    for parameter in shuffled.model.model.visual.merger.parameters():
        parameter.data = parameter.data.flatten()[torch.randperm(parameter.numel(), generator=generator)].view_as(
            parameter
        )
    assert make.reading_score(shuffled, 24) < 0.2 and make.naming_score(shuffled, 24) < 0.3
