"""user_code.py: files of the user's, which a flag names."""

import subprocess
import sys
from pathlib import Path

import pytest

from activeo3 import user_code
from activeo3.cli import ConfigError, is_code
from activeo3.config import TrainConfig

ROOT = Path(__file__).parent.parent


@pytest.fixture
def write(tmp_path: Path):
    """``write(text)``: a file of the user's, and the text that names ``find`` in it."""

    def write(text: str, name: str = "mine.py") -> str:
        (tmp_path / name).write_text(text)
        return f"{tmp_path / name}:find"

    return write


@pytest.mark.parametrize(
    "text, said",
    [
        ("def finds(crops): pass", r"mine.py defines no 'find' \(did you mean finds\?\); it defines finds\.$"),
        ("", r"mine.py defines no 'find'; it defines nothing\.$"),
        ("def find(:", r"this is no Python file \(.*line 1\)\.$"),
        ("\0", r"this is no Python file \("),
    ],
)
def test_a_name_is_looked_up_without_running_the_file(text: str, said: str, write) -> None:
    with pytest.raises(ConfigError, match=f"^--task_model .*mine.py:find: .*{said}"):
        TrainConfig(task_model=write(text))


def test_what_is_not_there_or_not_named_is_said(write, tmp_path: Path) -> None:
    write("")
    with pytest.raises(ConfigError, match=r"min.py:find: there is no such Python file \(did you mean mine.py\?\)\.$"):
        TrainConfig(task_model=f"{tmp_path / 'min.py'}:find")
    with pytest.raises(ConfigError, match=r"--task_model mine.py: say what to take from the file, as mine.py:NAME\.$"):
        TrainConfig(task_model="mine.py")
    with pytest.raises(ConfigError, match="--task_model is 'psychic'; it can be one of: mllm, detector, sam, oracle"):
        TrainConfig(task_model="psychic")
    assert not is_code("scenes:1") and not is_code("a/b") and is_code("x.py")


@pytest.mark.parametrize(
    "text, said",
    [
        ("find = 3", r"is a int, and must be a function find\(crops, queries\)\.$"),
        (
            "def find(crops): pass",
            r"is called as find\(crops, queries\), and takes \(crops\); give it these parameters\.$",
        ),
        ("def find(crops, queries, *, threshold): pass", r"and takes \(crops, queries, \*, threshold\)"),
        (
            "import math\ndef find(a, b): pass\nmath.sqrt(-1)",
            r"the file fails when it is run \(ValueError: .*, line 3\)\.$",
        ),
        (
            "import nowhere\ndef find(a, b): pass",
            r"fails when it is run \(ModuleNotFoundError: No module named 'nowhere', line 1\)\.$",
        ),
    ],
)
def test_what_cannot_be_called_is_said(text: str, said: str, write) -> None:
    with pytest.raises(ConfigError, match=said):
        user_code.load_function("--task_model", write(text), ("crops", "queries"))


@pytest.mark.parametrize("text", ["def find(crops, queries, threshold=1): pass", "find = lambda *all: all", "class find:\n  def __init__(self, a, b): pass",
                                  "from functools import partial as find"])  # fmt: skip
def test_whatever_takes_the_values_is_a_function(text: str, write) -> None:
    assert callable(user_code.load_function("--task_model", write(text), ("crops", "queries")))


def test_a_file_is_run_once_and_again_when_it_has_changed(write) -> None:
    named = write(
        "import time\nrun = []\ndef find(a, b):\n    run.append(1)\n    return len(run)\ndef other(): return run"
    )
    first, again = (user_code.load("--reward", named) for _ in range(2))
    assert first is again and first(0, 0) == 1
    assert user_code.load("--task_model", named.replace(":find", ":other"))() == [1]  # one module, one list
    write(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass find:\n    a: int\n    b: int"
    )
    assert user_code.load("--reward", named)(1, 2).b == 2
    assert user_code.digest(user_code.parts_of(named)[0]) and user_code.digest(Path("nowhere.py")) == ""


def test_a_wrong_name_is_answered_before_torch_is_imported(write) -> None:
    """And nothing of the file has run by then."""
    named = write("print('ran')\ndef find_all(crops, queries): pass")
    run = subprocess.run(
        [sys.executable, ROOT / "train.py", "--task_model", named], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 1 and "did you mean find_all?" in run.stderr and "loading torch" not in run.stderr
    assert "ran" not in run.stdout
