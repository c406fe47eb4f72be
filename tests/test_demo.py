"""The demo as a newcomer starts it, and the course's notebook, cell by cell."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from launch import ROOT

from activeo3 import demo
from activeo3.cli import ConfigError


def test_a_group_is_printed_drawn_and_explained(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    demo.main(["--group", "4", "--output_dir", str(tmp_path)])
    printed = capsys.readouterr().out
    rows = np.array(re.findall(r"^ +(\d\.\d\d) +([+-]\d\.\d\d)  format", printed, re.M), dtype=float)  # (G, 2)
    assert rows.shape == (4, 2) and (np.diff(rows[:, 0]) <= 0).all()  # best answer first
    by_hand = (rows[:, 0] - rows[:, 0].mean()) / rows[:, 0].std()
    assert np.allclose(rows[:, 1], by_hand, atol=0.03)  # of numbers with two digits
    assert str(tmp_path / demo.PAGE) in printed and (tmp_path / demo.GROUP).stat().st_size > 1000
    page = (tmp_path / demo.PAGE).read_text()
    assert "green cross" in page and all(f"{reward:.2f}" in page for reward in rows[:, 0])


def test_a_checkpoint_stands_beside_the_start_policy(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    small = ["--group", "2", "--question", "0"]
    demo.main(["--checkpoint", checkpoint, *small, "--output_dir", str(tmp_path)])
    printed = capsys.readouterr().out
    assert printed.index("data/tiny: mean reward") < printed.index(f"{checkpoint}: mean reward")


def test_a_question_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--question -1: there are the questions 0 to "):
        demo.main(["--question", "-1", "--output_dir", str(tmp_path)])


def test_the_course_runs_and_every_number_by_hand_is_the_projects(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Its cells compare what they compute by hand with the project's functions."""
    monkeypatch.chdir(ROOT / "docs")
    cells = json.loads((ROOT / "docs" / "course.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") for cell in cells) and sum("assert" in cell for cell in code) >= 3
    names: dict = {}
    for number, cell in enumerate(code):
        exec(compile(cell.replace("answers=64", "answers=16"), f"course.ipynb, code cell {number}", "exec"), names)
    likelier = [float(x) for x in re.findall(r"answer is ([\d.]+) times as likely", capsys.readouterr().out)]
    assert likelier[0] > 1 > likelier[-1]  # the best and the worst answer
