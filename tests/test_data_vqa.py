"""data_vqa.py and data_tables.py: V*Bench's folders, parquet and tab-separated files, broken ones of each."""

import base64
import csv
import io
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_folders import (
    GLOVE,
    HEADER,
    SIDES,
    hrbench_rows,
    hrbench_set,
    mmbench_row,
    mmbench_set,
    mme_row,
    parquet_set,
    picture,
    vstar_set,
)
from PIL import Image

from activeo3 import data_tables, data_vqa
from activeo3.data import open_dataset
from activeo3.data_io import DataError
from activeo3.data_set import Source
from activeo3.data_vqa import LETTERS

# ---------------------------------------------------------------------- V*Bench


def test_vstar_questions(tmp_path: Path) -> None:
    data = open_dataset("vstar", "test", vstar_set(tmp_path))
    assert (data.name, len(data)) == ("vstar", 3)
    assert [e.id for e in data] == ["direct_attributes/sa_17", "direct_attributes/sa_4690", "relative_position/sa_5"]
    for example, stored in zip(data, (GLOVE, GLOVE, SIDES)):
        vqa = example.vqa
        assert example.query == vqa.question == stored["question"]
        assert Counter(vqa.options) == Counter(stored["options"])
        assert vqa.options[LETTERS.index(vqa.answer)] == stored["options"][0]
        assert vqa.category == example.id.split("/")[0]
        assert example.size_px == (40, 30) and np.array_equal(example.boxes_px, vqa.evidence_px)
    assert data[0].boxes_px.tolist() == [[10, 5, 18, 11]]
    assert data[2].boxes_px.tolist() == [[0, 0, 4, 4], [30, 20, 40, 25]]  # clipped
    assert len({example.image_id for example in data}) == 3 and all(path.is_file() for path in data.paths)


def test_every_place_is_as_often_the_right_one(tmp_path: Path) -> None:
    root = vstar_set(tmp_path, {f"sa_{k:03}": GLOVE for k in range(200)})
    answers = [
        [q.answer for q in data_vqa.open_vstar(Source("vstar", "test", root, seed=seed)).items] for seed in (0, 0, 1)
    ]
    assert answers[0] == answers[1] != answers[2]
    counts = Counter(answers[0][:200])
    assert set(counts) == set("ABCD") and min(counts.values()) > 30  # 50 each are expected
    orders = {q.options for q in data_vqa.open_vstar(Source("vstar", "test", root)).items}
    assert len(orders) > 20  # of 24, and 2


@pytest.mark.parametrize(
    "change, sentence",
    [
        (
            {"bbox": [[10, 5, 0, 6]]},
            "the question has the bbox [10, 5, 0, 6], give one x, y, w, h with an area above 0 for each target",
        ),
        ({"bbox": [[10, 5, 8]]}, "has the bbox [10, 5, 8], give"),
        ({"bbox": [[10, 5, 8, "6"]]}, "has the bbox [10, 5, 8, '6'], give"),
        ({"bbox": []}, "the question has 0 bbox, give one box for each of the 1 targets"),
        ({"options": []}, "has the options [], give a list of texts"),
        ({"options": ["yes", 3]}, "has the options ['yes', 3], give"),
        ({"target_object": "glove"}, "has the target_object 'glove', give"),
        ({"question": None}, "the question has no 'question'"),
    ],
)
def test_a_broken_vstar_file_is_left_out(tmp_path: Path, change: dict, sentence: str) -> None:
    content = {key: value for key, value in (GLOVE | change).items() if value is not None}
    root = vstar_set(tmp_path, {"sa_1": GLOVE, "sa_2": content, "sa_3": GLOVE})
    data = open_dataset("vstar", "test", root)
    assert [example.id for example in data][:2] == ["direct_attributes/sa_1", "direct_attributes/sa_3"]
    (said,) = data.dropped
    assert sentence in said and "sa_2.json" in said and "\n" not in said
    whole = open_dataset("vstar", "test", vstar_set(tmp_path / "whole", {f"sa_{k}": GLOVE for k in (1, 2, 3)}))
    assert data[1].vqa.options == whole[2].vqa.options  # the others are asked as they were


@pytest.mark.parametrize("content", ["", "[1]", "null", "[" * 20_000], ids=["empty", "list", "null", "deep"])
def test_a_set_of_which_every_file_is_broken_is_refused(tmp_path: Path, content: str) -> None:
    root = vstar_set(tmp_path, {"sa_1": GLOVE})
    for path in (tmp_path / "vstar_bench").rglob("*.json"):
        path.write_text(content)
    with pytest.raises(
        DataError,
        match=r"vstar has no question in its split 'test', .*. Nothing in it can be used: .*sa_1.json: .* \(and 1 more\)",
    ):
        open_dataset("vstar", "test", root)


