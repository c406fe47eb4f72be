"""One picture of the user's: what is in it, or the answer to a question in words, drawn into a PNG and onto a page.

    --find "red star"           the checkpoint proposes regions, and the task model searches them
    --question "What is it?"    the checkpoint proposes regions, and answers about picture and crops in one prompt
    ... --protocol per_crop     it is asked about each crop alone: the authors' demo
    ... --task zoom_qa          it zooms in turns, as a checkpoint does that was trained for this task
    --image scenes:1            in place of a file: picture 1 of the embedded world, of which the truth is known

A question is also asked about the whole picture without a zoom, for comparison. ``--task_model mllm --task_checkpoint
FOLDER`` lets another model answer about the crops.

Differences from the authors' demo (aim-uofa/Active-o3, commit 7219a37):
  1. Crops are cut from the original pixels. There, from a copy that was enlarged to 1024 pixels.
  2. It asks the bare question; options, where some are given, are part of the question here.
  3. It joins nothing, and neither does ``per_crop``: three crops have three answers.
"""

import zlib
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Sequence

from PIL import Image

from activeo3 import data_io, data_scenes, drawing, outputs, prompts
from activeo3.answer_parsing import LETTERS, answer_in, read_letter
from activeo3.checkpoint_files import run_state
from activeo3.config import DRAWN, ConfigError
from activeo3.eval_baselines import greedy_rollouts
from activeo3.eval_config import EvalConfig
from activeo3.eval_core import Models, Setting
from activeo3.eval_runner import Model
from activeo3.eval_vqa import views
from activeo3.eval_zoom_qa import ZoomQABenchmark
from activeo3.html_report import write_picture_page
from activeo3.model import VisionLanguageModel
from activeo3.task_detection import Sense
from activeo3.task_models import act, is_valid_region
from activeo3.tasks import task_of
from activeo3.terminal import one_line
from activeo3.types import VQA, Example, Region, TaskResult

LONGEST_NAME = 200  # bytes of a picture's name that are kept; file systems allow 255
TINY_VOCABULARY = 1000
"""A tokenizer of at most so many tokens belongs to a policy that was made here."""
WORLD = f"one of {', '.join(data_scenes.COLOURS)} and one of {', '.join(data_scenes.SHAPES)}, as 'red star'"
WITHOUT_ZOOM = "whole picture, no zoom"


class Demo(NamedTuple):
    """What came of looking at a picture: ``lines`` (what, words) to print and to show, regions and boxes to draw.

    ``answer`` is the answer in words that stands below the picture; "" if boxes were searched, or several answers stand
    apart.
    """

    lines: list[tuple[str, str]]
    regions: Sequence[Region]
    outcome: TaskResult = drawing.NOTHING
    answer: str = ""


def as_trained(config: EvalConfig, task: str) -> EvalConfig:
    """The config, with the task zoom_qa for a question to a checkpoint whose run had this ``task``."""
    in_turns = config.question and config.task == "sense" and config.protocol == "together" and task == "zoom_qa"
    return replace(config, task=task) if in_turns else config


def names(config: EvalConfig) -> tuple[str, str]:
    """The names of the PNG and the page: never those of a picture, and different for ``a.jpg`` and ``a.png``."""
    name = Path(config.image).name.replace(":", "-")
    content, plain = name.encode("utf-8", "surrogateescape"), one_line(name)
    if plain != name or len(content) > LONGEST_NAME:
        name = f"{plain[:40]}-{zlib.crc32(content):08x}"
    return f"{name}.looked.png", f"{name}.looked.html"


def own_picture(config: EvalConfig) -> Example:
    """The user's picture as an example without ground truth, or one of the embedded world with what is known of it.

    Raises DataError if it cannot be read.
    """
    path = Path(config.image)
    vqa = VQA(config.question, ("",), options=config.options) if config.question else None
    if config.scene is None:
        return Example(path.stem, data_io.read_picture(path), config.question or config.find, vqa=vqa)
    if not 0 <= config.scene < data_scenes.SIZES["test"]:
        raise data_io.DataError(
            f"--image {config.image}: its pictures are scenes:0 to scenes:{data_scenes.SIZES['test'] - 1}"
        )
    picture = data_scenes.example("test", config.scene)
    query = config.question or config.find or picture.query
    there = [label == query for label in picture.objects.labels]
    return replace(picture, query=query, boxes_px=picture.objects.boxes_px[there], vqa=vqa)


