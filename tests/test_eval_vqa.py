"""eval_vqa.py: what is shown and asked, who answers, and every number against counting by hand."""

import json
import re
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Sequence

import numpy as np
import pytest
from data_folders import questions_on_disk, vstar_set
from launch import SMALL
from PIL import Image
from scripted import END, Scripted, backwards, blobs, finished, looks, painted, rows_in, table, written

from activeo3 import data, data_mmbench, eval_output, eval_runner, eval_setup, eval_vqa
from activeo3.answer_parsing import WORD_ERRORS
from activeo3.config import ConfigError, TrainConfig
from activeo3.data import open_dataset
from activeo3.data_loader import readable
from activeo3.data_set import Dataset, Source
from activeo3.data_vqa import open_vstar
from activeo3.eval_baselines import sensed
from activeo3.eval_config import EvalConfig
from activeo3.eval_core import Row
from activeo3.eval_vqa import OF_DATA
from activeo3.prompts import sensing_answer
from activeo3.types import VQA, Example

CONFIG = EvalConfig(
    checkpoint=("x",), crop_side=64, sensing_side=128, max_new_tokens=40, task_max_new_tokens=8, task_batch=8
)
SIZE = (400, 320)


def question(
    number: int,
    answer: str,
    options: Sequence[str] = (),
    category: str = "color",
    group: str = "",
    boxes: Any = (),
    **fields: Any,
) -> Example:
    image = painted(SIZE, [("red", box) for box in np.asarray(boxes, dtype=int).reshape(-1, 4)])
    answers = () if answer is None else (answer,)
    vqa = VQA(f"Which, {number}?", answers, options=tuple(options), category=category, group=group, **fields)
    return Example(f"q{number}", image, vqa.question, np.asarray(boxes, float).reshape(-1, 4), image_id=number, vqa=vqa)


def saying(tokenizer, answer: Callable[[list[Image.Image], str], str]) -> Scripted:
    """A model that looks at what is red and answers with ``answer(views, question)``."""

    def says(model: Scripted, view: Any, text: str) -> str:
        if isinstance(view, list):
            return answer(view, text) + END
        return sensing_answer(written(model, view, blobs(view, "red")), "red") + END

    return Scripted("qwen3_vl", tokenizer, says)


def ask(
    name: str,
    methods: Sequence[str],
    examples: Sequence[Example],
    policy: Scripted,
    start: Scripted,
    runner: Any = None,
    load: Any = None,
    **flags: Any,
) -> list[Row]:
    """The rows of a benchmark; a policy that is the start policy is the only one."""
    policies = {"start": start} if policy is start else {"start": start, "trained": policy}
    flags = {"methods": tuple(methods), "resamples": 0} | flags
    return table(OF_DATA[name], examples, policies, CONFIG, flags.pop("task_models", {}), runner, name, load, **flags)


def scores(name: str, examples: Sequence[Example], right: np.ndarray, resamples: int) -> dict[str, Any]:
    return OF_DATA[name](name, CONFIG).scores(examples, right, resamples)


def by_category(name: str, examples: Sequence[Example], right: np.ndarray, *more: str) -> dict[str, dict[str, float]]:
    """The metrics of each category by its name."""
    found: dict[str, dict[str, float]] = {}
    for key, value in OF_DATA[name](name, CONFIG).by_category(examples, right, *(more or ("category",))).items():
        metric, _, kind = key.partition("/")
        found.setdefault(kind, {})[metric] = value
    return found


# ---------------------------------------------------------------------- what is shown and asked


