"""Benchmarks whose questions are answered in words: MME, MMBench, RealWorldQA, V*Bench and HR-Bench.

They say whether general ability has survived a training (ACTIVE-O3, Table 3), and V*Bench whether looking helps
to answer. A row is a way of choosing regions and who answers, ``start`` or ``checkpoint``, greedily:

    direct           the whole picture, as large as the sensing model sees it
    direct-native    the whole picture at its own size (limits: crop_side squared and max_view_pixels)
    cot, active      the start policy or the checkpoint is asked where to look for the answer (the prompt of the
                     authors' V* demo); whole picture and crops are then shown in one prompt, with the options
    oracle-regions   the same with regions around the true targets, where they are known (V*Bench)
    random, grid, repeat    the same, with regions as in eval_detection.py

What counts, by benchmark. A group of which a question is missing does not count (``--limit`` may cut one):
    mme          accuracy; accuracy_plus: both questions about a picture right; a category scores 100 times the sum
                 of the two; perception and cognition are the sums over their categories, total that of all
                 (arXiv 2306.13394, section 2.2; the 2308 of Table 3 is a total; of 2,800)
    mmbench      accuracy of all rows; circular: right in every row that the file has of a question (arXiv 2307.06281,
                 section 4.1; the 80.1 of Table 3), as VLMEvalKit counts: rotations that the file lacks are not asked
                 for, and a question whose row without rotation is missing is none. The test files (mmbench_test, ...)
                 have no answers: what is written is the file for the publisher's server (eval_submission.py)
    realworldqa  accuracy
    vstar        accuracy, and that of its two categories
    hrbench      the same; every rotation of the options is a question (the authors average over rotations)
MME and RealWorldQA are read by published rules (answer_parsing.py); accuracy_lenient is what a kinder reader finds.
``unread`` is the share of answers that cannot be read; they are wrong.

Readings of what the paper leaves open:
  1. It names no prompts: questions are asked as their files have them, options by letter.
  2. It has no number for V*Bench, and its demo asks each crop by itself, without options, and joins nothing.
     Here all pictures are in one prompt.
  3. V*Bench's own script ranks the options by likelihood; here a letter is generated.
"""

from collections import Counter
from pathlib import Path
from types import MappingProxyType
from typing import Any, Callable, Iterable, Mapping, NamedTuple, Sequence

import numpy as np
from PIL import Image

from activeo3 import data_mmbench, eval_output, eval_submission, intervals, log, metrics, prompts
from activeo3.answer_parsing import (
    WORD_ERRORS,
    Reading,
    lmms_eval_word,
    mme_script,
    plain,
    read_letter,
    read_word,
    read_yes_or_no,
)
from activeo3.config import Config
from activeo3.data_loader import Whole, as_it_is, readable
from activeo3.data_set import Dataset
from activeo3.data_vqa import COGNITION, HRBENCH_KINDS, PERCEPTION, VSTAR_KINDS
from activeo3.eval_config import OF_A_CHECKPOINT, EvalConfig
from activeo3.eval_core import Record, Runner, trained_of
from activeo3.eval_rollouts import Looked, proposed, seconds_of, timed
from activeo3.generate import in_batches
from activeo3.html_report import write_page
from activeo3.intervals import Metric
from activeo3.model import VisionLanguageModel
from activeo3.task_models import crop_view, is_valid_region
from activeo3.tasks import sensing_view
from activeo3.types import Example, Region, Sampling

WHOLE = ("direct", "direct-native")
"""Methods without crops."""
KINDS: dict[str, tuple[str, ...]] = {"vstar": VSTAR_KINDS, "hrbench": HRBENCH_KINDS, "hrbench_8k": HRBENCH_KINDS}
"""Categories that have a column of their own."""
GROUPS: dict[str, tuple[str, Callable[[Example], int]]] = {
    "mme": ("accuracy_plus", lambda example: 2),
    **{name: ("circular", lambda example: example.vqa.rotations) for name in data_mmbench.NAMES},
}
"""Where questions count together: the column, and how many belong to the group of an example."""
PUBLISHED = ("mme", "realworldqa")
"""Benchmarks with a published rule of how an answer is read; ``LENIENT`` is their accuracy as ours reads them."""
LENIENT = "accuracy_lenient"
SAME_WITH_BLACK_CROPS = "accuracy_black"

