"""What a run leaves behind: nothing lost, nothing broken by a kill, nothing a model wrote runs."""

import io
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scripted import GREY, NOTHING, grey_example, sample_of

from activeo3 import monitor, samples
from activeo3.config import ConfigError
from activeo3.drawing import (
    FOUND,
    LACKING,
    REGION,
    TRUE,
    annotated_picture,
    contact_sheet,
    crops_strip,
    judged,
    verdicts,
)
from activeo3.log import RunLog, read_rows, rollout_lines, table
from activeo3.samples import Sample, group_picture, save_samples
from activeo3.terminal import protect
from activeo3.types import Example, ParsedAnswer, Region, Reward, Rollout, TaskResult


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
        "step 12/300  reward 13.00 (format 0.50)  kl –  2.0 s (rollout 1.0 update 0.5)  ETA 09:36",
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
    assert "3/3, ETA 00:00  reward 4.00 (format 0.50)  kl 0.010" in lines[3]
    assert len(read_rows(log.path)) == 3


def test_rollout_lines_show_everything_and_nothing_harmful() -> None:
    text = "\x1b[2Jbox " + "x" * 900
    action = ParsedAnswer((), error="no list")
    rollout = Rollout(grey_example(), (1, 2), text, False, action, (Region(10, 20, 110.4, 70),))
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
    empty = Rollout(grey_example(boxes=()), (), "", True, ParsedAnswer(()), ())
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


def test_every_logged_metric_of_the_design_is_explained() -> None:
    names = """reward reward/format reward/no_overlap reward/area reward/coverage reward/task kl
        loss clip_fraction entropy ratio_max logp_difference/mean logp_difference/max tokens/mean tokens/truncated zero_spread reward_spread rewards_left_out
        grad_norm lr skipped_steps time/rollout time/task_model time/update time/step memory_gb
        reward/iou reward/match reward/count reward/text
        reward/location reward/class reward/number reward/missing
        reward/answer reward/evidence reward/calls price tokens/repeating""".split()
    assert set(names) == set(monitor.METRIC_GLOSSARY)
    assert all(all(metric) for metric in monitor.METRIC_GLOSSARY.values())
    assert len({len(line) for line in monitor.glossary_table().splitlines()}) == 1


# --------------------------------------------------------------------------------------- pictures


def test_boxes_are_drawn_where_they_are() -> None:
    outcome = TaskResult(np.array([[200.0, 100, 280, 180]]), np.ones(1))
    regions = [Region(300, 200, 500, 400)]
    image = annotated_picture(grey_example((800, 600)), regions, outcome, max_side=400)
    assert image.size == (400, 358)  # half the size, and the caption strip of 58
    # Frames of what is proposed and true stand just outside the box, found ones just inside.
    assert near(image.getpixel((200, 98)), REGION) and near(image.getpixel((200, 201)), REGION)
    assert near(image.getpixel((148, 150)), REGION) and near(image.getpixel((251, 150)), REGION)
    assert near(image.getpixel((30, 19)), LACKING) and near(image.getpixel((41, 30)), LACKING)
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
    sample = grey_example(boxes=[(-10, -10, 30, 30), (390, 290, 450, 350)])
    assert annotated_picture(sample, wild, found).size == (400, 358)
    assert near(annotated_picture(sample, wild[:1], NOTHING).getpixel((101, 60)), REGION)
    assert crops_strip(sample, wild, found, side=100).size == (312, 206)
    assert crops_strip(sample, [Region(0, 0, 9, 9)] * 500, found, side=50).height == 4 * 50 + 3 * 6


def test_crops_show_the_region_with_its_boxes() -> None:
    blue_corner = grey_example((400, 300), boxes=[(200, 100, 240, 140)])
    blue_corner.image.paste((20, 20, 220), (300, 0, 400, 100))
    outcome = TaskResult(np.array([[20.0, 20, 60, 60]]), np.ones(1))
    regions = [Region(300, 0, 400, 100), Region(180, 80, 280, 180), Region(0, 0, 100, 100)]
    strip = crops_strip(blue_corner, regions, outcome, side=100)
    first, second, third = (strip.crop((x, 0, x + 100, 100)) for x in (0, 106, 212))
    assert near(first.getpixel((50, 50)), (20, 20, 220))
    assert near(first.getpixel((95, 95)), (20, 20, 220))
    assert near(second.getpixel((40, 19)), LACKING) and not has_colour(second, FOUND)
    assert near(third.getpixel((21, 40)), FOUND) and not has_colour(third, LACKING)
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