def show(example: Example, models: Models, config: EvalConfig, folder: Path) -> None:
    """Let the policy look at a picture, print what came of it, and write PNG and page into ``folder``.

    Raises ConfigError if the task model, which works on the crops, is to answer in words and is no language model.
    """
    policy, task_model = models[models.trained[0]], next(iter(models.task_models.values()))
    if config.question and not isinstance(task_model, VisionLanguageModel):
        raise ConfigError(f"--question is answered in words: leave out --task_model {config.task_model[0]}.")
    show_it = found if not config.question else in_turns if task_of(config).turns else answered
    demo = show_it(example, policy, task_model, config)
    about = {"note": beyond(policy, config, example.query)}
    about |= {} if config.find or config.question else {"asked for": example.query}
    demo.lines[:0] = [line for line in about.items() if line[1]]
    for what, words in demo.lines:
        print(f"{what}:  {one_line(words, 400)}")
    drawn, page = (folder / name for name in names(config))
    sheet = draw(example, demo)
    panel = drawing.words_panel(demo.lines, max(image.width for image in sheet))
    outputs.leave_picture(drawn, drawing.contact_sheet([*sheet, panel], columns=1))
    cells = [{"asked about": what, "answer": words} for what, words in demo.lines]
    summary = [f"picture: {config.image}", f"checkpoint: {config.checkpoint[0]}"]
    write_picture_page(page, f"activeo3: {example.query}", summary, sheet, cells, ["asked about", "answer"])
    print(f"drawn in {drawn}, and on {page}")


def beyond(policy: VisionLanguageModel, config: EvalConfig, query: str) -> str:
    """Why a tiny policy cannot know what is asked: it has seen nothing but the embedded world. Else ""."""
    source = Path(config.checkpoint[0])
    if len(policy.tokenizer) > TINY_VOCABULARY or not (source / "activeo3.json").is_file():
        return ""
    seen = run_state(source)["config"].get("data", ["scenes"])
    if not set(seen) <= DRAWN or query in (*data_scenes.KINDS, data_scenes.QUESTION):
        return ""
    asked, known = ("question", data_scenes.QUESTION) if config.question else ("find", WORLD)
    return f"the tiny policy cannot know '{query}', it has seen the embedded world alone; --{asked} could be {known}"


def draw(example: Example, demo: Demo) -> list[Image.Image]:
    """The picture with its regions, and the crops."""
    answer = demo.answer or (None if demo.outcome is not drawing.NOTHING else "")
    picture = drawing.annotated_picture(
        example, demo.regions, demo.outcome, said=answer, truth=len(example.boxes_px) > 0
    )
    return [picture, drawing.crops_strip(example, demo.regions, demo.outcome)]


# ---------------------------------------------------------------------- boxes


def found(example: Example, policy: VisionLanguageModel, task_model: Model, config: EvalConfig) -> Demo:
    """Where the policy wants to look, and what the task model finds there."""
    (rollout,) = greedy_rollouts(policy, Sense(config), [example])
    (outcome,) = act(task_model, [example], [rollout.regions], config)
    boxes = [(example.query, _corners(box)) for box in outcome.boxes_px]
    truth = f", {len(example.boxes_px)} are there" if len(example.boxes_px) else ""
    summary = ("found", f"{len(outcome.boxes_px)} found in {len(rollout.regions)} regions{truth}")
    return Demo(
        [("sensing", rollout.text), *_named(rollout.regions, rollout.action.error), *boxes, summary],
        rollout.regions,
        outcome,
    )