Records = dict[str, list[dict[str, Any]]]
"""Every question with its answer, by the label of the row."""


class Answer(NamedTuple):
    """What a model wrote, what that says, and whether it is right (None: the right answer is not known).

    ``lenient`` is the same as a kind reader sees it, where ``reading`` goes by a published rule."""

    text: str
    reading: Reading
    right: bool | None
    lenient: bool | None


def run(
    benchmark: str,
    methods: Sequence[str],
    examples: Sequence[Example],
    policy: VisionLanguageModel,
    start: VisionLanguageModel,
    config: Config,
    resamples: int = 1000,
    say: Callable[[str], None] = print,
    black: bool = False,
    runner: Runner | None = None,
    whole: Whole = as_it_is,
    others: Mapping[str, VisionLanguageModel] = MappingProxyType({}),
    checkpoint: str = "",
    first: bool = True,
) -> tuple[list[dict[str, Any]], Records]:
    """Ask every question in every way: (table rows, what was answered).

    ``others`` are models beside these two that answer about the same regions, by name.
    ``whole`` gives an example its picture, if it was put aside (``Dataset.without_images``): it is then read when its turn comes.

    ``policy``, ``start``, ``resamples``, ``say`` and ``runner`` as in ``suites.run``. With ``black``, questions
    are asked once more with black crops beside the picture. Rows are those of ``suites.run``; ``task_model``
    is who answers, ``failures`` counts answers by what kept them from being read, and ``categories`` has the
    numbers of each category, ``l2_categories`` those of MMBench's six abilities.
    Of several checkpoints, ``checkpoint`` is this one's name; only the ``first`` has the rows that are the same for all.
    """
    runner = runner or Runner()
    models = ({"checkpoint": policy} if policy is start else {"start": start, "checkpoint": policy}) | dict(others)
    rows: list[dict[str, Any]] = []
    kept = []
    for method in usable(methods, examples, say):
        regions, proposing = looked_at(method, examples, start if method == "cot" else policy, config, runner, whole)
        looked, common = list(zip(examples, regions, strict=True)), method not in OF_A_CHECKPOINT
        for name, model in models.items():
            if common and not first and name != "checkpoint":
                continue
            given, seconds = answered(benchmark, method, looked, model, config, runner, whole)
            blind = (
                answered(benchmark, method, looked, model, config, runner, whole, True)[0]
                if black and method not in WHOLE
                else []
            )
            right = marks(answer.right for answer in given)
            values = scores(benchmark, examples, right, resamples)
            if values and benchmark in PUBLISHED:
                lenient = marks(answer.lenient for answer in given)
                values[LENIENT] = intervals.bootstrap_interval(lenient, ids(examples), resamples)
            if method not in WHOLE and any(len(example.boxes_px) for example in examples):
                recalls = [metrics.region_recall(r, metrics.asked_boxes(e)) for r, e in zip(regions, examples)]
                values["region_recall"] = intervals.bootstrap_interval(recalls, ids(examples), resamples)
            if black and method not in WHOLE:
                unseen = marks(answer.right for answer in blind)
                values[SAME_WITH_BLACK_CROPS] = intervals.bootstrap_interval(unseen, ids(examples), resamples)
            errors = Counter(answer.reading.error for answer in given)
            values |= {"unread": 1 - errors[None] / len(given), "regions": float(np.mean([len(r) for r in regions]))}
            values["seconds"] = (proposing + seconds) / len(examples)
            whose = "" if common and name != "checkpoint" else checkpoint
            row = {
                "benchmark": benchmark,
                "method": method,
                "checkpoint": whose,
                "task_model": name,
                "n": len(examples),
            }
            row |= {"budget": 0 if method in WHOLE else config.regions, "metrics": values}
            rows.append(
                row
                | {"failures": {error: errors[error] for error in WORD_ERRORS}}
                | {
                    "categories": by_category(benchmark, examples, right),
                    "columns": columns(benchmark, examples, black),
                }
                | (
                    {"l2_categories": abilities}
                    if (abilities := by_category(benchmark, examples, right, "ability"))
                    else {}
                )
            )
            kept.append(records(examples, regions, given))
            result = f"accuracy {values['accuracy'].value:.3f}" if "accuracy" in values else f"{len(given)} answers"
            say(f"{' '.join(filter(None, [benchmark, method, whose]))}, answered by {name}: {result}")
    return rows, {eval_output.label(row, rows): found for row, found in zip(rows, kept)}


