"""GRPO in one look: one question, eight sampled answers, their rewards and advantages.

    python -m activeo3.demo                                            # the shipped start policy, before any training
    python -m activeo3.demo --checkpoint runs/tiny/checkpoint-160      # and a trained one beside it
    python -m activeo3.demo --question 7 --group 16 --seed 1           # another picture, more answers

Everything is that of train.py but the update. It prints the group, best answer first, and leaves it as a picture and as
a page.
"""

import argparse
import os
import sys
import webbrowser
from pathlib import Path
from typing import Sequence

from activeo3 import cli, processes, terminal

if __name__ == "__main__":
    print("activeo3: loading torch and transformers takes some seconds", file=sys.stderr, flush=True)

from PIL import Image
from PIL.Image import Resampling

from activeo3 import data, drawing, html_report, outputs
from activeo3.config import ConfigError
from activeo3.log import counted
from activeo3.notebook import Answer, Look, load
from activeo3.terminal import one_line
from activeo3.types import Example

START, FOLDER = "data/tiny", "runs/demo"
QUESTION = 39  # of the held-out split: the start policy answers it both well and badly
STORY, GROUP, PAGE = "story.png", "group.png", "group.html"
ADVANTAGE = """
advantage = (reward - mean of the group) / its standard deviation. A step of training makes answers above the mean more
likely and answers below it less likely. No label says where to look."""


def ranked(group: Look) -> list[Answer]:
    """The answers of a group, best first."""
    return sorted(group.answers, key=lambda answer: -answer.reward.total)


def lines(name: str, group: Look) -> list[str]:
    """A group as a table in words."""
    mean = sum(answer.reward.total for answer in group.answers) / len(group.answers)
    found = [f"\n{name}: mean reward {mean:.2f}", f"  {'reward':>6}  {'advantage':>9}  terms"]
    for answer in ranked(group):
        terms = " ".join(f"{term} {value:.2f}" for term, value in answer.reward.terms.items())
        boxes = counted(len(answer.boxes), "box", "boxes")
        advantage = answer.reward.advantage or 0.0  # a single answer has nothing to be compared with
        found.append(f"  {answer.reward.total:6.2f}  {advantage:+9.2f}  {terms}  ({boxes} found)")
    return found


def story(name: str, greedy: Look) -> Image.Image:
    """The greedy answer in one strip: what the policy saw, where it wants to look, the crops and what was found."""
    sample = greedy.best.sample()
    picture = sample.plain_picture(max_side=300)
    strip = [greedy.view.convert("RGB").resize(picture.size, Resampling.NEAREST), picture]
    if sample.regions is not None:
        strip.append(drawing.crops_strip(sample.example, sample.regions, sample.outcome, side=picture.height))
    found = ", ".join(words for _, words in drawing.verdicts(sample.example, sample.outcome))
    words = [("model", name), ("question", sample.example.query), ("reward", f"{sample.score.total:.2f} ({found})")]
    sheet = drawing.contact_sheet(strip, columns=3, gap=6)
    return drawing.contact_sheet([drawing.words_panel(words, sheet.width), sheet], columns=1, gap=0)


def run(sources: Sequence[str], example: Example, size: int, seed: int, folder: Path) -> Path:
    """Ask every model, print its group, write pictures and page into ``folder``; returns the page."""
    print(f'"{one_line(example.query, 200)}" is asked {size} times ({example.id})', flush=True)
    stories, sheets, rows = [], [], []
    for source in sources:
        policy = load(source)
        group = policy.ask(example, size, seed)
        print("\n".join(lines(source, group)), flush=True)
        stories.append(story(source, policy.ask(example)))
        sheets.append(group.picture())
        rows += [
            {"model": source, "reward": f"{answer.reward.total:.2f}", "answer": answer.text} for answer in ranked(group)
        ]
    print(ADVANTAGE)
    for name, pictures in ((STORY, stories), (GROUP, sheets)):
        outputs.leave_picture(folder / name, drawing.contact_sheet(pictures, columns=1))
    summary = [f"question: {example.query}", f"answers: {size} of each model, at temperature 1"]
    title = f"One group: {example.query}"
    return html_report.write_picture_page(
        folder / PAGE, title, summary, [*stories, *sheets], rows, ["model"] * (len(sources) > 1) + ["reward", "answer"]
    )


def has_screen() -> bool:
    """Can a page be opened where this program was started?"""
    return sys.stdout.isatty() and (
        sys.platform == "darwin" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The command line. Raises ConfigError for a question that the held-out split does not have."""
    parser = argparse.ArgumentParser(
        prog="python -m activeo3.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--checkpoint", default="", help="a trained policy, beside the start policy")
    parser.add_argument("--question", type=int, default=QUESTION, help=f"which of the held-out questions [{QUESTION}]")
    parser.add_argument("--group", type=int, default=8, help="answers of each policy [8]")
    parser.add_argument("--seed", type=int, default=0, help="draws the answers [0]")
    parser.add_argument("--output_dir", default=FOLDER, help=f"where pictures and page go [{FOLDER}]")
    config = parser.parse_args(argv)
    questions = data.open_dataset("scenes", "val")
    if not 0 <= config.question < len(questions):
        raise ConfigError(f"--question {config.question}: there are the questions 0 to {len(questions) - 1}.")
    sources = [START, *filter(None, [config.checkpoint])]
    page = run(sources, questions[config.question], config.group, config.seed, Path(config.output_dir))
    opened = has_screen() and webbrowser.open(page.resolve().as_uri())
    print(f"\npictures: {page.with_name(STORY)}, {page.with_name(GROUP)}; page{', now open' if opened else ''}: {page}")


if __name__ == "__main__":
    terminal.protect()
    processes.watch()
    processes.tell(kept=lambda: "nothing was trained")
    with processes.one_sentence(cli.OneLine):
        main()
