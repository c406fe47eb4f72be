"""terminal.py: nothing that strangers wrote acts on a terminal, forges a line or deceives a reader, wherever text
leaves."""

import ast
import inspect
import json
import re
import runpy
import subprocess
import sys
import textwrap
import unicodedata
from pathlib import Path
from typing import Any, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from activeo3 import eval_output, html_report, log, samples
from activeo3.cli import ConfigError, read_command_line
from activeo3.data_io import DataError
from activeo3.eval_config import EvalConfig
from activeo3.eval_demo import names
from activeo3.model_files import ModelError
from activeo3.monitor import TrainingMonitor
from activeo3.terminal import columns, one_line, printable
from activeo3.types import Example, ParsedAnswer, Reward, Rollout, TaskResult

ROOT = Path(__file__).parent.parent
CONTROLS = [chr(code) for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"]
BIDI = list("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")
ACTING = [*CONTROLS, *BIDI, "\u2028", "\u2029", "\ufeff", "\u00ad", "\U000e0041", "\ud83d", "\udcff"]
EVIL = "\x1b]0;mine\x07\x1b[2J\x9b31m\u202etac\u2066\r\ndrawn in /etc/passwd\x85<script>alert(1)</script>![x](http://a.b/c)|\\input{/etc/passwd}"


def harmless(text: str) -> bool:
    """A second opinion: categories of Unicode, and not what Python calls printable."""
    kinds = {unicodedata.category(c) for c in text if c not in "\n\t\u200c\u200d"}
    return kinds.isdisjoint({"Cc", "Cf", "Cs", "Zl", "Zp"})


@pytest.mark.parametrize("character", ACTING, ids=lambda character: f"U+{ord(character):04X}")
def test_no_character_acts(character: str) -> None:
    for text in (character, f"a{character}b", f"{character}[31m"):
        assert harmless(printable(text)) and len(printable(text)) == len(text)
        assert harmless(one_line(text)) and len(one_line(text).splitlines()) == 1


def test_letters_of_the_world_stay_as_they_are() -> None:
    for text in (
        "na\u00efve caf\u00e9",
        "\u732b\u3000\u72ac",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\u0915\u094d\u200d\u0937",
        "\U0001f469\u200d\U0001f680",
        "e\u0301",
        "1\u00a0000",
        "a\n\tb",
    ):
        assert printable(text) == text


@given(st.text(alphabet=st.characters(exclude_categories=[])), st.integers(0, 40))
def test_any_text(text: str, limit: int) -> None:
    assert harmless(printable(text, limit)) and (not limit or len(printable(text, limit)) <= max(limit, 0) + 3)
    assert len(one_line(text).splitlines()) <= 1 and printable(printable(text)) == printable(text)


# ---------------------------------------------------------------------- where text leaves


PROGRAM = """
import argparse, logging, sys, warnings
from tqdm import tqdm
from activeo3 import terminal
terminal.protect()
terminal.protect()
evil = {evil!r}
print(evil), print(evil, file=sys.stderr)
sys.stdout.write(evil + "\\n"), warnings.warn(evil), logging.warning(evil)
for _ in tqdm(range(2), desc=evil): tqdm.write(evil, file=sys.stdout)
"""


@pytest.mark.parametrize(
    "last, code",
    [("sys.exit(evil)", 1), ("raise RuntimeError(evil)", 1), ("argparse.ArgumentParser().parse_args([evil])", 2)],
)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_whatever_prints_prints_harmless_text(last: str, code: int, encoding: str) -> None:
    program = PROGRAM.format(evil=EVIL.replace("\r", "") + "\udcff") + last
    environment = {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding}
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment, timeout=60)
    assert ran.returncode == code, ran.stderr
    for stream in (ran.stdout.decode(encoding), ran.stderr.decode(encoding)):
        # Python quotes the program's own lines in a traceback; a bar begins with a return.
        assert harmless(re.sub("^\r| *\r", "", stream, flags=re.M)) and stream.count("drawn in") >= 2
    assert b"\x1b" not in ran.stdout + ran.stderr and b"\x9b" not in ran.stdout + ran.stderr


def test_a_bar_of_progress_still_returns_to_the_beginning_of_its_line() -> None:
    program = "import sys; from activeo3 import terminal; terminal.protect(); sys.stderr.write('\\r50 %\\rstep 7'); print(sys.stdout.isatty())"
    ran = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        env={"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
        timeout=60,
    )
    assert ran.stderr.decode() == "\r50 %\u00b7step 7" and ran.stdout == b"False\n"