def usable(methods: Sequence[str], examples: Sequence[Example], say: Callable[[str], None]) -> list[str]:
    """The methods that these questions allow; says which are left out and why."""
    reasons = {"fixed": "it is fitted by boxes that a task model finds"}
    if not all(len(example.boxes_px) for example in examples):
        reasons["oracle-regions"] = "nobody has boxed what the questions are about"
    for method in methods:
        if method in reasons:
            say(f"no row {method}: {reasons[method]}")
    return [method for method in methods if method not in reasons]


# ---------------------------------------------------------------------- look and answer


def looked_at(
    method: str, examples: Sequence[Example], policy: VisionLanguageModel, config: Config, runner: Runner, whole: Whole
) -> tuple[list[tuple[Region, ...]], float]:
    """The regions of every example that are shown beside the whole image, and the seconds of proposing them."""
    if method in WHOLE:
        return [()] * len(examples), 0.0
    rollouts, seconds = proposed(method, examples, policy, config, runner, whole=whole)
    return [rollout.regions for rollout in rollouts], seconds


def answered(
    benchmark: str,
    method: str,
    looked: Sequence[Looked],
    model: VisionLanguageModel,
    config: Config,
    runner: Runner,
    whole: Whole,
    black: bool = False,
) -> tuple[list[Answer], float]:
    """A model's answer about every example with its regions, or with black crops, and the seconds that all took."""
    native = method == "direct-native"

    def work(block: Sequence[Looked]) -> list[Record]:
        examples, regions = zip(*block)
        given = ask(benchmark, model, [whole(example) for example in examples], regions, config, native, black)
        return [answer._asdict() for answer in given]

    records = runner.map(timed(work), looked, ("words", benchmark, native, black, model, config))
    return [answer_of(record) for record in records], seconds_of(records)


def answer_of(record: Record) -> Answer:
    """The answer of a record."""
    return Answer(record["text"], Reading(*record["reading"]), record["right"], record["lenient"])


