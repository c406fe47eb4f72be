"""GRPO in one look: one question, eight sampled answers, their rewards and advantages.

    python -m activeo3.demo                                            # the shipped start policy, before any training
    python -m activeo3.demo --checkpoint runs/tiny/checkpoint-160      # and a trained one beside it
    python -m activeo3.demo --question 7 --group 16 --seed 1           # another picture, more answers
    python -m activeo3.demo --preset zoom_qa                           # another task

Everything but the update is that of train.py, under the same flags. It prints the group, best answer first, and leaves
it as a picture and as a page.
"""

import argparse
import os
import sys
import webbrowser
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Sequence

from activeo3 import cli, processes, terminal
from activeo3.config import ConfigError, TrainConfig

if __name__ == "__main__":
    print("activeo3: loading torch and transformers takes some seconds", file=sys.stderr, flush=True)

import torch
from PIL import Image
from PIL.Image import Resampling

from activeo3 import data, drawing, grpo, html_report, outputs
from activeo3.log import counted
from activeo3.model import VisionLanguageModel
from activeo3.rollout import sample_rollouts
from activeo3.samples import Sample, group_picture
from activeo3.tasks import task_of
from activeo3.terminal import one_line
from activeo3.types import Example, Reward, Rollout, TaskResult

FOLDER = "runs/demo"
QUESTION = 39  # of the held-out split: the start policy answers it both well and badly
STORY, GROUP, PAGE = "story.png", "group.png", "group.html"
ADVANTAGE = """
advantage = (reward - mean of the group) / its standard deviation. A step of training makes answers above the mean more
likely and answers below it less likely. No label says where to look."""
Scored = tuple[Rollout, TaskResult, Reward]


class Group(NamedTuple):
    """G answers of one model to one question, and its greedy one; each is (rollout, result, reward)."""

    model: str
    samples: list[Scored]
    greedy: Scored

    def __str__(self) -> str:
        """A table, best answer first."""
        rewards = [reward for _, _, reward in self.samples]
        mean = sum(reward.total for reward in rewards) / len(rewards)
        lines = [f"\n{self.model}: mean reward {mean:.2f}", f"  {'reward':>6}  {'advantage':>9}  terms"]
        for _, result, reward in sorted(self.samples, key=_by_reward):
            terms = " ".join(f"{name} {value:.2f}" for name, value in reward.terms.items())
            found = counted(len(result.boxes_px), "box", "boxes")
            lines.append(f"  {reward.total:6.2f}  {reward.advantage:+9.2f}  {terms}  ({found} found)")
        return "\n".join(lines)


def _by_reward(sample: Scored) -> float:
    return -sample[2].total


def sample_group(source: str, frozen: VisionLanguageModel, example: Example, config: TrainConfig) -> Group:
    """``config.group`` answers of the model ``source`` to one question; ``frozen`` works on the crops.

    One step of train.py without its update: rollout, task model, reward, advantage.
    """
    task = task_of(config)
    policy = frozen if source == config.model else VisionLanguageModel.load(source, torch.float32, base=config.model)
    torch.manual_seed(config.seed)
    sampled = [(config.group, task.sampling(config.temperature)), (1, task.sampling())]
    rollouts = [one for how in sampled for one in sample_rollouts(policy, task, [example], *how)[1][0]]
    results = task.act(frozen, rollouts)
    rewards = [task.reward(rollout, result) for rollout, result in zip(rollouts, results)]
    totals = torch.tensor([[reward.total for reward in rewards[:-1]]])  # (1, G), without the greedy one
    advantages = grpo.advantages(totals, config.advantage, config.divide_by_std)[0].tolist()
    rewards[:-1] = [replace(reward, advantage=value) for reward, value in zip(rewards, advantages)]
    *samples, greedy = zip(rollouts, results, rewards)
    return Group(source, samples, greedy)