def test_the_whole_picture_and_the_crops_are_shown_with_the_options(tokenizer) -> None:
    model = saying(tokenizer, lambda views, text: "B")
    examples = [
        question(1, "B", ["cat", "dog"], boxes=[[40, 40, 120, 100]], hint="Read."),
        question(2, "A", ["x", "y"], boxes=[[0, 200, 90, 300], [300, 0, 399, 60]]),
    ]
    rows = ask("vstar", ("direct", "direct-native", "oracle-regions", "active"), examples, model, model)
    asked = [(views, text) for views, text in model.shown if isinstance(views, list)]
    assert [len(views) for views, _ in asked] == [1, 1, 1, 1, 2, 3, 2, 3]
    whole, native, crop = asked[0][0][0], asked[2][0][0], asked[4][0][1]
    assert whole.size == (160, 128) and native.size == (384, 320) and crop.size == (64, 64)
    assert asked[0][1].splitlines() == [
        "Hint: Read.",
        "Which, 1?",
        "A. cat",
        "B. dog",
        "Answer with the letter of the right option only.",
    ]
    assert "the second shows a part" in asked[4][1] and "the other 2 show parts" in asked[5][1]
    assert np.array_equal(np.asarray(asked[4][0][0]), np.asarray(whole))
    assert (
        (np.asarray(crop).reshape(-1, 3)[:, 0] > 200).mean()
        > 0.4
        > (np.asarray(whole).reshape(-1, 3)[:, 0] > 200).mean()
    )
    looked = [text for views, text in model.shown if not isinstance(views, list)]
    assert looked == ["Where should one look to answer: Which, 1?", "Where should one look to answer: Which, 2?"]
    assert [row.metrics["accuracy"].value for row in rows] == [0.5] * 4
    assert [row.setting.task_model for row in rows] == ["start"] * 4
    assert rows[2].metrics["region_recall"].value == 1.0 and "region_recall" not in rows[0].metrics
    records = {row.setting.method: row.records for row in rows}
    assert records["active"][0] | {"regions": [], "lenient": True, "seconds": 0} == {
        "id": "q1", "category": "color", "question": "Which, 1?", "options": ["cat", "dog"], "answer": "B", "text": "B", "read": "B",
        "error": None, "right": True, "regions": [], "lenient": True, "seconds": 0,
    }  # fmt: skip
    assert len(records["active"][1]["regions"]) == 2 and records["direct"][1]["regions"] == []
    assert all(sampling.temperature == 0 for _, _, sampling in model.batches)


def test_another_model_answers_about_the_same_regions(tokenizer) -> None:
    policy, other = saying(tokenizer, lambda views, text: "A"), saying(tokenizer, lambda views, text: "B")
    examples = [question(1, "B", ["cat", "dog"], boxes=[[40, 40, 120, 100]])]
    flags = {"task_models": {"mllm-b": other}, "task_checkpoint": "b"}
    rows = ask("vstar", ("active",), examples, policy, policy, **flags)
    assert [(row.setting.task_model, row.metrics["accuracy"].value) for row in rows] == [
        ("start", 0.0),
        ("mllm-b", 1.0),
    ]
    assert [len(views) for views, _ in other.shown] == [2] and rows[0].records[0]["regions"] == rows[1].records[0][
        "regions"
    ]


def test_what_only_a_crop_shows_is_answered_with_crops_and_not_with_black_ones(tokenizer) -> None:
    def answer(views: list[Image.Image], text: str) -> str:
        return "(A)" if any((np.asarray(view)[..., 0] > 200).mean() > 0.3 for view in views) else "(B)"

    model = saying(tokenizer, answer)
    examples = [question(k, "A", ["yes", "no"], boxes=[[50 + k, 60, 130 + k, 120]]) for k in range(3)]
    rows = ask("vstar", ("direct", "active", "oracle-regions"), examples, model, model, black=True)
    seen = [(row.setting.method, row.setting.blind, row.metrics["accuracy"].value) for row in rows]
    assert seen == [("direct", False, 0.0), ("active", False, 1.0), ("active", True, 0.0),
                    ("oracle-regions", False, 1.0), ("oracle-regions", True, 0.0)]  # fmt: skip


def test_start_and_checkpoint_answer_and_each_looks_in_its_own_row(tokenizer, capsys) -> None:
    start, policy = saying(tokenizer, lambda views, text: "Yes"), saying(tokenizer, lambda views, text: "No way")
    examples = [question(k, "No" if k else "Yes", category="OCR", group="a") for k in range(3)]
    rows = ask("mme", ("direct", "cot", "active", "oracle-regions"), examples, policy, start)
    assert [(row.setting.method, row.setting.task_model) for row in rows] == [
        (method, name) for method in ("direct", "cot", "active") for name in ("start", "trained")
    ]
    assert [round(row.metrics["accuracy"].value, 3) for row in rows] == [0.333, 0.667] * 3
    looked = [sum(not isinstance(views, list) for views, _ in model.shown) for model in (start, policy)]
    assert looked == [3, 3]
    assert "mme oracle-regions: no row, because no example has what it needs" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--methods fixed not known for mme"):
        ask("mme", ("fixed",), examples, policy, start)