def test_vstar_folders_that_hold_nothing(tmp_path: Path) -> None:
    (tmp_path / "vstar_bench").mkdir()
    with pytest.raises(
        DataError,
        match=r"neither \*.json in vstar_bench/direct_attributes or vstar_bench/relative_position nor vstar_bench/test_questions.jsonl nor",
    ):
        open_dataset("vstar", "test", str(tmp_path))
    with pytest.raises(DataError, match="vstar: there is no split 'train', choose one of dev, test, val"):
        open_dataset("vstar", "train", str(tmp_path))


def test_a_target_outside_and_a_picture_on_its_side(tmp_path: Path) -> None:
    """Sizes are not in V*Bench's files, so a box outside is found when the picture is there."""
    root = vstar_set(tmp_path, {"sa_1": GLOVE | {"bbox": [[50, 5, 8, 6]]}, "sa_2": GLOVE})
    data = open_dataset("vstar", "test", root)
    with pytest.raises(
        DataError, match="sa_1.jpg: target 'glove' of example direct_attributes/sa_1 lies outside"
    ) as caught:
        data[0]
    assert caught.value.example_id == "direct_attributes/sa_1"
    note = Image.Exif()
    note[0x0112] = 6
    (tmp_path / "vstar_bench" / "direct_attributes" / "sa_2.jpg").write_bytes(picture(90, kind="JPEG", exif=note))
    assert data[1].size_px == (30, 40)  # upright, as people saw it


# ---------------------------------------------------------------------- tab-separated


def test_mmbench_questions(tmp_path: Path) -> None:
    hint = 'He said: "größer\tals\nzwei"'  # quotes, a tab, a line break and letters of several bytes
    rows = [
        mmbench_row(7, picture(10), hint=hint), mmbench_row(9, picture(20), D="owl", answer="D"),
        mmbench_row(1_000_007, "7", answer="A"), mmbench_row(8, picture(30), C="", answer="A"),
    ]  # fmt: skip
    data = open_dataset("mmbench", "dev", mmbench_set(tmp_path, rows))
    assert [e.image.getpixel((0, 0))[0] for e in data] == [10, 10, 20, 30]
    assert [data[k].image.getpixel((0, 0))[0] for k in (3, 0, 2, 1)] == [30, 10, 20, 10]  # in any order
    assert [e.vqa.options for e in data] == [
        ("cat", "dog", "hen"), ("cat", "dog", "hen"), ("cat", "dog", "hen", "owl"), ("cat", "dog")
    ]  # fmt: skip
    assert [e.vqa.answer for e in data] == ["B", "A", "D", "A"]
    assert data[0].vqa.hint == hint and data[0].query == "Which, 7?"
    assert [e.vqa.group for e in data] == ["7", "7", "9", "8"]
    assert [e.image_id for e in data] == [1, 1, 2, 3]
    assert data[0].boxes_px.shape == (0, 4) and data[0].vqa.category == "identity"
    assert len(open_dataset("mmbench", "test", str(tmp_path))) == 4  # the one public part by any name


def test_opening_a_table_keeps_no_picture(tmp_path: Path) -> None:
    noise = io.BytesIO()
    Image.effect_noise((200, 200), 90).save(noise, "PNG")
    root = mmbench_set(tmp_path, [mmbench_row(k, noise.getvalue()) for k in range(5)])
    data = open_dataset("mmbench", "dev", root)
    assert sum(len(text) for row in data.items[0].picture[0].rows for text in row.values()) < 1000
    assert (tmp_path / "MMBench" / "MMBench_DEV_EN_V11.tsv").stat().st_size > 5 * 40_000