def story(group: Group, view: Image.Image) -> Image.Image:
    """The greedy answer in one strip: what the policy saw, where it wants to look, the crops and what was found."""
    sample = Sample.of(*group.greedy)
    picture = sample.plain_picture(max_side=300)
    strip = [view.convert("RGB").resize(picture.size, Resampling.NEAREST), picture]
    if sample.regions is not None:
        strip.append(drawing.crops_strip(sample.example, sample.regions, sample.outcome, side=picture.height))
    found = ", ".join(words for _, words in drawing.verdicts(sample.example, sample.outcome))
    words = [
        ("model", group.model),
        ("question", sample.example.query),
        ("reward", f"{sample.score.total:.2f} ({found})"),
    ]
    sheet = drawing.contact_sheet(strip, columns=3, gap=6)
    return drawing.contact_sheet([drawing.words_panel(words, sheet.width), sheet], columns=1, gap=0)


def show(groups: Sequence[Group], view: Image.Image, config: TrainConfig, folder: Path) -> Path:
    """Print the groups, write the pictures and the page into ``folder``, return the page's path."""
    for group in groups:
        print(group)
    print(ADVANTAGE)
    stories = drawing.contact_sheet([story(group, view) for group in groups], columns=1)
    sheets = [group_picture([Sample.of(*one) for one in group.samples], view) for group in groups]
    for name, picture in ((STORY, stories), (GROUP, drawing.contact_sheet(sheets, columns=1))):
        outputs.leave_picture(folder / name, picture)
    rows = [
        {"model": group.model, "reward": f"{reward.total:.2f}", "advantage": f"{reward.advantage:+.2f}"}
        | {name: f"{value:.2f}" for name, value in reward.terms.items()} | {"answer": rollout.text}
        for group in groups for rollout, _, reward in sorted(group.samples, key=_by_reward)
    ]  # fmt: skip
    query = groups[0].samples[0][0].example.query
    summary = [f"question: {query}", f"answers: {config.group} of each model, at temperature {config.temperature:g}"]
    columns = list(rows[0])
    return html_report.write_picture_page(
        folder / PAGE, f"One group: {query}", summary, [stories, *sheets], rows, columns
    )


def run(config: TrainConfig, checkpoint: str, question: int) -> Path:
    """Ask the start policy and, unless it is "", the ``checkpoint``; returns the page.

    Raises ConfigError for a question that the held-out split does not have.
    """
    dataset = data.open_dataset(config.data, config.eval_split, config.data_root, None, **config.dataset_options)
    if not 0 <= question < len(dataset):
        raise ConfigError(f"--question {question}: {config.eval_split} has the questions 0 to {len(dataset) - 1}.")
    task, frozen = task_of(config), VisionLanguageModel.load(config.model, torch.float32)
    (example,) = task.prepare_batch(frozen, [task.prepare(dataset[question])])
    print(f'"{one_line(example.query, 200)}" is asked {config.group} times ({example.id})', flush=True)
    view = task.prompt(frozen, example).view
    groups = [sample_group(source, frozen, example, config) for source in (config.model, checkpoint) if source]
    return show(groups, view[0] if isinstance(view, list) else view, config, Path(config.output_dir))


def has_screen() -> bool:
    """Can a page be opened where this program was started?"""
    return sys.stdout.isatty() and (
        sys.platform == "darwin" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: flags of its own, and train.py's."""
    parser = argparse.ArgumentParser(
        prog="python -m activeo3.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--checkpoint", default="", help="a trained policy, beside the start policy")
    parser.add_argument("--question", type=int, default=QUESTION, help=f"which of the held-out questions [{QUESTION}]")
    own, rest = parser.parse_known_args(argv)
    config = TrainConfig.from_args(["--output_dir", FOLDER, *rest])
    page = run(config, own.checkpoint, own.question)
    opened = has_screen() and webbrowser.open(page.resolve().as_uri())
    print(f"\npictures: {page.with_name(STORY)}, {page.with_name(GROUP)}; page{', now open' if opened else ''}: {page}")


if __name__ == "__main__":
    terminal.protect()
    processes.watch()
    processes.tell(kept=lambda: "nothing was trained")
    with processes.one_sentence(cli.OneLine):
        main()
