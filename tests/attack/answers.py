"""Malformed answers through every reader and every reward: none is an exception, none earns NaN, none keeps a run
waiting.

    python -m tests.attack.answers --trials 1000000 --seed 0
    python -m tests.attack.answers --trials 0 --characters 10000000    only the crafted shapes

A *shape* is a piece that is repeated, between a beginning and an end: what makes a parser slow is mostly one of these.
A *trial* is a valid answer of some form, changed by a few cuts, copies, swaps, foreign pieces and odd characters. A
reader is a function of what a model wrote; a reward goes on from there, as training does, to the score.
"""

import argparse
import json
import math
import sys
import time
from dataclasses import replace
from functools import cache, partial
from random import Random
from types import SimpleNamespace
from typing import Any, Callable, Iterator, Mapping, NamedTuple, Sequence

import numpy as np
import torch
from PIL import Image

from activeo3 import answer_parsing, eval_vqa, task_perception, task_zoom_qa, zoom_calls
from activeo3.answer_parsing import read_boxes, read_regions
from activeo3.answer_text import without_thoughts
from activeo3.config import TrainConfig
from activeo3.eval_config import EvalConfig
from activeo3.families import as_json, marked
from activeo3.geometry import Frame, as_boxes, mask_to_rle
from activeo3.tasks import PromptSpec, Task, known_tasks
from activeo3.types import VQA, Example, Objects, Rollout

TASKS = known_tasks()

OPTIONS = ("The cat", "dark red", "red", "vitamin C")
ASKED = "Which one?\nA. left\nB. right\nAnswer with the letter."
PARSERS = ("strict", "lenient")


# ---------------------------------------------------------------------- readers


def _readers() -> Iterator[tuple[str, Callable[[str], Any]]]:
    """Every function that takes what a model wrote, by name. The lenient parser asks the strict one first."""
    yield "without_thoughts", without_thoughts
    yield "as_json", as_json
    yield "read_regions", partial(read_regions, parser="lenient")
    yield "read_boxes", partial(read_boxes, points=True, parser="lenient")
    yield "read_turn", partial(zoom_calls.read_turn, parser="lenient")
    for task in task_perception.TASKS:
        yield f"read_answer {task}", partial(task_perception.read_answer, task, parser="lenient")
        yield (
            f"read_answer {task}, thinking",
            partial(task_perception.read_answer, task, thinking=True, parser="lenient"),
        )
    yield "final_text", answer_parsing.final_text
    yield "answer_in", answer_parsing.answer_in
    yield "read_letter", partial(answer_parsing.read_letter, options=OPTIONS)
    yield "read_letter, Chinese", partial(answer_parsing.read_letter, options=("狗", "猫"))
    yield "read_word", partial(answer_parsing.read_word, question="How many?")
    yield "read_yes_or_no", answer_parsing.read_yes_or_no
    yield "mme_script", answer_parsing.mme_script
    yield "lmms_eval_word", partial(answer_parsing.lmms_eval_word, question=ASKED)


READERS: Mapping[str, Callable[[str], Any]] = dict(_readers())


# ---------------------------------------------------------------------- rewards


@cache
def picture() -> Example:
    """A picture with two things, a mask, a count, a text and a question: an example of every task."""
    masks = np.zeros((2, 48, 64), dtype=bool)
    masks[0, 10:30, 8:40] = masks[1, 2:12, 50:60] = True
    boxes = as_boxes([[8, 10, 40, 30], [50, 2, 60, 12]])
    return Example(
        "picture",
        Image.new("RGB", (64, 48)),
        "cup",
        boxes,
        masks=lambda: list(map(mask_to_rle, masks)),
        objects=Objects(boxes, ("cup", "dog"), ("cup", "dog")),
        vqa=VQA("What is it?", ("42",)),
        text="No. 7\nSmith",
    )


@cache
def prepared(task: str) -> Example:
    """The picture as an example of a task."""
    one = replace(picture(), boxes_px=picture().boxes_px[:1]) if task == "grounding" else picture()
    own = TASKS[task](config(task, "strict"))
    one = own.prepare(one)
    return one if task == "act" else own.prepare_batch(None, [one])[0]  # whose crops a language model proposes


@cache
def config(task: str, parser: str, **flags: Any) -> TrainConfig:
    """The defaults, but for how answers are read."""
    return TrainConfig(task=task, parser=parser, task_model="oracle" if TASKS[task].crops else "mllm", **flags)


@cache
def task_model(task: str) -> Any:
    """The oracle of a task with crops."""
    own = TASKS[task](config(task, "strict"))
    return own.load_task_model("oracle", torch.device("cpu")) if own.crops else None