@pytest.mark.parametrize(
    "row, sentence",
    [
        (mmbench_row(2, picture(1), answer="E"), "row 1 has the answer 'E' and 3 options"),
        (mmbench_row(2, picture(1), category="a", comment="\ud800"), "row 1 (line 3) has bytes that are no UTF-8 text"),
        (mmbench_row(2, picture(1), answer=""), "row 1 has no answer"),
        (mmbench_row(2, "77"), "the row with the index '2' has the picture of an unknown index 77"),
        (mmbench_row(2, picture(1), B="", C="dog"), "row 1 has a gap in its options ['cat', '', 'dog', '']"),
        (mmbench_row(2, picture(1)) | {"index": "two"}, "row 1 has the index 'two'"),
    ],
)
def test_a_broken_row_is_left_out(tmp_path: Path, row: dict[str, str], sentence: str) -> None:
    root = mmbench_set(
        tmp_path, [mmbench_row(1, picture(1)), row, mmbench_row(3, picture(30)), mmbench_row(1_000_001, "1", "A")]
    )
    data = open_dataset("mmbench", "dev", root)
    assert [(example.vqa.group, example.image.getpixel((0, 0))[0]) for example in data] == [
        ("1", 1),
        ("1", 1),
        ("3", 30),
    ]
    (said,) = data.dropped
    assert sentence in said and "MMBench_DEV_EN_V11.tsv" in said and "\n" not in said


def test_a_broken_table_is_refused(tmp_path: Path) -> None:
    def complaint(text: bytes) -> str:
        (tmp_path / "MMBench").mkdir(exist_ok=True)
        (tmp_path / "MMBench" / "MMBench_DEV_EN_V11.tsv").write_bytes(text)
        with pytest.raises(DataError) as caught:
            open_dataset("mmbench", "dev", str(tmp_path))
        return str(caught.value)

    assert "the header has no column 'image'" in complaint(b"")
    assert "the header has no column 'image'" in complaint(b"index\tquestion\n1\twhat\n")
    assert "there is no column 'A'" in complaint(b"index\tquestion\timage\n1\twhat\tAAAA\n")
    assert "has no question in its split 'test'" in complaint("\t".join(HEADER).encode())
    assert "row 0 (line 2) has 2 fields and the header 14" in complaint("\t".join(HEADER).encode() + b"\n1\twhat\n")
    assert "row 0 (line 2) has 1 fields and the header 14" in complaint("\t".join(HEADER).encode() + b"\n\xff\xfe\n")


def test_a_byte_order_mark_is_no_part_of_a_column(tmp_path: Path) -> None:
    root = mmbench_set(tmp_path, [mmbench_row(1, picture(10)), mmbench_row(1_000_001, "1", "A")])
    path = tmp_path / "MMBench" / "MMBench_DEV_EN_V11.tsv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [example.image.getpixel((0, 0))[0] for example in open_dataset("mmbench", "dev", root)] == [10, 10]