def mains() -> Iterator[tuple[str, list[str]]]:
    for path in [*ROOT.glob("*.py"), *(ROOT / "activeo3").glob("*.py"), ROOT / "data" / "tiny" / "make.py"]:
        blocks = [
            node
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)
        ]
        if blocks:
            statements = [ast.unparse(statement) for block in blocks for statement in block.body]
            if "cli.read_command_line(" in " ".join(statements):  # the scripts share how they begin
                body = textwrap.dedent(inspect.getsource(read_command_line))
                statements = [ast.unparse(one) for one in ast.parse(body).body[0].body[1:]] + statements
            yield path.name, statements


def test_every_program_is_protected_before_it_does_anything() -> None:
    programs = dict(mains())
    assert {"train.py", "evaluate.py", "curriculum.py", "data.py", "memory.py", "make.py"} <= set(programs)
    for name, statements in programs.items():
        before = statements[: statements.index("terminal.protect()")]
        waking_up = (
            "import ",
            "processes.watch()",
            "print('activeo3: loading",
            "if os.environ.get('RANK', '0') == '0':\n    print('activeo3: loading",
        )
        assert all(statement.startswith(waking_up) for statement in before), name


def test_every_program_ends_with_a_sentence_when_it_is_asked_to() -> None:
    for name, statements in mains():
        assert "processes.watch()" in statements and any(
            text.startswith("with processes.one_sentence(") for text in statements
        ), name


@pytest.mark.parametrize("kind", [ConfigError, DataError, ModelError])
def test_an_error_is_one_line(kind: type[Exception]) -> None:
    said = str(kind(f"a.json: category {EVIL} has no id"))
    assert said.splitlines() == [said] and harmless(said)


# ---------------------------------------------------------------------- what is made of names, ids and answers


def rollout(text: str = EVIL) -> Rollout:
    example = Example(EVIL, Image.new("RGB", (8, 8)), EVIL, log.np.zeros((0, 4)))
    return Rollout(example, (1,), text, True, ParsedAnswer((), error=EVIL), ())


def test_ids_and_answers_forge_no_line_of_the_log() -> None:
    outcome = TaskResult(log.np.zeros((0, 4)), log.np.zeros(0))
    lines = log.rollout_lines(rollout(), outcome, Reward({}, 0.0))
    assert harmless(lines) and not [line for line in lines.splitlines()[1:] if not line.startswith("  ")]
    said: list[str] = []
    row = {"step": 1, "skipped_steps": 1, "rewards_left_out": 1, "zero_spread": 0.0, "tokens/truncated": 0.0}
    TrainingMonitor(5, 0).check(row, lambda: [EVIL, "b"], lambda: [EVIL], said.append)
    assert len(said) == 2 and all(len(line.splitlines()) == 1 and harmless(line) for line in said)


def test_tables_hold_one_line_a_row_and_no_tag() -> None:
    cells = [{"method": EVIL, "AP": 0.5}, {"method": "plain", "AP": 0.25}]
    text = log.table(cells, ["method", "AP"], EVIL)
    title, _, *lines = text.splitlines()
    assert len(lines) == 4 and harmless(text) and len({columns(line) for line in lines}) == 1
    part = eval_output.Table(EVIL, cells, ["method", "AP"], 2)
    written = eval_output.as_markdown([part])
    assert "<" not in written and "](" not in written
    latex = eval_output.as_latex(part)
    assert harmless(latex) and r"\input" not in latex and r"\textbackslash{}input\{/etc" in latex
    assert len(latex.splitlines()) == len(
        eval_output.as_latex(eval_output.Table("t", [{"method": "a", "AP": 0.5}] * 2, ["method", "AP"], 2)).splitlines()
    )


def test_columns_line_up_whatever_the_alphabet() -> None:
    cells = [
        {"what": what, "n": 1}
        for what in ("cat", "\u732b", "caf\u0065\u0301", "\u0e19\u0e49\u0e33", "\uff21", "\U0001f98a")
    ]
    lines = log.table(cells, ["what", "n"]).splitlines()
    assert {columns(line) for line in lines} == {len(lines[0])}
    pad = {line.split("|")[1] for line in lines[2:]}
    assert " \u732b   " in pad and " cafe\u0301 " in pad