def _named(regions: Sequence[Region], error: str | None = None) -> list[tuple[str, str]]:
    """Every region by its number; without any, why: what was wrong with the answer (``ParsedAnswer.error``)."""
    if not regions:
        return [
            (
                "regions",
                "none, so there is no crop: "
                + (f"the answer has a wrong form ({error})" if error else "they are too small"),
            )
        ]
    return [(f"region {place}", _corners(region)) for place, region in enumerate(regions, start=1)]


def _corners(box: Sequence[float]) -> str:
    x1, y1, x2, y2 = box
    return f"({x1:.0f}, {y1:.0f}) to ({x2:.0f}, {y2:.0f})"


# ---------------------------------------------------------------------- words


def answered(
    example: Example, policy: VisionLanguageModel, task_model: VisionLanguageModel, config: EvalConfig
) -> Demo:
    """Where the policy wants to look for the answer, and what the model says of the picture, and of picture and
    crops."""
    (rollout,) = greedy_rollouts(policy, Sense(config), [example])
    regions = tuple(filter(is_valid_region, rollout.regions))
    whole, *crops = views(task_model, example, regions, config, native=False, blind=False)
    if config.protocol == "per_crop":
        shown = [(f"crop {place} alone", [crop]) for place, crop in enumerate(crops, start=1)]
    else:
        shown = [("picture and crops", [whole, *crops])] if crops else []
    texts = ask(task_model, [of_one for _, of_one in [(WITHOUT_ZOOM, [whole]), *shown]], config)
    lines = list(zip([WITHOUT_ZOOM, *(what for what, _ in shown)], texts))
    answer = texts[-1] if config.protocol == "together" else ""
    return Demo([("sensing", rollout.text), *_named(regions, rollout.action.error), *lines], regions, answer=answer)


def ask(model: VisionLanguageModel, shown: Sequence[Sequence[Image.Image]], config: EvalConfig) -> list[str]:
    """The greedy answer about each list of pictures; with options, the one that was chosen stands behind it."""
    asked = [prompts.question_prompt(config.question, config.options, crops=len(of_one) - 1) for of_one in shown]
    encoded = model.encode([list(of_one) for of_one in shown], asked)
    answers = model.generate(encoded, 1, config.sampling(0.0, config.task_max_new_tokens))
    texts = [model.decode(ids) for (ids,) in answers]
    return [
        with_option(answer_in(text) or text, model.is_finished(ids), config.options)
        for text, (ids,) in zip(texts, answers)
    ]


def with_option(text: str, finished: bool, options: Sequence[str]) -> str:
    """An answer, and behind it the option that it names, if there are options.

    >>> with_option("(B)", True, ["cat", "dog"]), with_option("(B)", True, [])
    ('(B)  [B. dog]', '(B)')
    """
    letter = read_letter(text, options, finished).value if options else None
    return f"{text}  [{letter}. {options[LETTERS.index(letter)]}]" if letter else text


def in_turns(
    example: Example, policy: VisionLanguageModel, task_model: VisionLanguageModel, config: EvalConfig
) -> Demo:
    """The policy's dialogue, turn by turn, and its answer without a zoom; the ``task_model`` has no part in it."""
    episodes, benchmark = [], ZoomQABenchmark("image", config)
    for setting in (Setting("baseline"), Setting("default", regions=benchmark.main_budget)):
        (rollout,) = greedy_rollouts(policy, benchmark.task_of(setting), [example])
        answer = rollout.episode.answer
        episodes.append((rollout, "no answer" if answer is None else with_option(answer, True, config.options)))
    (_, at_once), (rollout, answer) = episodes
    turns = [
        (f"turn {place} ({status})", policy.decode(turn))
        for place, (turn, status) in enumerate(zip(rollout.branch.turns, rollout.episode.statuses), start=1)
    ]
    regions = rollout.episode.looked_at
    return Demo(
        [(WITHOUT_ZOOM, at_once), *turns, *(_named(regions) if regions else ()), ("answer", answer)],
        regions,
        answer=answer,
    )
