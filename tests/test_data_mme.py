"""MME: the authors' archive, the hub's table and VLMEvalKit's file are the same questions."""

import base64
import csv
from pathlib import Path
from typing import Any

import pytest
from test_data_vqa import parquet_set, picture

from activeo3.data import open_dataset
from activeo3.data_io import DataError

# category, name, whether the category has images/ and questions_answers_YN/, two questions with their answers
ITEMS = [
    (
        "count",
        "000000006040.jpg",
        False,
        [("Is there one? Please answer yes or no.", "Yes"), ("Are there two? Please answer yes or no.", "No")],
    ),
    (
        "posters",
        "tt0062622.jpg",
        True,
        [
            ("Is this movie titled a: b? Please answer yes or no.", "No"),
            ("Is it 2001? Please answer yes or no.", "Yes"),
        ],
    ),
    (
        "code_reasoning",
        "0020.png",
        False,
        [("Is the output '5'? Please answer yes or no.", "Yes"), ('Is it "6"? Please answer yes or no.', "No")],
    ),
    (
        "count",
        "000000006041.jpg",
        False,
        [("Is there a cat? Please answer yes or no.", "Yes"), ("Is there a dog? Please answer yes or no.", "No")],
    ),
]


def archive(root: Path) -> None:
    """The folders of MME_Benchmark_release_version, and its folder of tools."""
    (root / "eval_tool" / "Your_Results").mkdir(parents=True)
    (root / "eval_tool" / "Your_Results" / "count.txt").write_text("a.jpg\tIs?\tYes\n")
    for number, (category, name, apart, asked) in enumerate(ITEMS):
        pictures, texts = (
            root / category / below if apart else root / category for below in ("images", "questions_answers_YN")
        )
        for folder in (pictures, texts):
            folder.mkdir(parents=True, exist_ok=True)
        (pictures / name).write_bytes(picture(10 * number + 10, kind="PNG" if name.endswith("png") else "JPEG"))
        (texts / name).with_suffix(".txt").write_text(
            "\n".join("\t".join(pair) for pair in asked) + "\n" * (number % 2)
        )


def facts(data: Any) -> list[tuple]:
    found = [(e.vqa.group, e.query, e.vqa.answer, e.vqa.category, e.image.getpixel((0, 0))[0] // 5 * 5) for e in data]
    pictures: dict[int, set[str]] = {}
    for example in data:
        pictures.setdefault(example.image_id, set()).add(example.vqa.group)
    assert sorted(pictures) == list(range(1, len(ITEMS) + 1)) and all(len(groups) == 1 for groups in pictures.values())
    return sorted(found)


WANTED = sorted(
    (f"{category}/{name}", question, answer, category, 10 * number + 10)
    for number, (category, name, _, asked) in enumerate(ITEMS)
    for question, answer in asked
)


@pytest.mark.parametrize(
    "below",
    ["MME_Benchmark_release_version/MME_Benchmark", "MME_Benchmark_release_version", "MME", "MME/MME_Benchmark"],
)
def test_the_authors_archive(tmp_path: Path, below: str) -> None:
    archive(tmp_path / below)
    data = open_dataset("mme", "test", str(tmp_path))
    assert facts(data) == WANTED and (data.name, len(data), len(data.paths), data.dropped) == ("mme", 8, 4, ())
    assert data[0].vqa.options == () and all(path.is_file() for path in data.paths)


def test_the_hubs_table_and_vlmevalkits_file(tmp_path: Path) -> None:
    rows, lines = [], []
    for number, (category, name, _, asked) in enumerate(ITEMS):
        for turn, (question, answer) in enumerate(asked):
            content = picture(10 * number + 10)
            rows.append({"question_id": f"{category}/{name}", "image": {"bytes": content, "path": None}, "question": question,
                         "answer": answer, "category": category})  # fmt: skip
            image = str(2 * number) if turn else base64.b64encode(content).decode()
            lines.append(
                {
                    "index": 2 * number + turn,
                    "category": category,
                    "image_path": name,
                    "question": question,
                    "answer": answer,
                    "image": image,
                }
            )
    (tmp_path / "kit" / "MME").mkdir(parents=True)
    with (tmp_path / "kit" / "MME" / "MME.tsv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(reversed(lines))  # in any order
    assert facts(open_dataset("mme", "test", str(tmp_path / "kit"))) == WANTED
    parquet_set(tmp_path / "hub", "MME", [rows])
    assert facts(open_dataset("mme", "test", str(tmp_path / "hub"))) == WANTED


def test_a_line_that_is_no_question_is_left_out_and_named(tmp_path: Path) -> None:
    archive(tmp_path / "MME")
    (tmp_path / "MME" / "count" / "000000006040.txt").write_text("Is there one?\tYes\nIs there none?\n")
    (tmp_path / "MME" / "count" / "000000006041.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "MME" / "code_reasoning" / "0020.png").unlink()
    data = open_dataset("mme", "test", str(tmp_path))
    assert len(data) == 5 and len(data.dropped) == 2
    assert (
        "000000006040.txt: line 2 is no question, a tab and Yes or No" in data.dropped[0]
        and "000000006041.txt" in data.dropped[1]
    )
    with pytest.raises(DataError, match="code_reasoning/0020.jpg: the picture of example mme:4 is missing"):
        data[4]
    for path in (tmp_path / "MME").rglob("*.txt"):
        path.write_text("")
    with pytest.raises(DataError, match="mme has no question in its split 'test'"):
        open_dataset("mme", "test", str(tmp_path))