def test_what_is_right_missing_and_wrong_has_a_colour_each() -> None:
    """Two true boxes and a crowd; one is found twice, one not at all, and one box is far from all."""
    true = np.array([[40.0, 40, 80, 80], [200, 40, 240, 80], [300, 200, 380, 280]])
    example = Example("1", Image.new("RGB", (400, 300), GREY), "q", true, crowd=np.array([False, False, True]))
    found = TaskResult(
        np.array([[42.0, 40, 80, 80], [40, 40, 76, 80], [100, 200, 140, 240], [310, 210, 370, 270]]), np.ones(4)
    )
    right, missed = judged(example, found)
    assert right.tolist() == [True, False, False, True] and missed.tolist() == [False, True, False]
    assert [words for _, words in verdicts(example, found)] == ["2 right", "1 missing", "2 wrong"]
    image = annotated_picture(example, (), found, max_side=400)
    assert near(image.getpixel((60, 39)), TRUE) and near(image.getpixel((220, 39)), LACKING)
    assert near(image.getpixel((101, 201)), FOUND) and near(image.getpixel((311, 211)), TRUE)
    assert [words for _, words in verdicts(grey_example(boxes=()), TaskResult(np.zeros((0, 4)), np.zeros(0)))] == [
        "nothing is there, nothing was found"
    ]


def test_a_group_is_one_picture_sorted_by_reward() -> None:
    rewards, advantages = [1.0, math.nan, 3.0], [-0.5, None, 1.5]
    shades = [(200, 0, 0), (0, 0, 200), (90, 0, 200)]
    group = []
    for reward, advantage, shade in zip(rewards, advantages, shades):
        example = Example("a", Image.new("RGB", (260, 200), shade), "every <b>star</b>")
        group.append(Sample(example, "[]", (), NOTHING, Reward({}, reward, advantage)))
    sheet = group_picture(group, Image.new("RGB", (30, 20), (250, 250, 0)))
    assert sheet.width == 4 * 260 + 3 * 12
    found = [sheet.getpixel((x, sheet.height - 150)) for x in (100, 372, 644)]
    assert found == [shades[2], shades[0], shades[1]]  # the best first, the one without a number last
    assert near(sheet.getpixel((40, 140)), (250, 250, 0))
    bars = np.asarray(sheet, dtype=int)[-10]
    green = [x for x in range(260) if near(bars[x], TRUE)]
    red = [x - 272 for x in range(272, 532) if near(bars[x], LACKING)]
    assert (
        (min(green), max(green)) == (131, 250) and len(red) == pytest.approx(len(green) / 3, abs=2) and max(red) <= 131
    )
    assert group_picture(group[:1]).height < sheet.height


def test_contact_sheet_lays_rows() -> None:
    images = [
        Image.new("RGB", size, colour) for size, colour in [((10, 20), "red"), ((30, 10), "lime"), ((10, 10), "blue")]
    ]
    sheet = contact_sheet(images, columns=2, gap=5)
    assert sheet.size == (45, 35)
    assert [sheet.getpixel(at) for at in [(9, 19), (15, 0), (0, 25)]] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def test_samples_are_complete_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_samples(tmp_path, 12, [sample_of("one"), sample_of("<script>", regions=())])
    assert folder == tmp_path / "samples" / "step-000012"
    lines = read_rows(folder / "samples.jsonl")
    assert [line["text"] for line in lines] == ["one", "<script>"]
    assert lines[0]["regions"] == [[20, 20, 120, 120]] and lines[0]["true"] == [[40, 40, 80, 80]]
    assert lines[0]["terms"] == {"format": 1.0, "task": 0.25} and lines[1]["regions"] == []
    with Image.open(folder / lines[0]["files"]["picture"]) as picture:
        assert picture.size == (400, 358)
        assert near(picture.convert("RGB").getpixel((70, 18)), REGION, slack=40)
    save_samples(tmp_path, 12, [sample_of("again")])  # a resumed run comes by once more
    assert [line["text"] for line in read_rows(folder / "samples.jsonl")] == ["again"]

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(samples, "save_jpeg", killed)
    with pytest.raises(KeyboardInterrupt):
        save_samples(tmp_path, 13, [sample_of()])
    assert not (tmp_path / "samples" / "step-000013").exists()
    assert save_samples(tmp_path, 13, []).exists()
