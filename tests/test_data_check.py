"""``python -m activeo3.data --check``: the numbers it prints, counted by hand, and the page it writes."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from own_photos import CATS, DOGS, NAMES, SIZE, WANTED, photos

from activeo3 import data
from activeo3.data_check import Split
from activeo3.data_io import DataError


def folder(root: Path) -> str:
    """The photos as JSON Lines; a row that is wrong, a photo that is not there, and a query that is no harmless one."""
    photos(root)
    rows = [{"image": name, "query": query, "boxes": boxes} for name, query, boxes in WANTED]
    rows += [{"image": "00.jpg"}, {"image": "gone.jpg", "query": "cat", "boxes": []}]
    rows += [{"image": "00.jpg", "query": "<script>alert(1)</script>", "boxes": []}]
    (root / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(root)


def checked(root: Path, capsys: pytest.CaptureFixture, *flags: str) -> tuple[str, str]:
    """(what was printed, the page)."""
    where = ["--data", "jsonl", "--data_root", folder(root / "photos"), "--output_dir", str(root)]
    data.main(["--check", *where, *flags])
    return capsys.readouterr().out, (root / "check-jsonl.html").read_text()


def test_what_is_found_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    printed, _ = checked(tmp_path, capsys)
    boxes = [box for of in (CATS, DOGS) for one in of.values() for box in one]
    share = np.median([(x2 - x1) * (y2 - y1) / (SIZE[0] * SIZE[1]) for x1, y1, x2, y2 in boxes])
    assert "train: 17 questions, 16 of them read: 10 pictures, 20 boxes\n" in printed
    assert "  asked for  cat 10, red dog 5, <script>alert(1)</script> 1\n  pictures   64x48 px\n" in printed
    assert f"  boxes      10x10 to 20x20 px, median 12x14; half cover less than {share:.1%} of theirs\n" in printed
    assert "  left out   2:\n" in printed and "train.jsonl: line 16 has no 'query', add what is asked\n" in printed
    assert "gone.jpg: the picture of example gone.jpg:cat is missing, add it\n" in printed
    assert "jsonl has no split 'val' there, it has train: name one with --split; --holdout 0.1 holds" in printed


def test_a_holdout_is_checked_as_it_would_be_trained(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    printed, _ = checked(tmp_path, capsys, "--holdout", "0.3")
    counts = {
        split: tuple(map(int, re.search(rf"{split}: .*?(\d+) pictures, (\d+) boxes", printed).groups()))
        for split in ("train", "val")
    }
    assert sum(pictures for pictures, _ in counts.values()) == len(NAMES)
    assert sum(boxes for _, boxes in counts.values()) == 20 and counts["val"][0] in (2, 3)
    printed, _ = checked(tmp_path, capsys, "--limit", "4")
    assert "train: 17 questions, 4 of them read: 3 pictures" in printed


def test_the_page_shows_the_first_questions_and_is_harmless(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    _, page = checked(tmp_path, capsys)
    assert page.count("data:image/jpeg;base64,") == 8 and "<script" not in page
    assert "&lt;script&gt;alert(1)" in page and "line 16 has no" in page
    assert "left out" in page and ">17<" in page


def test_a_set_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no train.jsonl, or what else jsonl could be"):
        data.main(["--check", "--data", "jsonl", "--data_root", str(tmp_path)])


def test_many_rows_are_summed_up() -> None:
    lines = list(Split("train", 0, left_out=[f"row {k} is wrong" for k in range(25)]).lines())
    assert lines[1] == "  left out   25:" and lines[-2] == "    row 9 is wrong" and lines[-1] == "    and 15 more"
    assert len(lines) == 13
