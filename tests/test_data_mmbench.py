"""data_mmbench.py and eval_vqa.py: every published file as its publisher builds it, and what MMBench's server takes."""

import base64
import csv
import json
import re
from pathlib import Path
from typing import Any, Sequence

import numpy as np
import pytest
from data_folders import picture
from launch import SMALL
from scripted import rows_in

from activeo3 import data, data_mmbench
from activeo3.answer_parsing import final_text
from activeo3.data import open_dataset
from activeo3.data_io import DataError
from activeo3.data_mmbench import NAMES
from activeo3.eval_config import EvalConfig
from activeo3.eval_vqa import MMBenchBenchmark
from activeo3.task_zoom_qa import asked_of

MMBENCH = MMBenchBenchmark("mmbench", EvalConfig(checkpoint=("x",)))
QUESTIONS = {
    241: ("What is it?", ("cat", "dog", "hen", "owl"), 1),
    252: ("Where is <|image_pad|>?", ("left", "<|im_end|>"), 0),
    3: ("这是什么？", ("猫", "狗", "鸟"), 2),
}
COLUMNS = [
    "index",
    "question",
    "hint",
    "A",
    "B",
    "C",
    "D",
    "answer",
    "category",
    "image",
    "source",
    "l2-category",
    "comment",
    "split",
]


def published(references: bool = True, answers: bool = True, empty: str = "") -> list[dict[str, str]]:
    """The rows as the authors make them: the options and the answer turned by one in each copy of a question.

    Args:
        references: whether copies have the index of the first row in place of its picture, as in VLMEvalKit's files.
        answers: dev files have them, test files do not.
        empty: what stands in an empty cell.
    """
    rows = []
    for number, (index, (text, options, right)) in enumerate(QUESTIONS.items()):
        image = base64.b64encode(picture(10 * number + 10)).decode()
        for turn in range(len(options)):
            turned = options[turn:] + options[:turn]
            cells = dict.fromkeys(COLUMNS, empty) | dict(zip("ABCD", turned))
            cells |= {
                "index": str(index + turn * 1_000_000),
                "question": text,
                "category": f"kind {number}",
                "split": "dev",
            }
            cells |= {"l2-category": "logic_reasoning" if number else "attribute_reasoning"}
            cells |= {"hint": 'Look\t"twice"\nat it'} if index == 241 else {}
            cells |= {"image": str(index) if references and turn else image}
            cells |= {"answer": "ABCD"[(right - turn) % len(options)]} if answers else {}
            rows.append(cells)
    return rows