@pytest.mark.parametrize("seed", range(4))
def test_a_text_table_is_what_csv_reads(tmp_path: Path, seed: int) -> None:
    """Rows with and without quotation marks, tabs and line breaks inside, ends of lines of both kinds, a byte-order
    mark."""
    rng = np.random.default_rng(seed)
    cells = ["cat", "", "größer", 'say "it"', "a\tb", "two\nlines", '"', " x ", "'"]
    rows = [[str(k), *rng.choice(cells, 3), base64.b64encode(picture(k + 1)).decode()] for k in range(25)]
    file = io.StringIO(newline="")
    writer = csv.writer(
        file,
        delimiter="\t",
        quoting=(csv.QUOTE_MINIMAL, csv.QUOTE_ALL)[seed % 2],
        lineterminator=("\n", "\r\n")[seed // 2],
    )
    writer.writerows([["index", "question", "A", "B", "image"], *rows])
    path = tmp_path / "a.tsv"
    path.write_bytes((b"\xef\xbb\xbf" if seed else b"") + file.getvalue().encode())
    table = data_tables.TextTable(path)
    assert table.rows == [dict(zip(("index", "question", "A", "B"), row)) for row in rows] and not table.dropped
    for row in rng.permutation(25):
        assert table.picture(int(row)) == picture(int(row) + 1)


def test_a_bad_picture_in_a_table_is_one_examples_matter(tmp_path: Path) -> None:
    rows = [mmbench_row(0, picture(1)[:60]), mmbench_row(1, "no base64!"), mmbench_row(2, picture(5))]
    data = open_dataset("mmbench", "dev", mmbench_set(tmp_path, rows))
    for index in (0, 1):
        sentence = rf"V11.tsv, row {index}: the picture of example mmbench:{index} cannot be read"
        with pytest.raises(DataError, match=sentence) as caught:
            data[index]
        assert caught.value.example_id == f"mmbench:{index}"
    assert data[2].image.getpixel((0, 0))[0] == 5


# ---------------------------------------------------------------------- parquet


def test_mme_questions(tmp_path: Path) -> None:
    names = ["color/a.jpg", "color/a.jpg", "color/b.jpg", "color/b.jpg", "count/a.jpg"]
    rows = [mme_row(name, 10 * k, "Yes" if k % 2 else "No") for k, name in enumerate(names)]
    data = open_dataset("mme", "test", parquet_set(tmp_path, "MME", [rows[:3], rows[3:]]))
    assert [e.image.getpixel((0, 0))[0] for e in data] == [0, 10, 20, 30, 40]
    assert [data[k].image.getpixel((0, 0))[0] for k in (4, 0, 2, 3, 1)] == [40, 0, 20, 30, 10]
    assert [e.vqa.group for e in data] == names and [e.image_id for e in data] == [1, 1, 2, 2, 3]
    assert [e.vqa.answer for e in data] == ["No", "Yes", "No", "Yes", "No"]
    assert data[0].query.startswith("Is this red 0?") and data[0].vqa.options == ()


def check_hrbench(data: Any) -> None:
    assert len(data) == 8 and [e.image_id for e in data] == [1] * 4 + [2] * 4
    assert [e.image.getpixel((0, 0))[0] for e in data] == [10] * 4 + [20] * 4
    assert {e.vqa.options[LETTERS.index(e.vqa.answer)] for e in data} == {"27B"}  # however the options turn
    assert len({e.vqa.options for e in data}) == 4 and [e.vqa.answer for e in data] == list("ADCB") * 2
    assert [e.vqa.category for e in data] == ["single"] * 4 + ["cross"] * 4 and len({e.vqa.group for e in data}) == 2
    assert data[0].boxes_px.shape == (0, 4)


def test_hrbench_questions(tmp_path: Path) -> None:
    check_hrbench(open_dataset("hrbench", "test", hrbench_set(tmp_path)))
    check_hrbench(open_dataset("hrbench_8k", "val", hrbench_set(tmp_path, "hr_bench_8k")))


@pytest.mark.parametrize("wrapped", [False, True])
def test_hrbench_as_the_hub_stores_it(tmp_path: Path, wrapped: bool) -> None:
    """In a parquet file, pictures are base64 text, or bytes in a struct as the hub's own tools write them."""
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    stored = [
        {"bytes": picture(red), "path": None} if wrapped else base64.b64encode(picture(red)).decode()
        for red in (10, 20)
    ]
    (tmp_path / "HR-Bench").mkdir()
    rows = [*hrbench_rows(stored[0]), *hrbench_rows(stored[1], 4, "cross")]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "HR-Bench" / "hr_bench_4k.parquet")
    check_hrbench(open_dataset("hrbench", "test", str(tmp_path)))
    with pytest.raises(DataError, match=r"HR-Bench: there is neither hr_bench_8k.tsv nor hr_bench_8k\*.parquet"):
        open_dataset("hrbench_8k", "test", str(tmp_path))


