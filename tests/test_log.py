"""What a run leaves behind: nothing lost, nothing broken by a kill, nothing a model wrote runs."""

import base64
import io
import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from activeo3 import drawing, log, outputs
from activeo3.config import ConfigError
from activeo3.drawing import FOUND, REGION, TRUE, Sample, annotated_picture, contact_sheet, crops_strip, save_samples
from activeo3.html_report import html_table, series, smoothed, ticks, write_page
from activeo3.log import METRIC_GLOSSARY, RunLog, read_rows, rollout_lines, table
from activeo3.terminal import protect
from activeo3.types import Example, ParsedAnswer, Region, Reward, Rollout, TaskResult

GREY = (128, 128, 128)
NOTHING = TaskResult(np.zeros((0, 4)), np.zeros(0))


def example(size: tuple[int, int] = (400, 300), boxes: object = ((40, 40, 80, 80),)) -> Example:
    true = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    return Example("a/1", Image.new("RGB", size, GREY), "every <b>red</b> star", true)


def shown(
    text: str = "[]",
    regions: tuple[Region, ...] = (Region(20, 20, 120, 120),),
    outcome: TaskResult = NOTHING,
    title: str = "start",
) -> Sample:
    score = Reward({"format": 1.0, "task": 0.25}, 1.25)
    return Sample(example(), text, regions, outcome, score, title)


def row(step: int, **more: object) -> dict:
    return {
        "step": step,
        "reward": 1.0 + step,
        "reward/format": 0.5,
        "kl": 0.01,
        "time/rollout": 1.0,
        "time/update": 0.5,
        "time/step": 2.0,
        **more,
    }


def near(pixel: tuple[int, ...], colour: tuple[int, ...], slack: int = 12) -> bool:
    return all(abs(a - b) <= slack for a, b in zip(pixel, colour))


def has_colour(image: Image.Image, colour: tuple[int, int, int]) -> bool:
    return bool((np.abs(np.asarray(image).astype(int) - colour).max(axis=-1) <= 12).any())


# ------------------------------------------------------------------------- metrics.jsonl and resume


def test_resume_drops_later_rows_and_keeps_earlier_bytes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    # Spacing, order and number format of another writer: kept bytes must be the very same bytes.
    kept = b'{"step":1, "b": 1e-05,"a":0.10}\n{"step": 2}\n'
    path.write_bytes(kept + b'{"step": 3}\n{"step": 4, "rew')
    log = RunLog(tmp_path, 9, first_step=3)
    assert path.read_bytes() == kept
    log.step({"step": 3, "reward": 0.5})
    assert path.read_bytes() == kept + b'{"step": 3, "reward": 0.5}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]  # no temporary file


def test_a_fresh_start_clears_an_older_run(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n')
    RunLog(tmp_path, 9)
    assert read_rows(tmp_path / "metrics.jsonl") == []


def test_read_rows_forgives_only_a_torn_last_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st')
    assert read_rows(path) == [{"step": 1}]
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ConfigError, match="line 2 is not JSON"):
        read_rows(path)


