"""The page of a run while it goes on: asked questions change nothing, and every end leaves a page that is over."""

from dataclasses import replace
from pathlib import Path

import pytest
from launch import rank_environment
from small_runs import prepare, rows_of

import train
from activeo3 import html_report, processes, run_page
from activeo3.config import TrainConfig
from activeo3.run_page import most_different
from activeo3.samples import read_cards, steps_of
from activeo3.tasks import task_of
from activeo3.types import Reward

SMALL = TrainConfig(
    prompts=1, micro_prompts=1, group=2, steps=2, sensing_side=32, crop_side=32, max_new_tokens=6, task_max_new_tokens=6,
    eval_examples=2, samples_every=1, save_every=9, warmup=0,
)  # fmt: skip


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in rank_environment(0, 1).items():
        monkeypatch.setenv(name, value)
    prepare(monkeypatch)


def test_questions_asked_again_change_no_number_and_the_page_follows_the_run(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pages, write = [], html_report.write_run_page

    def listen(folder: Path, live: bool = False, ended: str = "") -> Path:
        path = write(folder, live, ended)
        pages.append((len(rows_of(folder)) if (folder / "metrics.jsonl").is_file() else 0, live))
        return path

    monkeypatch.setattr(html_report, "write_run_page", listen)
    train.main(replace(SMALL, output_dir=str(tmp_path / "with")))
    said = capsys.readouterr().out
    assert pages == [(0, True), (0, True), (1, True), (2, True), (2, False)]
    assert f"page    {tmp_path / 'with'}/report.html" in said and "step 1: answers drawn in" in said
    assert f"step 2: checkpoint {tmp_path / 'with'}/checkpoint-2" in said
    steps = steps_of(tmp_path / "with")
    assert [step for step, _ in steps] == [0, 1, 2]
    asked = [[card.line["id"] for card in read_cards(folder, "held-out")] for _, folder in steps]
    assert asked == [["mosaic/0", "mosaic/1"]] * 3
    group = read_cards(steps[1][1], "samples")
    assert len(group) == 2 and sum(card.line["advantage"] for card in group) == pytest.approx(0, abs=1e-6)
    train.main(replace(SMALL, output_dir=str(tmp_path / "without"), samples_every=0, eval_examples=0))
    assert rows_of(tmp_path / "with") == rows_of(tmp_path / "without")
    live = (tmp_path / "without" / "report.html").read_bytes()
    assert html_report.is_live(live)  # the process has not ended here: its end writes the last page
    monkeypatch.setattr(processes._State, "why", "Ctrl-C")
    processes._State.at_end()
    over = (tmp_path / "without" / "report.html").read_text()
    assert not html_report.is_live(over.encode()) and "finished: 2 steps" in over


def test_the_group_that_differs_most_is_shown() -> None:
    rewards = [1.0, 1.0, 0.0, 3.0, 2.0, float("nan")]
    scored = [(place, None, Reward({}, value)) for place, value in enumerate(rewards)]
    assert [place for place, *_ in most_different(scored, 2)] == [2, 3]


def test_the_largest_reward_is_known_before_a_run() -> None:
    config = TrainConfig()
    known = run_page.facts(config, task_of(config))["ceilings"]
    assert known["reward"] == 6.0 and known["reward/task"] == 2.0 and known["reward/coverage"] == 1.0