def test_a_picture_in_parquet_is_read_without_the_gigabytes_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One group of rows, as pandas writes it; pictures of 90 kB are read two at a time, forwards, and again from the
    start."""
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    monkeypatch.setattr(data_tables, "READ_AT_ONCE", 200_000)
    noise = [base64.b64encode(np.random.default_rng(k).bytes(90_000)).decode() for k in range(30)]
    path = tmp_path / "hr_bench_8k.parquet"
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{"index": k, "image": text} for k, text in enumerate(noise)]), path
    )
    table = data_tables.ParquetTable(path)
    assert table.file.num_row_groups == 1
    held = []
    for row in (0, 1, 2, 9, 9, 8, 29, 0):
        assert table.picture(row) == base64.b64decode(noise[row])
        held.append(len(table.forwards.column))
    assert set(held) <= {1, 2}  # rows whose pictures are in memory


@pytest.mark.parametrize("kind", ["dictionary", "bytes", "reference"])
def test_pictures_in_parquet_come_in_many_ways(tmp_path: Path, kind: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    text = [base64.b64encode(picture(k)).decode() for k in (10, 20)]
    stored = {"dictionary": [text[0], text[1], text[0]], "bytes": [picture(10), picture(20), picture(10)],
              "reference": ["1000007", text[1], text[0]]}[kind]  # fmt: skip
    path = tmp_path / "a.parquet"
    rows = [{"index": index, "image": image} for index, image in zip((7, 8, 1_000_007), stored)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, use_dictionary=kind == "dictionary")
    table = data_tables.ParquetTable(path)
    assert [data_tables.picture_of(table, row, "x").getpixel((0, 0))[0] for row in (0, 1, 2, 0)] == [10, 20, 10, 10]


def test_text_that_is_no_base64_in_parquet_is_one_examples_matter(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    (tmp_path / "HR-Bench").mkdir()
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(hrbench_rows("no base64!")), tmp_path / "HR-Bench" / "hr_bench_4k.parquet"
    )
    with pytest.raises(DataError, match="row 0: the picture of example hrbench:0 cannot be read .no base64"):
        open_dataset("hrbench", "test", str(tmp_path))[0]


def test_realworldqa_questions(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": picture(k, kind="WEBP", lossless=True), "path": f"{k}.webp"}, "image_path": f"{k}.webp",
             "question": f"How many? {k}", "answer": str(k)} for k in range(3)]  # fmt: skip
    data = open_dataset("realworldqa", "test", parquet_set(tmp_path, "RealworldQA", [rows]))
    assert [(e.vqa.answer, e.image.getpixel((0, 0))[0]) for e in data] == [("0", 0), ("1", 1), ("2", 2)]
    assert len({e.image_id for e in data}) == 3 and not data[0].vqa.group


def test_realworldqa_with_options_in_columns(tmp_path: Path) -> None:
    """VLMEvalKit's RealWorldQA.tsv: lettered options, or none where the answer is a word."""
    image = base64.b64encode(picture(7)).decode()
    rows = [{"index": "0", "question": "Which way?", "A": "left", "B": "right", "C": "", "answer": "B", "image": image},
            {"index": "1", "question": "How many?", "A": "", "B": "", "C": "", "answer": "2", "image": "0"}]  # fmt: skip
    (tmp_path / "RealworldQA").mkdir()
    with (tmp_path / "RealworldQA" / "RealWorldQA.tsv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    data = open_dataset("realworldqa", "test", str(tmp_path))
    assert [(e.vqa.options, e.vqa.answer) for e in data] == [(("left", "right"), "B"), ((), "2")]
    assert data[1].image.getpixel((0, 0)) == (7, 0, 0)


def test_a_bad_picture_in_parquet_is_one_examples_matter(tmp_path: Path) -> None:
    rows = [mme_row("a", 1, "Yes"), mme_row("b", 2, "No"), mme_row("c", 3, "No")]
    rows[0]["image"] = {"bytes": None, "path": "a.jpg"}
    rows[1]["image"]["bytes"] = picture(2)[:50]
    data = open_dataset("mme", "test", parquet_set(tmp_path, "MME", [rows]))
    for index in (0, 1):
        with pytest.raises(DataError, match=f"parquet, row {index}: the picture of example mme:{index} cannot be read"):
            data[index]
    assert data[2].image.getpixel((0, 0))[0] == 3


def test_a_broken_parquet_file_is_refused(tmp_path: Path) -> None:
    def complaint(rows: list[dict[str, Any]], name: str) -> str:
        root = parquet_set(tmp_path / name, "MME", [rows])
        with pytest.raises(DataError) as caught:
            open_dataset("mme", "test", root)
        assert ".parquet" in str(caught.value)
        return str(caught.value)

    row = mme_row("a", 1, "Yes")
    assert "row 0 has no answer" in complaint([row | {"answer": " "}], "blank")
    assert "row 0 has no answer" in complaint([row | {"answer": None}], "none")
    assert "there is no column 'question_id'" in complaint(
        [{k: v for k, v in row.items() if k != "question_id"}], "no id"
    )
    assert "there is no column 'image'" in complaint([{k: v for k, v in row.items() if k != "image"}], "no image")
    path = Path(parquet_set(tmp_path / "torn", "MME", [[row]])) / "MME" / "data" / "test-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="of-00001.parquet: the file cannot be read"):
        open_dataset("mme", "test", str(tmp_path / "torn"))


def test_without_pyarrow_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "MME" / "data").mkdir(parents=True)
    (tmp_path / "MME" / "data" / "test-00000-of-00001.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r'needs the package pyarrow: pip install "activeo3\[parquet\]"'):
        open_dataset("mme", "test", str(tmp_path))
    assert '"parquet": [' in (Path(data_tables.__file__).parent.parent / "setup.py").read_text()
    (tmp_path / "MME" / "data" / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(
        DataError,
        match=r"there is neither MME/data/test-\*.parquet nor MME/MME.tsv nor MME_Benchmark_release_version/MME_Benchmark",
    ):
        open_dataset("mme", "test", str(tmp_path))


# ---------------------------------------------------------------------- for other tests


# ---------------------------------------------------------------------- MME

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