def test_a_continued_run_says_which_rows_are_missing_or_doubled(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = "".join(f'{{"step": {step}}}\n' for step in (1, 2, 6, 6, 7, 9, 10, 11))
    for first, torn, said in (
        (11, "", f"{path} has no row of step 3–5, 8 and several rows of step 6; the curves of this run have gaps or doubled steps there.\n"),
        (3, "", ""), (1, "", ""), (0, "", ""), (13, '{"step": 12, "rew', f"{path} has no row of step 3–5, 8, 12 and several rows of step 6; "),
    ):  # fmt: skip
        path.write_text(rows + torn)
        RunLog(tmp_path, 99, first_step=first)
        out = capsys.readouterr().out
        assert out.startswith(said) and bool(out) == bool(said)
        assert [row["step"] for row in read_rows(path)] == [step for step in (1, 2, 6, 6, 7, 9, 10, 11) if step < first]
    path.unlink()
    RunLog(tmp_path, 99, first_step=3)
    assert capsys.readouterr().out.startswith(f"{path} has no row of step 1–2; ") and not path.exists()


@pytest.mark.parametrize(
    "line", ["3", '{"reward": 1}', '{"step": "1"}', '{"step": true}', '{"step": 1.5}', '{"step": null}', "[" * 99_999]
)
def test_rows_that_are_no_steps_are_not_lost_by_continuing(tmp_path: Path, line: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(f"{line}\n")
    with pytest.raises(ConfigError, match="metrics.jsonl(, line 1 is not JSON| has a row without 'step')"):
        RunLog(tmp_path, 9, first_step=2)
    assert (tmp_path / "metrics.jsonl").read_text() == f"{line}\n"


def test_rows_are_strict_json_and_deterministic(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 2)
    values = {
        "step": 1,
        "kl": math.nan,
        "ratio_max": math.inf,
        "reward": np.float32(0.25),
        "lengths": [3, -math.inf],
        "note": "\ud800 é\n",
    }
    log.step(values)
    log.step({**values, "step": 2})
    lines = log.path.read_bytes().splitlines()

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    first = json.loads(lines[0], parse_constant=refuse)
    assert list(first) == list(values)
    assert first == {**values, "kl": None, "ratio_max": None, "lengths": [3, None], "reward": 0.25}
    assert lines[1] == lines[0].replace(b'"step": 1', b'"step": 2')


# ---------------------------------------------------------------------------------------- console


def test_plain_lines_without_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with RunLog(tmp_path, 300) as log:
        log.say("hello")
        log.step(row(12, kl=math.nan))
        log.say("saved")
        log.step(row(13, **{"time/step": 4.0}))
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines() == [
        "hello",
        "step 12/300  reward 13.00 (format 0.50)  kl –  2.0 s (rollout 1.0 update 0.5)  ETA 9:36",
        "saved",
        "step 13/300  reward 14.00 (format 0.50)  kl 0.010  4.0 s (rollout 1.0 update 0.5)  ETA 14:21",
    ]


def test_the_other_ranks_are_silent(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with RunLog(tmp_path / "run", 300, speaks=False) as log:
        log.say("hello")
        log.step(row(1))
    assert capsys.readouterr() == ("", "") and not (tmp_path / "run").exists()


class Terminal(io.StringIO):
    """Both output streams of a person at a keyboard; ``screen`` is what stays to be seen."""

    encoding = "ascii"

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        lines = []
        for written in self.getvalue().split("\n"):
            line = ""
            for part in written.split("\r"):  # a carriage return writes over what is there
                line = part + line[len(part) :]
            lines.append(line.rstrip())
        return lines


def test_the_bar_never_breaks_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    protect()  # as the programs do
    with RunLog(tmp_path, 3) as log:
        for step in (1, 2, 3):
            log.say(f"before {step} é")  # not in this terminal's alphabet, and must not raise
            log.step(row(step))
    lines = terminal.screen()
    assert lines[:3] == ["before 1 ?", "before 2 ?", "before 3 ?"]
    assert "3/3, ETA 0:00  reward 4.00 (format 0.50)  kl 0.010" in lines[3]
    assert len(read_rows(log.path)) == 3


def test_rollout_lines_show_everything_and_nothing_harmful() -> None:
    text = "\x1b[2Jbox " + "x" * 900
    action = ParsedAnswer((), error="no list")
    rollout = Rollout(example(), (1, 2), text, False, action, (Region(10, 20, 110.4, 70),))
    lines = rollout_lines(rollout, NOTHING, Reward({"format": 0.0, "task": 0.25}, 0.25))
    assert "\x1b" not in lines and len(lines) < 900
    for words in (
        "a/1",
        "every <b>red</b> star",
        "no list",
        "length limit",
        "0.25  (",
        "(10, 20) to (110, 70), 100 x 50 px",
        "0 detections for 1 true box",
        "format 0.00  task 0.25",
    ):
        assert words in lines, words
    empty = Rollout(example(boxes=()), (), "", True, ParsedAnswer(()), ())
    assert "0 detections for 0 true boxes" in rollout_lines(empty, NOTHING, Reward({}, 0.0))


# ----------------------------------------------------------------------------------------- tables


def test_table_lines_up_and_marks_what_is_missing() -> None:
    rows = [
        {"method": "a|b\nc", "AP": (0.414, 0.36, 0.47), "n": 7},
        {"method": "long method", "n": 12},
        {"method": "x", "AP": math.nan, "n": None},
    ]
    lines = table(rows, ["method", "AP", "n"], "Results").splitlines()
    assert lines == [
        "### Results",
        "",
        "| method      |                AP |    n |",
        "| :---------- | ----------------: | ---: |",
        "| a\\|b c      | 0.41 [0.36, 0.47] |    7 |",
        "| long method |                 – |   12 |",
        "| x           |                 – |    – |",
    ]
    assert len(table([], ["method"]).splitlines()) == 2


def test_html_table_escapes_and_keeps_intervals() -> None:
    page = html_table([{"<i>": "<script> [1]", "AP": (0.5, 0.4, 0.6)}], ["<i>", "AP"])
    assert "<script>" not in page and "<th>&lt;i&gt;</th>" in page
    assert "&lt;script&gt; [1]" in page and "0.50<small>[0.40, 0.60]</small>" in page


def test_every_logged_metric_of_the_design_is_explained() -> None:
    names = """reward reward/format reward/no_overlap reward/area reward/coverage reward/task kl
        loss clip_fraction entropy ratio_max logp_difference/mean logp_difference/max tokens/mean tokens/truncated zero_spread reward_spread rewards_left_out
        grad_norm lr skipped_steps time/rollout time/task_model time/update time/step memory_gb
        reward/iou reward/match reward/count reward/text
        reward/location reward/class reward/number reward/missing
        reward/answer reward/evidence reward/calls""".split()
    assert set(names) == set(METRIC_GLOSSARY)
    assert all(all(metric) for metric in METRIC_GLOSSARY.values())
    assert len({len(line) for line in log.glossary_table().splitlines()}) == 1


# --------------------------------------------------------------------------------------- pictures


def test_boxes_are_drawn_where_they_are() -> None:
    outcome = TaskResult(np.array([[200.0, 100, 280, 180]]), np.ones(1))
    regions = [Region(300, 200, 500, 400)]
    image = annotated_picture(example((800, 600)), regions, outcome, max_side=400)
    assert image.size == (400, 358)  # half the size, and the caption strip of 58
    # Frames of what is proposed and true stand just outside the box, found ones just inside.
    assert near(image.getpixel((200, 98)), REGION) and near(image.getpixel((200, 201)), REGION)
    assert near(image.getpixel((148, 150)), REGION) and near(image.getpixel((251, 150)), REGION)
    assert near(image.getpixel((30, 19)), TRUE) and near(image.getpixel((41, 30)), TRUE)
    assert near(image.getpixel((101, 50)), FOUND) and near(image.getpixel((140, 50)), FOUND)
    assert near(image.getpixel((200, 150)), GREY) and near(image.getpixel((30, 30)), GREY)
    tint = image.getpixel((120, 70))
    assert tint[2] > tint[0] + 10  # translucent blue


def test_boxes_that_leave_the_picture_or_make_no_sense_are_survived() -> None:
    wild = [
        Region(-50, -50, 100, 100),
        Region(120, 90, 60, 30),
        Region(5000, 5000, 9000, 9000),
        Region(10, 10, 10, 50),
        Region(-1e9, 0, 1e9, math.inf),
    ]
    found = TaskResult(np.array([[-1e7, -5, 50, 1e7], [350, 250, 500, 500]]), np.ones(2))
    sample = example(boxes=[(-10, -10, 30, 30), (390, 290, 450, 350)])
    assert annotated_picture(sample, wild, found).size == (400, 358)
    assert near(annotated_picture(sample, wild[:1], NOTHING).getpixel((101, 60)), REGION)
    assert crops_strip(sample, wild, found, side=100).size == (312, 206)
    assert crops_strip(sample, [Region(0, 0, 9, 9)] * 500, found, side=50).height == 4 * 50 + 3 * 6


def test_crops_show_the_region_with_its_boxes() -> None:
    blue_corner = example((400, 300), boxes=[(200, 100, 240, 140)])
    blue_corner.image.paste((20, 20, 220), (300, 0, 400, 100))
    outcome = TaskResult(np.array([[20.0, 20, 60, 60]]), np.ones(1))
    regions = [Region(300, 0, 400, 100), Region(180, 80, 280, 180), Region(0, 0, 100, 100)]
    strip = crops_strip(blue_corner, regions, outcome, side=100)
    first, second, third = (strip.crop((x, 0, x + 100, 100)) for x in (0, 106, 212))
    assert near(first.getpixel((50, 50)), (20, 20, 220))
    assert near(first.getpixel((95, 95)), (20, 20, 220))
    assert near(second.getpixel((40, 19)), TRUE) and not has_colour(second, FOUND)
    assert near(third.getpixel((21, 40)), FOUND) and not has_colour(third, TRUE)
    assert has_colour(first, REGION)  # its number


def test_crowds_are_faint_and_not_counted() -> None:
    crowd = Example(
        "1", Image.new("RGB", (400, 300), GREY), "q", np.array([[40.0, 40, 80, 80]]), crowd=np.array([True])
    )
    assert not has_colour(annotated_picture(crowd, (), NOTHING).crop((0, 0, 400, 300)), TRUE)
    rollout = Rollout(crowd, (), "", True, ParsedAnswer(()), ())
    assert "for 0 true boxes" in rollout_lines(rollout, NOTHING, Reward({}, 0.0))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_nothing_to_draw_is_a_picture_too(mode: str) -> None:
    blank = Example("1", Image.new(mode, (30, 20)), "q" * 500, np.zeros((0, 4)))
    assert annotated_picture(blank, (), NOTHING).size == (320, 78)
    assert crops_strip(blank, (), NOTHING, side=90).size == (90, 90)
    assert crops_strip(blank, (Region(0, 0, 9, 9),), NOTHING, side=90).size == (90, 90)
    assert contact_sheet([]).size == (1, 1)


def test_contact_sheet_lays_rows() -> None:
    images = [
        Image.new("RGB", size, colour) for size, colour in [((10, 20), "red"), ((30, 10), "lime"), ((10, 10), "blue")]
    ]
    sheet = contact_sheet(images, columns=2, gap=5)
    assert sheet.size == (45, 35)
    assert [sheet.getpixel(at) for at in [(9, 19), (15, 0), (0, 25)]] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def test_samples_are_complete_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_samples(tmp_path, 12, [shown("one"), shown("<script>", regions=())])
    assert folder == tmp_path / "samples" / "step-000012"
    lines = read_rows(folder / "samples.jsonl")
    assert [line["text"] for line in lines] == ["one", "<script>"]
    assert lines[0]["regions"] == [[20, 20, 120, 120]] and lines[0]["true"] == [[40, 40, 80, 80]]
    assert lines[0]["terms"] == {"format": 1.0, "task": 0.25} and lines[1]["regions"] == []
    with Image.open(folder / lines[0]["picture"]) as picture:
        assert picture.size == (400, 358)
        assert near(picture.convert("RGB").getpixel((70, 18)), REGION, slack=40)
    save_samples(tmp_path, 12, [shown("again")])  # a resumed run comes by once more
    assert [line["text"] for line in read_rows(folder / "samples.jsonl")] == ["again"]

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(drawing, "save_jpeg", killed)
    with pytest.raises(KeyboardInterrupt):
        save_samples(tmp_path, 13, [shown()])
    assert not (tmp_path / "samples" / "step-000013").exists()
    assert save_samples(tmp_path, 13, []).exists()


# ------------------------------------------------------------------------------------------- page


class Tags(HTMLParser):
    """Every tag with its attributes, every declared picture, and all text between tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_is_self_contained_and_runs_nothing(tmp_path: Path) -> None:
    evil = "</pre><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;"
    outcome = TaskResult(np.array([[30.0, 30, 70, 70]]), np.ones(1))
    pair = (shown(evil, title="<u>"), shown("fine", outcome=outcome))
    rows = [row(step, **{"reward/<b>": 0.1}) for step in range(1, 40)]
    path = write_page(
        tmp_path / "new" / "report.html", evil, [f"data: {evil}", evil], rows, [{evil: evil}], [evil], [pair]
    )
    page = path.read_text(encoding="utf-8")
    tags = Tags(page)
    names = {tag for tag, _ in tags.seen}
    assert not names & {"script", "link", "iframe", "object", "u"}
    assert "http://" not in page and "https://" not in page and "url(" not in page
    for tag, attributes in tags.seen:
        assert not [name for name in attributes if name.startswith("on") or name == "href"]
        assert tag != "img" or attributes["src"].startswith("data:image/jpeg;base64,")
    assert tags.text.count(evil) == 7  # title, heading, two lines, a column, its cell, the answer
    assert sum(tag == "img" for tag, _ in tags.seen) == 4
    assert {entry.name for entry in path.parent.iterdir()} == {"report.html", outputs.LIST}


def test_page_shows_curves_gallery_and_glossary(tmp_path: Path) -> None:
    rows = [row(step, kl=None if step == 2 else 0.5) for step in range(1, 10)]
    page = write_page(tmp_path / "a.html", "t", [], rows, pairs=[(shown(), shown())])
    page = page.read_text("utf-8")
    captions = re.findall(r"<figcaption><b>(.*?)</b>", page)
    assert captions == ["reward", "reward/format", "kl", "time"]
    dots = [figure.count("<circle") for figure in page.split("<figure")[1:]]
    assert dots == [9, 9, 8, 0]
    assert "</i>rollout 1<" in page and "</i>update 0.5<" in page and "</i>other 0.5<" in page
    assert all(f"<code>{name}</code>" in page for name in METRIC_GLOSSARY)
    assert "nan" not in page.split("</style>")[1].split("<article>")[0]


def test_page_pictures_open_again(tmp_path: Path) -> None:
    page = write_page(tmp_path / "a.html", "t", [], pairs=[(shown(),)]).read_text("utf-8")
    data = re.findall(r'base64,([^"]+)"', page)
    sizes = [Image.open(io.BytesIO(base64.b64decode(picture))).size for picture in data]
    assert sizes == [(400, 358), (220, 220)]


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"step": 1}],
        [row(1)],
        [row(1), row(2)],
        [row(1, reward=None, kl=math.nan)],
        [row(1), {"step": 2, "time/step": 1.0, "time/save": 0.5}],
        [row(1, **{"time/step": 0.0})],
        [row(step, reward=-3.0, kl=0.0) for step in range(3)],
    ],
)
def test_page_of_hardly_anything(rows: list[dict], tmp_path: Path) -> None:
    nobody = shown("", regions=())
    page = write_page(tmp_path / "a.html", "t", [], rows, pairs=[(nobody,)]).read_text("utf-8")
    drawn = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert "nan" not in drawn and "inf" not in drawn
    assert page.endswith("</html>\n")


def test_smoothing_keeps_level_and_place() -> None:
    step = np.where(np.arange(300) < 150, 0.0, 1.0)
    mean = smoothed(step)
    assert len(mean) == 300 and mean[0] == 0 and mean[-1] == pytest.approx(1)
    assert abs(np.searchsorted(mean, 0.5) - 150) <= 1  # centred: the bend stays where it is
    assert np.array_equal(step, np.where(np.arange(300) < 150, 0.0, 1.0))
    rows = [{"step": 1, "a": 1.0}, {"step": 2, "a": None}, {"step": 3}, {"step": 4, "a": 3}]
    assert [part.tolist() for part in series(rows, "a")] == [[1, 4], [1, 3]]


def test_ticks_are_few_and_inside() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        low = random.normal() * 10 ** random.uniform(-6, 6)
        high = low + abs(low) * 10 ** random.uniform(-3, 6)
        marks = ticks(low, high)
        slack = 1e-6 * (high - low)
        assert 1 <= len(marks) <= 5
        assert low - slack <= marks[0] and marks[-1] <= high + slack