FRAME = Frame((0.0, 0.0, 64.0, 48.0), (1000, 1000))
ACTOR: Any = SimpleNamespace(view_size=lambda size, pixels=None: (28, 28), text_scale=lambda view: (1000, 1000))
"""All of a model that a dialogue uses: how large it sees a crop."""


def reward_of_one_turn(task: str, parser: str, text: str) -> dict[str, float]:
    """The terms and the total of an answer, read, acted on and scored as in training."""
    own, prompt = TASKS[task](config(task, parser)), PromptSpec(picture().image, FRAME, "")
    rollout = Rollout(prepared(task), (), text, True, *own.parse(text, True, prompt, prepared(task)))
    return _scored(own, rollout, task_model(task))


def _scored(own: Task, rollout: Rollout, of_crops: Any) -> dict[str, float]:
    (outcome,) = own.act(of_crops, [rollout])
    score = own.reward(rollout, outcome)
    return {**score.terms, "total": score.total}


def reward_of_episode(kind: str, formula: str, parser: str, text: str) -> dict[str, float]:
    """The terms and the total of an episode whose turns all are this text."""
    settings, options = config("zoom_qa", parser, evidence=formula), OPTIONS if kind == "choice" else ()
    vqa = VQA("What is it?", ("B" if options else "42",), kind, options, evidence_px=picture().boxes_px)
    example = replace(prepared("zoom_qa"), vqa=vqa)
    own = TASKS["zoom_qa"](settings)
    dialogue = own.start(ACTOR, example, PromptSpec(example.image, FRAME, ""))
    for _ in range(settings.max_turns):
        if dialogue.step(text, True) is None:
            break
    return _scored(own, Rollout(example, (), text, True, *dialogue.result()), None)


def marks(benchmark: str, options: Sequence[str], right: str, text: str) -> dict[str, float]:
    """Whether an answer to a benchmark's question is right."""
    example = replace(
        picture(),
        query=ASKED if options else "How many?",
        vqa=VQA("What is it?", (right,), options=options),
    )
    kind = eval_vqa.OF_DATA.get(benchmark, eval_vqa.VQABenchmark)
    answer = kind(benchmark, EvalConfig(checkpoint=("x",))).read(example, text, True)
    return {"right": float(bool(answer.right)), "lenient": float(bool(answer.lenient))}


def _rewards() -> Iterator[tuple[str, Callable[[str], dict[str, float]]]]:
    """Every way from what a model wrote to a number, by name."""
    for parser in PARSERS:
        for task in TASKS:
            if not TASKS[task].turns:
                yield f"{task}, {parser}", partial(reward_of_one_turn, task, parser)
        for kind in task_zoom_qa.KINDS:
            for formula in ("union", "per_call"):
                yield f"zoom_qa {kind}, {formula}, {parser}", partial(reward_of_episode, kind, formula, parser)
    yield "mme", partial(marks, "mme", (), "yes")
    yield "realworldqa", partial(marks, "realworldqa", (), "42")
    yield "mmbench", partial(marks, "mmbench", OPTIONS, "B")


REWARDS: Mapping[str, Callable[[str], dict[str, float]]] = dict(_rewards())


# ---------------------------------------------------------------------- shapes