def test_pages_show_what_was_written_and_run_none_of_it(tmp_path: Path) -> None:
    """A page has no script; every text is escaped; and a policy forbids what would be forgotten."""
    outcome = TaskResult(log.np.zeros((0, 4)), log.np.zeros(0), texts=(EVIL,))
    shown = samples.Sample.of(rollout(), outcome, Reward({EVIL: 1.0}, 0.0), EVIL)
    card = shown.card(small=True)
    page = html_report.Page(
        title=EVIL, summary=[f"data: {EVIL}", EVIL], status=EVIL, rows=[{"step": 1, EVIL: 1.0, f"time/{EVIL}": 1.0}],
        measure=EVIL, headline=[html_report.Bar(EVIL, EVIL, 0.5, 0.4, 0.6)], film=[(1, [card])], groups=[(1, [card], b"")],
        pairs=[(card, card)], table=html_report.Table([{"m": EVIL}], ["m", EVIL], {EVIL: EVIL}, [EVIL], EVIL),
    )  # fmt: skip
    html_report.write_page(tmp_path / "a.html", page)
    html_report.write_picture_page(tmp_path / "b.html", EVIL, [EVIL], [Image.new("RGB", (8, 8))], [{"m": EVIL}], ["m"])
    for name in ("a.html", "b.html"):
        content = (tmp_path / name).read_text()
        assert harmless(content) and "<script" not in content and content.count("&lt;script&gt;") >= 4
        outside = r"\son\w+=|javascript:|(?<!xlink:)href=|href=\"[^#]"  # a chart's point refers to its own shape
        assert "default-src 'none'" in content and not re.search(outside, content.replace("&#39;", ""))


def test_the_name_of_a_drawn_picture_is_harmless_and_its_own(tmp_path: Path) -> None:
    def drawn(name: str) -> str:
        return names(EvalConfig(checkpoint=("data/tiny",), image=str(tmp_path / name), find="x"))[0]

    assert drawn("a.jpg") == "a.jpg.looked.png"
    odd = [drawn(name) for name in ("a\x1b.jpg", "a\x07.jpg", "a\nb.jpg", "a b.jpg", "\u202egpj.exe", "\udcff.jpg")]
    assert len(set(odd)) == 6 and all(harmless(name) and "\n" not in name for name in odd)


# ---------------------------------------------------------------------- a whole evaluation


def hostile_coco(root: Path) -> str:
    """A folder in COCO's format in which every name is hostile. Returns its root."""
    name = EVIL.replace("/", "-").replace("\0", "")
    (root / "evil/images").mkdir(parents=True)
    pictures = [
        {"id": f"{name}{k}", "file_name": f"{k}\x1b[31m\u202e.png", "width": 40, "height": 30} for k in range(3)
    ]
    for picture in pictures[:2]:
        Image.new("RGB", (40, 30), "red").save(root / "evil/images" / picture["file_name"])
    (root / "evil/images" / pictures[1]["file_name"]).write_bytes(b"no picture")
    boxes = [
        {"id": k, "image_id": picture["id"], "category_id": name, "bbox": [5, 5, 9, 9], "area": 81, "iscrowd": 0}
        for k, picture in enumerate(pictures)
    ]
    content = {"images": pictures, "annotations": boxes, "categories": [{"id": name, "name": EVIL}]}
    (root / "evil/instances_train.json").write_text(json.dumps(content))
    return str(root)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, make_vlm: Any) -> Iterator[tuple[str, Path]]:
    """(what was printed, output folder) of an evaluation on hostile data."""
    root = tmp_path_factory.mktemp("hostile")
    make_vlm("qwen3_vl").save(root / "model")
    patch, streams = pytest.MonkeyPatch(), [open(root / name, "w+", encoding="utf-8") for name in ("out", "err")]
    small = "--crop_side 32 --sensing_side 32 --max_new_tokens 5 --task_max_new_tokens 5 --resamples 20".split()
    patch.setattr(sys, "argv", ["evaluate.py", "--checkpoint", str(root / "model"), "--benchmark", "coco", "--data_root", hostile_coco(root / "data") + "/evil",
                                "--split", "train", "--methods", "cot", "--output_dir", str(root / "eval"), *small])  # fmt: skip
    patch.setattr(sys, "stdout", streams[0]), patch.setattr(sys, "stderr", streams[1])
    try:
        runpy.run_path(str(ROOT / "evaluate.py"), run_name="__main__")
    finally:
        patch.undo()
        for stream in streams:
            stream.close()
    yield (root / "out").read_text() + (root / "err").read_text(), root / "eval"


def test_an_evaluation_of_hostile_data_prints_and_writes_harmless_text(evaluated: tuple[str, Path]) -> None:
    printed, folder = evaluated
    assert "left out" in printed and "AP50" in printed
    lines = re.sub("^\r| *\r", "", printed, flags=re.M)
    assert harmless(lines) and "\ndrawn in" not in printed
    written = [path for path in folder.iterdir() if path.suffix in (".md", ".tex", ".html", ".txt")]
    assert len(written) >= 4
    for path in written:
        text = path.read_text()
        assert harmless(text) and (path.suffix == ".txt" or "<script" not in text), path
        assert path.suffix == ".html" or "\ndrawn in" not in text, path