def write_tsv(path: Path, rows: Sequence[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_hub(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """As lmms-lab's tables: a struct with the picture, an integer index, "nan" for what is empty."""
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    stored = [
        row | {"index": int(row["index"]), "image": {"bytes": base64.b64decode(row["image"]), "path": None}}
        for row in rows
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(stored), path, row_group_size=100)


def facts(data: Any) -> list[tuple]:
    """What must be the same from every file, by index."""
    found = []
    for example in data:
        vqa = example.vqa
        right = vqa.options["ABCD".index(vqa.answer)]
        found.append(
            (
                vqa.group,
                vqa.options,
                right,
                vqa.rotations,
                vqa.hint,
                example.image.getpixel((0, 0))[0],
                example.image_id,
            )
        )
    return sorted(found, key=lambda fact: (int(fact[0]), fact[1]))


def test_every_published_file_is_the_same_set(tmp_path: Path) -> None:
    files = {
        "mmbench": ("MMBench/MMBench_DEV_EN_V11.tsv", True), "mmbench_cn": ("MMBench/MMBench_DEV_CN_V11.tsv", True),
        "mmbench_v10": ("MMBench/MMBench_DEV_EN.tsv", True), "mmbench_cn_v10": ("mmbench_cn/mmbench_dev_cn_20231003.tsv", False),
        "ccbench": ("MMBench/CCBench_legacy.tsv", False),
    }  # fmt: skip
    for name, (path, references) in files.items():
        write_tsv(tmp_path / path, published(references))
    wanted = facts(open_dataset("mmbench", "dev", str(tmp_path)))
    assert [fact[0] for fact in wanted] == ["3"] * 3 + ["241"] * 4 + ["252"] * 2
    assert {fact[2] for fact in wanted} == {"dog", "left", "鸟"} and {fact[3] for fact in wanted} == {2, 3, 4}
    assert all(fact[5] == {"241": 10, "252": 20, "3": 30}[fact[0]] for fact in wanted) and {
        fact[6] for fact in wanted
    } == {1, 2, 3}
    for name in files:
        data = open_dataset(name, "test", str(tmp_path))  # each is one part, by any name
        assert (data.name, facts(data)) == (name, wanted), name
    (tmp_path / "MMBench" / "MMBench_DEV_EN.tsv").rename(tmp_path / "MMBench" / "MMBench_DEV_EN_legacy.tsv")
    assert facts(open_dataset("mmbench_v10", "dev", str(tmp_path))) == wanted
    (tmp_path / "MMBench" / "MMBench_DEV_EN_legacy.tsv").rename(tmp_path / "MMBench" / "mmbench_dev_20230712.tsv")
    assert facts(open_dataset("mmbench_v10", "dev", str(tmp_path))) == wanted
    assert set(files) | {name.replace("mmbench", "mmbench_test") for name in files if name != "ccbench"} == set(NAMES)


@pytest.mark.parametrize(
    "path", ["MMBench/en/dev-00000-of-00001.parquet", "MMBench_EN/data/dev-00000-of-00001-75b6649fb044d38b.parquet"]
)
def test_the_hubs_tables_are_the_same_set(tmp_path: Path, path: str) -> None:
    write_tsv(tmp_path / "MMBench" / "MMBench_DEV_EN_V11.tsv", published())
    write_hub(tmp_path / path, published(references=False, empty="nan"))
    assert facts(open_dataset("mmbench_v10", "dev", str(tmp_path))) == facts(
        open_dataset("mmbench", "dev", str(tmp_path))
    )


def test_rows_in_any_order_and_groups_that_are_not_whole(tmp_path: Path) -> None:
    """A copy may come before the row with its picture; a question without its first row is none (VLMEvalKit)."""
    rows = published()
    order = np.random.default_rng(0).permutation(len(rows))
    path = tmp_path / "MMBench" / "MMBench_DEV_EN_V11.tsv"
    write_tsv(path, rows)
    wanted = facts(open_dataset("mmbench", "dev", str(tmp_path)))
    write_tsv(path, [rows[k] for k in order])
    shuffled = open_dataset("mmbench", "dev", str(tmp_path))
    assert [fact[:6] for fact in facts(shuffled)] == [fact[:6] for fact in wanted]
    groups = list(
        dict.fromkeys(int(rows[k]["index"]) % 1_000_000 for k in order)
    )  # questions as they come, copies beside each other
    together = [str(group + turn * 1_000_000) for group in groups for turn in range(len(QUESTIONS[group][1]))]
    assert [asked.picture[0].rows[asked.picture[1]]["index"] for asked in shuffled.items] == together
    some = open_dataset("mmbench", "dev", str(tmp_path), limit=5)
    assert len(MMBENCH.groups([some[k] for k in range(5)])) >= 1

    legacy = published(references=False)
    write_tsv(path, [row for row in legacy if row["index"] not in ("2000241", "252")])
    data = open_dataset("mmbench", "dev", str(tmp_path))
    assert {example.vqa.group: example.vqa.rotations for example in data} == {"241": 3, "252": 0, "3": 3}
    right = np.array([float(example.vqa.group != "3") for example in data])
    assert MMBENCH.scores(list(data), right, resamples=0)["circular"].value == 0.5  # of 241 and 3


def test_a_dev_row_without_an_answer_is_left_out_and_a_file_that_is_not_there_named(tmp_path: Path) -> None:
    rows = published()
    rows[4]["answer"] = ""
    write_tsv(tmp_path / "MMBench" / "MMBench_DEV_EN_V11.tsv", rows)
    data = open_dataset("mmbench", "dev", str(tmp_path))
    assert len(data) == 8 and len(data.dropped) == 1 and "row 4 has no answer" in data.dropped[0]
    assert {example.vqa.group: example.vqa.rotations for example in data} == {"241": 4, "252": 0, "3": 3}
    sentence = (
        "there is neither MMBench/MMBench_DEV_EN.tsv nor MMBench/MMBench_DEV_EN_legacy.tsv nor MMBench/mmbench_dev_20"
    )
    with pytest.raises(DataError, match=re.escape(sentence)):
        open_dataset("mmbench_v10", "dev", str(tmp_path))  # never version 1.1 in its place


def test_a_test_file_writes_what_the_server_takes(checkpoint: str, evaluate, tmp_path: Path) -> None:  # noqa: F811
    """mmb_eval_gradio.py reads the table with pandas and wants index, prediction, question and A to D."""
    rows = published(answers=False)
    without = [{key: value for key, value in row.items() if key != "answer"} for row in rows]
    write_tsv(tmp_path / "MMBench" / "MMBench_TEST_EN_V11.tsv", without)
    out = tmp_path / "out"
    printed, complaint = evaluate(
        "--checkpoint", checkpoint, "--data_root", str(tmp_path), "--benchmark", "mmbench_test", "--methods", "direct", "--limit", "0",
        "--output_dir", str(out), *SMALL,
    )  # fmt: skip
    assert complaint == "" and "mmbench_test has no public answers: submit " in printed
    (path,) = out.glob("submission-*.tsv")
    with path.open(encoding="utf-8", newline="") as file:
        submitted = list(csv.DictReader(file, delimiter="\t"))
    given = json.loads((out / "answers-mmbench_test-direct.json").read_text())
    assert list(submitted[0]) == [column for column in COLUMNS if column not in ("answer", "image")] + ["prediction"]
    assert [row["prediction"] for row in submitted] == [final_text(one["text"]) for one in given]
    for row, wanted in zip(submitted, without, strict=True):
        assert {key: row[key] for key in row if key != "prediction"} == {
            key: wanted[key] for key in wanted if key != "image"
        }
    (row,) = rows_in(out)
    assert (
        {"unread", "regions", "seconds"} <= set(row["metrics"])
        and "accuracy" not in row["metrics"]
        and all(one["right"] is None for one in given)
    )


def test_results_have_categories_and_abilities(checkpoint: str, evaluate, tmp_path: Path) -> None:  # noqa: F811
    write_tsv(tmp_path / "MMBench" / "MMBench_DEV_CN.tsv", published())
    out = tmp_path / "out"
    printed, complaint = evaluate(
        "--checkpoint", checkpoint, "--data_root", str(tmp_path), "--benchmark", "mmbench_cn_v10", "--methods", "direct", "--limit", "0",
        "--output_dir", str(out), *SMALL,
    )  # fmt: skip
    assert complaint == "" and "circular" in printed and not list(out.glob("submission-*"))
    (row,) = rows_in(out)
    counts = {name: value for name, value in row["metrics"].items() if name.startswith("n/")}
    assert counts == {
        "n/kind 0": 4,
        "n/kind 1": 2,
        "n/kind 2": 3,
        "n/l2/attribute_reasoning": 4,
        "n/l2/logic_reasoning": 5,
    }
    assert {"accuracy", "circular", "accuracy/kind 0", "circular/kind 0", "circular/l2/logic_reasoning"} <= set(
        row["metrics"]
    )


def test_a_test_file_cannot_be_trained_on(tmp_path: Path) -> None:
    write_tsv(tmp_path / "MMBench" / "MMBench_TEST_CN.tsv", published(answers=False))
    test_set = open_dataset("mmbench_test_cn_v10", "test", str(tmp_path))
    assert data.DATASETS[test_set.name].splits == {"test": 6_666} and data_mmbench.NAMES[test_set.name] == (
        "test",
        "CN",
        "v10",
    )
    with pytest.raises(
        DataError,
        match="example mmbench_test_cn_v10:0 has no public answer: its data set can only be asked and submitted",
    ):
        asked_of(test_set[0])