class Shape(NamedTuple):
    """A piece that is repeated between a beginning and an end."""

    begin: str
    piece: str
    end: str = ""

    def text(self, characters: int) -> str:
        """The shape with this many characters, or a few more."""
        return self.begin + self.piece * (characters // len(self.piece)) + self.end


_TAG = '<zoom_roi x0="0" y0="0" x1="1" y1="'
SHAPES: Mapping[str, Shape] = {
    "open lists": Shape("", "["), "lists around a box": Shape("", "[", '{"bbox_2d": [1, 2, 3, 4]}'), "open objects": Shape("", "{"),
    "nested boxes": Shape("", '{"bbox_2d":'), "boxes": Shape("[", '{"bbox_2d": [1, 2, 3, 4]}, ', "]"), "bare boxes": Shape("", "[1,2,3,4]"),
    "words in objects": Shape('{"', '"bbox_2d" '), "keys": Shape("", '"bbox_2d"'), "open thoughts": Shape("", "<think>"),
    "a long thought": Shape("<think>", "x"), "a thought and an answer": Shape("<think></think><answer>", "x"), "thoughts": Shape("", "<think></think>"),
    "closed thoughts": Shape("", "</think>"), "open answers": Shape("", "<answer>"), "answers": Shape("", "<answer>x</answer>"),
    "digits": Shape("", "7"), "digits in a list": Shape("[", "7", "]"), "decimals in a list": Shape("[0.", "7", ", 1, 2, 3]"),
    "an exponent": Shape("[1e", "7", ", 1, 2, 3]"), "thousands": Shape("1", ",000", "x"), "minus signs": Shape("", "-"),
    "spaces": Shape("", " "), "lines": Shape("", "\n"), "spaces in an answer": Shape("x", " ", "x"), "lines and letters": Shape("", "A\n"),
    "quotes": Shape("", '"'), "an open quote": Shape('["', "x"), "backslashes": Shape('["', "\\"), "commas": Shape("", ","), "brackets": Shape("", "("),
    "marks": Shape("e", "\u0301\u0327"), "marks that were letters": Shape("e", "\u0301\uff9e"), "nothing that is seen": Shape("", "\u200b"),
    "wide letters": Shape("", "Ａ"), "a ligature of 18 letters": Shape("", "\ufdfa"), "half of a character": Shape("", "\ud800"),
    "fences": Shape("", "```json\n"), "backticks": Shape("", "`"), "box tokens": Shape("", "<|box_start|>"),
    "boxes in tokens": Shape("", "<|box_start|>(1,2),(3,4)<|box_end|>"), "spaces between box tokens": Shape("<|box_start|>(1,2)", " ", "x"),
    "spaces behind box tokens": Shape("<|box_start|>(1,2),(3,4)<|box_end|>", " ", "x"), "an open name": Shape("<|box_start|><|object_ref_start|>", "a"),
    "names": Shape("<|box_start|>", "<|object_ref_start|>a<|object_ref_end|>"), "zoom tags": Shape("", "<zoom_roi "),
    "a number in a tag": Shape(_TAG, "7", 'x"/>'), "spaces in a tag": Shape("<zoom_roi", " ", "x>"), "a name in a tag": Shape("<zoom_roi ", "a", ">"),
    "attributes": Shape("<zoom_roi ", 'a="" ', "!>"), "spaces in a number": Shape(_TAG, " ", 'x"/>'), "the answer is": Shape("", "The answer is "),
    "spaces behind the answer": Shape("The answer is", " ", "x"), "colons behind the answer": Shape("answer", " : ", "x"), "选": Shape("选", " ", "x"),
    "letters": Shape("", "A or "), "named sides": Shape("", "x1=1 "), "labels": Shape("{[1,2,3,4]", '"label":"'), "mixed": Shape("", '[{"<answer>(1, `\n'),
}  # fmt: skip


# ---------------------------------------------------------------------- changed answers


def _valid(random: Random) -> str:
    """A well-formed answer of some form."""
    boxes = [[random.randint(0, 1000) for _ in range(4)] for _ in range(random.randint(0, 4))]
    items = [{"bbox_2d": box, "label": random.choice(["cup", "dog", "red", ""])} for box in boxes]
    answer = random.choice(
        ["B", "(B) dark red", "The answer is B.", "42", "yes", "No. 7\nSmith", "$1,284.50", "选项B", "No, it is not."]
    )
    edges = " ".join(f'{name}="{random.random():.2f}"' for name in ("x0", "y0", "x1", "y1"))
    body = random.choice(
        [json.dumps(items), f"{json.dumps(items)} {len(items)}", json.dumps(boxes[:1]), json.dumps(items[0] if items else {}), answer,
         f"```json\n{json.dumps(items, indent=1)}\n```", marked(boxes, ["cup"] * len(boxes)), str(items).replace("]", ",]"),
         f"<zoom_roi {edges} />", json.dumps({"name": "zoom", "arguments": {"boxes": items}}), "x1=1, y1=2, x2=30, y2=40"]
    )  # fmt: skip
    layout = random.choice(
        [
            "{}",
            "<think>so</think><answer>{}</answer>",
            "<think>{}</think>",
            "<answer>{}</answer>",
            "a</think>{}",
            "Here: {} Done.",
        ]
    )
    return layout.format(body)


PIECES = [piece for shape in SHAPES.values() for piece in shape if piece]
ODD = [
    "NaN",
    "Infinity",
    "1e999",
    "-0",
    "null",
    "9" * 5000,
    "\x00",
    "\ufeff",
    "\u202e",
    "\u0130",
    "٣",
    "²",
    "½",
    "\r",
    "\u2028",
    "𝟙",
    "🎈",
]


def _changed(text: str, random: Random) -> str:
    """The text with one change: a part is cut, copied, moved or repeated, or something is put in."""
    first, last = sorted(random.randint(0, len(text)) for _ in range(2))
    before, part, after = text[:first], text[first : min(last, first + 40)], text[min(last, first + 40) :]
    match random.randrange(8):
        case 0:
            return before + after
        case 1:
            return before + part * random.randint(2, 5) + after
        case 2:
            return after + part + before
        case 3:
            return before
        case 4:
            return before + random.choice(PIECES) * random.randint(1, 4) + after
        case 5:
            return before + random.choice(ODD) + after
        case 6:
            return (
                before
                + "".join(chr(random.choice([random.randint(0, 127), random.randint(0, 0x10FFFF)])) for _ in range(3))
                + after
            )
        case _:
            return before + part[::-1].swapcase() + after


def changed_answer(random: Random) -> str:
    """A valid answer after up to six changes, or bytes that are none."""
    if random.random() < 0.05:
        return random.randbytes(random.randint(0, 60)).decode(
            "latin-1" if random.random() < 0.5 else "utf-8", "replace"
        )
    text = _valid(random)
    for _ in range(random.randint(0, 6)):
        text = _changed(text, random)
    return text


# ---------------------------------------------------------------------- faults


def faults_of(text: str, rewards: Sequence[str] = tuple(REWARDS)) -> list[str]:
    """What goes wrong with an answer: an exception of a reader or of one of these rewards, or a number that is not
    finite."""
    faults = []
    for name, read in [*READERS.items(), *((name, REWARDS[name]) for name in rewards)]:
        try:
            terms = read(text)
            if name in REWARDS:
                faults += [f"{name}: {term} is {value}" for term, value in terms.items() if not math.isfinite(value)]
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a fault
            faults.append(f"{name}: {type(error).__name__}: {error}")
    return faults


def seconds_of(text: str, functions: Mapping[str, Callable[[str], Any]]) -> dict[str, float]:
    """Processor time of every function on one answer."""
    seconds = {}
    for name, read in functions.items():
        began = time.process_time()
        read(text)
        seconds[name] = time.process_time() - began
    return seconds


def shape_faults(characters: int, most: float, report: Callable[[str], None] = print) -> Iterator[str]:
    """A sentence for each shape on which all readers together, or one reward, take more than ``most`` seconds."""
    for name, shape in SHAPES.items():
        text = shape.text(characters)
        readers, rewards = seconds_of(text, READERS), seconds_of(text, REWARDS)
        slowest = max({**readers, **rewards}.items(), key=lambda pair: pair[1])
        report(f"{name}: all readers {sum(readers.values()):.2f} s, the slowest reward {max(rewards.values()):.2f} s")
        if max(sum(readers.values()), max(rewards.values())) > most:
            yield f"{name}: all readers {sum(readers.values()):.1f} s for {characters} characters; {slowest[0]} {slowest[1]:.1f} s"


SLOW = 0.5  # seconds of processor time for one short answer


def main(argv: Sequence[str] | None = None) -> int:
    """Shapes, then trials; the exit code is 1 if there is a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100_000, help="changed answers [100000]")
    parser.add_argument("--rewards", type=int, default=2, help="that each answer earns, drawn from all of them [2]")
    parser.add_argument("--seed", type=int, default=0, help="of the changes [0]")
    parser.add_argument("--characters", type=int, default=10_000_000, help="of a crafted shape; 0: none [10000000]")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="that a crafted shape may take in all readers, or in a reward [1]"
    )
    options = parser.parse_args(argv)
    faults = list(shape_faults(options.characters, options.seconds)) if options.characters else []
    random, began = Random(options.seed), time.process_time()
    for trial in range(1, options.trials + 1):
        text, rewards, before = (
            changed_answer(random),
            random.sample(list(REWARDS), options.rewards),
            time.process_time(),
        )
        wrong = faults_of(text, rewards)
        if time.process_time() - before > SLOW:  # a busy machine is slow once
            took = sum(seconds_of(text, {**READERS, **{name: REWARDS[name] for name in rewards}}).values())
            wrong += [f"took {took:.1f} s"] if took > SLOW else []
        faults += [f"{one}: {text!r}" for one in wrong]
        for one in wrong:
            print(f"trial {trial}: {one}: {text!r}", flush=True)
        if not trial % 10_000:
            print(
                f"{trial} answers, {1000 * (time.process_time() - began) / trial:.2f} ms each, {len(faults)} faults",
                flush=True,
            )
    print(*faults[:100], sep="\n")
    print(f"answers {options.trials + len(SHAPES) * bool(options.characters)} {len(faults)}")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