def ask(
    benchmark: str,
    model: VisionLanguageModel,
    examples: Sequence[Example],
    regions: Sequence[Sequence[Region]],
    config: Config,
    native: bool = False,
    black: bool = False,
) -> list[Answer]:
    """One greedy answer per example, which sees the whole picture and its regions enlarged."""
    sampling = Sampling(0.0, config.task_max_new_tokens)

    def work(part: Sequence[tuple[Example, Sequence[Region]]]) -> list[Answer]:
        shown = [views(model, example, of_one, config, native, black) for example, of_one in part]
        asked = [
            prompts.question_prompt(e.query, e.vqa.options, e.vqa.hint, len(of_one) - 1)
            for (e, _), of_one in zip(part, shown)
        ]
        answers = model.generate(model.encode(shown, asked), 1, sampling)
        return [
            read(benchmark, example, model.decode(ids), model.is_finished(ids))
            for (example, _), (ids,) in zip(part, answers, strict=True)
        ]

    return in_batches(
        work, list(zip(examples, regions, strict=True)), max(1, config.task_batch // (1 + config.regions))
    )


def views(
    model: VisionLanguageModel, example: Example, regions: Sequence[Region], config: Config, native: bool, black: bool
) -> list[Image.Image]:
    """The whole picture and its crops, in the order in which the prompt speaks of them."""
    whole, _ = sensing_view(model, example.image, config.sensing_side, config.max_view_pixels)
    if native:
        least = min(config.crop_side**2, config.max_view_pixels)
        whole = example.image.resize(
            model.view_size(example.size_px, (least, config.max_view_pixels)), Image.Resampling.BICUBIC
        )
    source = Image.new("RGB", example.size_px) if black else example.image
    return [whole, *(crop_view(model, source, region, config)[0] for region in regions if is_valid_region(region))]


def read(benchmark: str, example: Example, text: str, finished: bool) -> Answer:
    """What an answer says, by the rules of its benchmark, and whether that is right."""
    options, right = example.vqa.options, example.vqa.answer
    published = benchmark == "mme" or benchmark == "realworldqa" and not options
    if benchmark == "mme":
        reading, kind = mme_script(text, finished), read_yes_or_no(text, finished)
    elif published:
        reading, kind = lmms_eval_word(text, example.query, finished), read_word(text, example.query, finished)
    else:
        reading = kind = read_letter(text, options, finished) if options else read_word(text, example.query, finished)
    if right is None:
        return Answer(text, reading, None, None)
    lenient = kind.value is not None and plain(kind.value) == plain(right)
    return Answer(text, reading, reading.value == right.strip().lower() if published else lenient, lenient)


# ---------------------------------------------------------------------- score


def marks(verdicts: Iterable[bool | None]) -> np.ndarray:
    """1 for a right answer, 0 for a wrong one and NaN where nobody knows, (E,)."""
    return np.array([np.nan if right is None else float(right) for right in verdicts])


def ids(examples: Sequence[Example]) -> list[int]:
    return [example.image_id for example in examples]


def whole_groups(benchmark: str, examples: Sequence[Example]) -> list[list[int]]:
    """The indices of each group of which every question is there, in order of appearance."""
    members: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        members.setdefault(example.vqa.group, []).append(index)
    _, wanted = GROUPS[benchmark]
    return [of_group for of_group in members.values() if 0 < wanted(examples[of_group[0]]) <= len(of_group)]


def scores(benchmark: str, examples: Sequence[Example], right: np.ndarray, resamples: int) -> dict[str, Any]:
    """The numbers of a benchmark by column, with intervals over pictures; ``right`` (E,) is 1 or 0.

    There are none if nobody knows the right answers (all NaN).
    """
    if np.isnan(right).all():
        return {}
    found: dict[str, Any] = {"accuracy": intervals.bootstrap_interval(right, ids(examples), resamples)}
    for kind in KINDS.get(benchmark, ()):
        own = [index for index, example in enumerate(examples) if example.vqa.category == kind]
        found[kind] = intervals.bootstrap_interval(right[own], [examples[k].image_id for k in own], resamples)
    if benchmark in GROUPS:
        groups = whole_groups(benchmark, examples)
        pictures = [examples[of_group[0]].image_id for of_group in groups]
        together = [float(right[of_group].all()) for of_group in groups]
        found[GROUPS[benchmark][0]] = intervals.bootstrap_interval(together, pictures, resamples)
    if benchmark == "mme":
        for name, kinds in (("perception", PERCEPTION), ("cognition", COGNITION), ("total", PERCEPTION + COGNITION)):
            found[name] = mme_points(
                examples, right, [g for g in groups if examples[g[0]].vqa.category in kinds], resamples
            )
    return found


def mme_points(
    examples: Sequence[Example], right: np.ndarray, groups: Sequence[Sequence[int]], resamples: int
) -> Metric:
    """The sum over categories of 100 x (accuracy + accuracy_plus), at most 200 each."""
    points = [100 * (right[of_group].mean() + right[of_group].all()) for of_group in groups]
    firsts = [examples[of_group[0]] for of_group in groups]
    return intervals.bootstrap_total(points, ids(firsts), [first.vqa.category for first in firsts], resamples)


def by_category(
    benchmark: str, examples: Sequence[Example], right: np.ndarray, field: str = "category"
) -> dict[str, dict[str, float]]:
    """``scores`` of each category alone, without intervals, and how many questions it has; none without the field."""
    found = {}
    kinds = [getattr(example.vqa, field) for example in examples]
    for name in sorted(set(kinds)) if field == "category" or any(kinds) else ():
        own = [index for index, kind in enumerate(kinds) if kind == name]
        values = scores(benchmark, [examples[k] for k in own], right[own], resamples=0)
        numbers = {column: cell.value for column, cell in values.items() if np.isfinite(cell.value)}
        found[name] = {"n": len(own)} | numbers
    return found


# ---------------------------------------------------------------------- what is left behind


def columns(benchmark: str, examples: Sequence[Example], black: bool) -> list[str]:
    """The columns of a benchmark's table, beside method and task model."""
    judged = ["accuracy", *([LENIENT] if benchmark in PUBLISHED else [])]
    judged += ["accuracy_plus", "perception", "cognition", "total"] if benchmark == "mme" else KINDS.get(benchmark, ())
    judged += ["circular"] if benchmark in data_mmbench.NAMES else []
    known = any(example.vqa.answer is not None for example in examples)
    boxed = ["region_recall"] if any(len(example.boxes_px) for example in examples) else []
    blind = [SAME_WITH_BLACK_CROPS] if black and known else []
    return [*(judged if known else []), *boxed, *blind, "unread", "regions", "seconds"]


def records(
    examples: Sequence[Example], regions: Sequence[Sequence[Region]], given: Sequence[Answer]
) -> list[dict[str, Any]]:
    """Every question with its answer, for programs and doubters."""
    return [
        {"id": example.id, "category": example.vqa.category, "question": example.query,
         "options": list(example.vqa.options), "answer": example.vqa.answer, "text": answer.text,
         "read": answer.reading.value, "error": answer.reading.error, "right": answer.right,
         "regions": [list(region) for region in of_one]}
        for example, of_one, answer in zip(examples, regions, given, strict=True)
    ]  # fmt: skip


def show(
    folder: Path,
    benchmark: str,
    rows: Sequence[eval_output.Row],
    answers: Records,
    config: EvalConfig,
    say: Callable[[str], None],
) -> None:
    """Print both tables, and write the page and ``answers-<benchmark>-<label>.json``."""
    for label, of_row in answers.items():
        eval_output.write_coco(folder, f"answers-{benchmark}-{label}", of_row)
    first = eval_output.first_table(rows)
    say(log.table(*first, f"{benchmark} ({config.split}), {rows[0]['n']} questions"))
    say(log.table(*eval_output.second_table(rows), "answers that cannot be read"))
    summary = [f"checkpoint: {source}" for source in config.checkpoint] + [f"data: {benchmark} ({config.split})"]
    write_page(folder / f"{benchmark}.html", f"activeo3: {benchmark}", summary, (), *first)


def passes(config: EvalConfig, policies: int) -> int:
    """How often ``evaluate`` works on every question."""
    trained, other, total = max(1, policies - 1), bool(config.other_mllm), 0
    for method in config.methods:
        of_one = trained if method in OF_A_CHECKPOINT else 1
        answerers = trained * (min(policies, 2) + other) if method in OF_A_CHECKPOINT else policies + other
        total += answerers if method in WHOLE else of_one + answerers * (1 + config.black)
    return total


def evaluate(
    opened: Mapping[str, Dataset],
    sources: Mapping[str, str],
    load: Callable[[str], VisionLanguageModel],
    task_models: Mapping[str, Any],
    config: EvalConfig,
    folder: Path,
    runner: Runner,
) -> None:
    """Every benchmark: printed tables, and files in ``folder``; the models answer themselves, and of ``task_models`` only
    another language model does. Checkpoints are loaded one after the other."""
    others = {config.expert_name("mllm"): task_models[config.expert_name("mllm")]} if config.other_mllm else {}
    rows: list[dict[str, Any]] = []
    start, trained = load(sources["start"]), trained_of(sources)
    for name, dataset in opened.items():
        examples = readable(dataset.without_images(), folder, runner.ranks.all_gather, runner.writes)
        found: list[tuple[dict[str, Any], list[Record]]] = []
        for title in trained:
            of_one, given = run(
                name, config.methods, examples, load(sources[title]), start, config, config.resamples, runner.say, config.black,
                runner, dataset.with_image, others, title if len(trained) > 1 else "", title == trained[0],
            )  # fmt: skip
            found += zip(of_one, given.values(), strict=True)
        found.sort(key=lambda pair: config.methods.index(pair[0]["method"]))  # of equals the order stays
        rows += (own := [row for row, _ in found])
        if runner.writes:
            write(
                folder,
                name,
                examples,
                rows,
                own,
                {eval_output.label(row, own): answers for row, answers in found},
                config,
                runner.say,
            )
    runner.say(f"numbers: {folder / 'results.json'}; every answer lies beside it")


def write(
    folder: Path, name: str, examples: Sequence[Example], rows: Sequence[eval_output.Row], own: Sequence[eval_output.Row], given: Records,
    config: EvalConfig, say: Callable[[str], None],
) -> None:  # fmt: skip
    """The tables of all benchmarks so far, and of the newest one its ``own`` rows, its page and every answer."""
    eval_output.write_results(folder, rows)
    show(folder, name, own, given, config, say)
    if eval_submission.asks_for_one(examples):
        for label, of_row in given.items():
            eval_submission.write_submission(folder / f"submission-{name}-{label}.tsv", examples, of_row)
        say(
            f"{name} has no public answers: submit {folder}/submission-{name}-*.tsv ({len(examples)} rows; all of them with --limit 0)"
        )