def test_ranks_that_share_the_questions_find_the_same(tokenizer) -> None:
    model = saying(tokenizer, lambda views, text: "no" if "3" in text else "yes")

    examples = [
        question(k, "Yes" if k % 3 else "No", category="count", group=str(k // 2))
        for k in range(2 * eval_runner.BATCH + 4)
    ]
    alone, together = (ask("mme", ("direct",), examples, model, model, r, resamples=50) for r in (None, backwards()))
    assert same(alone) == same(together)


def same(rows: list[Row]) -> str:
    """The rows without seconds; NaN is NaN."""
    return re.sub(r"'seconds': [\d.e-]+", "", repr(rows))


def test_pictures_are_read_when_their_turn_comes(tokenizer, tmp_path: Path) -> None:
    """800 pictures of 8K are 80 GB: the questions are held without them, and the same rows come out."""
    full = [
        question(k, "AB"[k % 2], ["yes", "no"], boxes=[[50 + k, 60, 130 + k, 120]])
        for k in range(eval_runner.BATCH + 3)
    ]

    class OnDisk:
        name, split, paths, dropped, inside = "vstar", "test", (), (), 0

        def __len__(self) -> int:
            return len(full)

        def __getitem__(self, index: int) -> Example:
            image = full[index].image.copy()
            OnDisk.inside += 1
            weakref.finalize(image, lambda: setattr(OnDisk, "inside", OnDisk.inside - 1))
            most.append(OnDisk.inside)
            return replace(full[index], image=image)

    most: list[int] = []
    disk = Dataset("disk", "test", range(len(full)), lambda place, _: OnDisk()[place])
    light = disk.without_images()
    examples = readable(light, tmp_path)
    model = saying(tokenizer, lambda views, text: "A" if (np.asarray(views[0])[..., 0] > 200).any() else "B")
    ways = ("direct", "active", "oracle-regions")
    held, read = (
        ask("vstar", ways, which, model, model, load=load, resamples=50)
        for which, load in ((full, None), (examples, disk.with_image))
    )
    assert same(held) == same(read)
    assert (
        len(most) == 6 * len(full) and max(most) <= 2 * eval_runner.BATCH
    )  # a block, and the last one until it is replaced


def test_every_answer_is_read_or_its_failure_counted(tokenizer) -> None:
    texts = iter(["yes", "perhaps", "not", "", "It is yes or no", "no"])
    model = saying(tokenizer, lambda views, text: next(texts))
    examples = [question(k, "Yes", category="OCR", group=str(k)) for k in range(6)]
    (row,) = ask("mme", ("direct",), examples, model, model)
    errors = {name: row.metrics[f"unread/{name}"] for name in WORD_ERRORS}
    assert errors == dict.fromkeys(WORD_ERRORS, 0) | {"no_yes_or_no": 2, "empty": 1}  # "not" begins with "no"
    assert row.metrics["unread"] == pytest.approx(3 / 6) and row.metrics["accuracy"].value == pytest.approx(1 / 6)


# ---------------------------------------------------------------------- numbers


def test_mme_is_counted_as_by_hand() -> None:
    rng = np.random.default_rng(0)
    kinds = [*eval_vqa.PERCEPTION, *eval_vqa.COGNITION]
    pairs = [(kind, f"{kind}/{k}.jpg") for kind in kinds for k in range(rng.integers(2, 6))]
    examples, right = [], []
    for number, (kind, group) in enumerate(pairs):
        for _ in range(2):
            examples.append(question(number, "Yes", category=kind, group=group))
            right.append(float(rng.random() < 0.7))
    order = rng.permutation(len(examples))
    examples, right = [examples[k] for k in order], np.array(right)[order]

    points: dict[str, list[float]] = {}
    both = []
    for kind, group in pairs:
        own = [r for example, r in zip(examples, right) if example.vqa.group == group]
        assert len(own) == 2
        both.append(own == [1.0, 1.0])
        points.setdefault(kind, []).append(100 * sum(own) / 2 + (100 if own == [1.0, 1.0] else 0))
    score = {kind: sum(values) / len(values) for kind, values in points.items()}

    found = scores("mme", examples, right, resamples=200)
    assert found["accuracy"].value == pytest.approx(sum(right) / len(right))
    assert found["accuracy_plus"].value == pytest.approx(sum(both) / len(both))
    assert found["perception"].value == pytest.approx(sum(score[kind] for kind in eval_vqa.PERCEPTION))
    assert found["cognition"].value == pytest.approx(sum(score[kind] for kind in eval_vqa.COGNITION))
    assert found["total"].value == pytest.approx(found["perception"].value + found["cognition"].value)
    assert 0 < found["total"].low < found["total"].value < found["total"].high <= 2800
    perfect = scores("mme", examples, np.ones(len(examples)), resamples=10)
    assert perfect["total"] == (2800, 2800, 2800) and perfect["perception"].value == 2000
    for kind, values in by_category("mme", examples, right).items():
        assert values["total"] == pytest.approx(score[kind]) and values["n"] == 2 * len(points[kind])
        assert ("perception" in values) == (kind in eval_vqa.PERCEPTION)

    cut = scores("mme", examples[:-1], right[:-1], resamples=0)  # one question of a pair is missing: the pair is out
    gone = next(place for place, (_, group) in enumerate(pairs) if group == examples[-1].vqa.group)
    left = [b for place, b in enumerate(both) if place != gone]
    assert cut["accuracy_plus"].value == pytest.approx(sum(left) / len(left))


def test_mme_is_the_total_of_its_own_script(tokenizer) -> None:
    """calculation.py, written again: two lines a picture, the first four letters of each answer."""
    rng = np.random.default_rng(3)
    said = ["Yes", "no.", "NO", "Not sure", "The answer is yes", "yes, it is", "It is not", "**Yes**", ""]
    lines = [(kind, f"{kind}/{k}.jpg", ["Yes", "No"][q], str(rng.choice(said))) for kind in (*eval_vqa.PERCEPTION, *eval_vqa.COGNITION)
             for k in range(3) for q in range(2)]  # fmt: skip
    total, accuracy = 0.0, []
    for kind in (*eval_vqa.PERCEPTION, *eval_vqa.COGNITION):
        right = []
        for category, _, truth, answer in lines:
            if category == kind:
                start = answer.strip("*").lower()[:4]
                label = "yes" if "yes" in start else "no" if "no" in start else "other"
                right.append(label == truth.lower())
        pairs = list(zip(right[0::2], right[1::2]))
        total += 100 * sum(right) / len(right) + 100 * sum(a and b for a, b in pairs) / len(pairs)
        accuracy += right
    answers = iter(answer for *_, answer in lines)
    model = saying(tokenizer, lambda views, text: next(answers))
    examples = [question(k // 2, truth, category=kind, group=group) for k, (kind, group, truth, _) in enumerate(lines)]
    (row,) = ask("mme", ("direct",), examples, model, model)
    assert row.metrics["total"].value == pytest.approx(total)
    assert row.metrics["accuracy"].value == pytest.approx(np.mean(accuracy))
    kind = {
        "Not sure": None,
        "The answer is yes": "Yes",
        "It is not": None,
        "": None,
        "yes, it is": "Yes",
        "no.": "No",
        "NO": "No",
    }
    lenient = [kind.get(answer, "Yes") == truth for *_, truth, answer in lines]
    assert row.metrics["accuracy_lenient"].value == pytest.approx(np.mean(lenient)) and np.mean(lenient) != np.mean(
        accuracy
    )
    one = finished([row], OF_DATA["mme"], "mme")
    assert eval_output.tables(one)[0].columns[1:4] == ["accuracy", "accuracy_lenient", "accuracy_plus"]
    assert [one["right"] for one in row.records] == accuracy


def test_realworldqa_is_right_by_the_published_rule_and_kindly_in_a_column_of_its_own(tokenizer) -> None:
    asked = "Which way?\n\nA. Left\nB. Right\nAnswer with the letter only."
    texts = {
        "B": (1, 1),
        "b.": (1, 1),
        "It is Right": (1, 1),
        "(B)": (1, 1),
        "The answer is B": (0, 1),
        "right": (0, 1),
        "A": (0, 0),
    }
    examples = [question(k, "B") for k in range(len(texts))]
    examples = [replace(example, query=asked, vqa=replace(example.vqa, question=asked)) for example in examples]
    answers = iter(texts)
    model = saying(tokenizer, lambda views, text: next(answers))
    (row,) = ask("realworldqa", ("direct",), examples, model, model)
    assert [one["right"] for one in row.records] == [bool(right) for right, _ in texts.values()]
    assert row.metrics["accuracy_lenient"].value == pytest.approx(6 / 7)


def vlmevalkits_circular(rows: Sequence[tuple[int, bool]]) -> float:
    """mcq_circular_eval, written again: (index, right) of each row; a group is what there is behind an index below a
    million."""
    hits = [
        all(right for other, right in rows if other % 1_000_000 == index)
        for index, _ in rows
        if index == index % 1_000_000
    ]
    return sum(hits) / len(hits)


def test_mmbench_is_right_under_every_rotation_as_vlmevalkit_counts() -> None:
    """Groups lack rotations, or even their first row; rows are in any order."""
    rng = np.random.default_rng(1)
    sizes = [2, 3, 4, 4, 3, 2, 4, 4]
    rows = [(g + 1_000_000 * turn, bool(rng.random() < 0.8)) for g, size in enumerate(sizes) for turn in range(size)]
    rows = [rows[k] for k in rng.permutation(len(rows)) if rows[k][0] not in (2_000_003, 1_000_006, 3_000_006, 5)]
    left = [
        sum(index % 1_000_000 == g for index, _ in rows) * (g != 5) for g in range(len(sizes))
    ]  # 5 has no first row
    examples = [
        question(i % 1_000_000, "A", "abcd", f"kind {i % 2}", str(i % 1_000_000), rotations=left[i % 1_000_000])
        for i, _ in rows
    ]
    right = np.array([float(right) for _, right in rows])
    wanted = vlmevalkits_circular(rows)
    assert 0 < wanted < 1
    found = scores("mmbench", examples, right, resamples=100)
    assert found["circular"].value == pytest.approx(wanted)
    assert found["accuracy"].value == pytest.approx(right.mean()) and "total" not in found
    assert found["circular"].low <= found["circular"].value <= found["circular"].high
    even = [row for row in rows if row[0] % 2 == 0]
    assert by_category("mmbench", examples, right)["kind 0"]["circular"] == pytest.approx(vlmevalkits_circular(even))
    able = [
        replace(e, vqa=replace(e.vqa, ability="odd" if k % 2 else "even"))
        for e, k in zip(examples, (index % 1_000_000 for index, _ in rows))
    ]
    abilities = by_category("mmbench", able, right, "ability")
    assert abilities["even"]["circular"] == pytest.approx(vlmevalkits_circular(even)) and set(abilities) == {
        "even",
        "odd",
    }
    assert by_category("mmbench", examples, right, "ability") == {}
    cut = [k for k, (index, _) in enumerate(rows) if index < 1_000_000]  # --limit has cut them: no question is whole
    assert np.isnan(scores("mmbench", [examples[k] for k in cut], right[cut], resamples=0)["circular"].value)


def test_vstar_has_its_two_categories_beside_the_mean() -> None:
    examples = [question(k, "A", "ab", eval_vqa.VSTAR_KINDS[k > 2]) for k in range(5)]
    found = scores("vstar", examples, np.array([1.0, 1, 0, 0, 1]), resamples=0)
    assert [round(found[name].value, 3) for name in ("accuracy", *eval_vqa.VSTAR_KINDS)] == [0.6, 0.667, 0.5]
    assert np.isnan(scores("vstar", examples[:3], np.ones(3), 0)["relative_position"].value)


def test_hrbench_is_the_mean_over_rotations_of_its_own_script() -> None:
    """report_acc_hrbench, written again: the accuracy of each rotation, all and by category, and the mean over
    rotations."""
    rng = np.random.default_rng(2)
    rows = [(number, turn, eval_vqa.HRBENCH_KINDS[number % 3 == 0]) for number in range(9) for turn in range(4)]
    right = (rng.random(len(rows)) < 0.6).astype(float)
    averages = {}
    for kind in ("all", *eval_vqa.HRBENCH_KINDS):
        of_turn = [[r for (_, t, k), r in zip(rows, right) if t == turn and kind in ("all", k)] for turn in range(4)]
        averages[kind] = sum(sum(hits) / len(hits) for hits in of_turn) / 4
    examples = [question(number, "A", "abcd", kind, str(number)) for number, _, kind in rows]
    found = scores("hrbench", examples, right, resamples=0)
    assert found["accuracy"].value == pytest.approx(averages["all"])
    assert [found[kind].value for kind in eval_vqa.HRBENCH_KINDS] == pytest.approx(
        [averages[kind] for kind in eval_vqa.HRBENCH_KINDS]
    )


# ---------------------------------------------------------------------- the script


def test_every_set_of_questions_in_words_is_known_here() -> None:
    words = {name for name, known in data.DATASETS.items() if known.answers == "words"}
    assert words == {"hrbench", "hrbench_8k", "mme", *data_mmbench.NAMES, "realworldqa", "vstar"} == set(OF_DATA)


@pytest.mark.parametrize("parquet", [False, True])
def test_evaluate_answers_questions_in_the_official_files(
    make_vlm, checkpoint: str, evaluate, tmp_path: Path, parquet: bool
) -> None:  # noqa: F811
    names, out = questions_on_disk(tmp_path / "data", parquet), tmp_path / "out"
    trained = tmp_path / "checkpoint-3"
    make_vlm("qwen3_vl", seed=1).save(trained)
    (trained / "activeo3.json").write_text(json.dumps({"step": 3, "world": 1, "config": {"model": checkpoint}}))
    printed, complaint = evaluate(
        "--checkpoint", str(trained), "--data_root", str(tmp_path / "data"), "--benchmark", *names, "--limit", "4",
        "--methods", "direct", "active", "oracle-regions", "--output_dir", str(out), *SMALL,
    )  # fmt: skip
    assert complaint == ""
    rows = rows_in(out)
    both = [(method, who) for method in ("direct", "active") for who in ("start", "trained")]
    ceiling = [("oracle-regions", who) for who in ("start", "trained")]
    assert [(row["benchmark"], row["method"], row["task_model"]) for row in rows] == [
        *((name, *row) for name in names for row in both + ceiling * (name == "vstar")),
    ]  # fmt: skip
    for row in rows:
        assert row["n"] == {"realworldqa": 2, "vstar": 3}.get(row["benchmark"], 4)
        given = json.loads((out / f"answers-{row['benchmark']}-{row['method']}-{row['task_model']}.json").read_text())
        assert row["metrics"]["accuracy"] == pytest.approx(sum(one["right"] for one in given) / row["n"])
        errors = sum(row["metrics"][f"unread/{name}"] for name in WORD_ERRORS)
        assert errors == sum(one["error"] is not None for one in given)
        assert row["metrics"]["unread"] == pytest.approx(errors / row["n"])
        low, high = row["intervals"]["accuracy"]
        assert low <= row["metrics"]["accuracy"] <= high
        counts = [
            value for name, value in row["metrics"].items() if name.startswith("n/") and not name.startswith("n/l2/")
        ]
        assert sum(counts) in (0, row["n"])
    by_name = {row["benchmark"]: row for row in rows}
    assert "circular" in by_name["mmbench"]["metrics"]
    assert not parquet or {"accuracy_plus", "perception", "cognition", "total"} <= set(by_name["mme"]["metrics"])
    for name in names:
        assert (
            f"{name} (test), " in printed
            and (out / f"{name}.html").is_file()
            and f"{name}, " in (out / "results.md").read_text()
        )
    assert "| method " in printed and "circular" in printed and "oracle-regions: no row" in printed
    assert "yes\\_and\\_no" in (out / "results.tex").read_text()
    _, complaint = evaluate(
        "--checkpoint", checkpoint, "--data_root", str(tmp_path / "data"), "--benchmark", "vstar", "scenes"
    )
    assert (
        complaint
        == "activeo3: --benchmark names data sets of several tasks, vstar (vqa), scenes (boxes): evaluate them apart."
    )


def test_a_question_is_looked_at_for_its_answer(tokenizer, tmp_path: Path) -> None:
    """The policy is asked where the answer is, not where a thing with the name of the question is."""
    model = Scripted("qwen3_vl", tokenizer, looks)
    example = open_dataset("vstar", "test", vstar_set(tmp_path))[0]
    with pytest.raises(StopIteration):  # ``looks`` finds no colour in the question
        sensed(model, [example], EvalConfig(checkpoint=("x",), wording="paper", sensing_side=64))
    ((_, text),) = model.shown
    assert (
        "help to answer the question 'What is the material of the glove?'" in text
        and "region relevant to the question" in text
    )


def test_the_selection_seed_reaches_both_scripts(tmp_path: Path) -> None:
    root = vstar_set(tmp_path)
    orders = []
    for seed in range(4):
        wanted = [asked.options for asked in open_vstar(Source("vstar", "test", root, seed=seed)).items]
        config = EvalConfig(checkpoint=("x",), data_root=root, selection_seed=seed)
        opened = eval_setup.opened("vstar", "test", 0, config)
        held_out = eval_setup.held_out(
            TrainConfig(data=("vstar",), data_root=root, eval_split="test", selection_seed=seed)
        )
        assert [asked.options for asked in opened.items] == wanted == [example.vqa.options for example in held_out]
        orders.append(tuple(wanted))
    assert len(set(orders)) > 1
