"""Benchmarks whose questions are answered in words: MME, MMBench, RealWorldQA, V*Bench and HR-Bench.

They say whether general ability has survived a training (ACTIVE-O3, Table 3), and V*Bench whether looking helps
to answer. A row is a way of choosing regions and the model that answers, ``start`` or a checkpoint, greedily:

    direct           the whole image, as large as the sensing model sees it
    direct-native    the whole image at its own size (limits: crop_side squared and max_view_pixels)
    cot, active      the start policy or the checkpoint is asked where to look for the answer (the prompt of the
                     authors' V* demo); whole image and crops are then shown in one prompt, with the options
    oracle-regions   the same with regions around the true targets, where they are known (V*Bench)
    random, grid, repeat    the same, with regions as in eval_baselines.py

What counts, by benchmark. A group of which a question is missing does not count (``--limit`` may cut one):
    mme          accuracy; accuracy_plus: both questions about a image right; a category scores 100 times the sum
                 of the two; perception and cognition are the sums over their categories, total that of all
                 (arXiv 2306.13394, section 2.2; the 2308 of Table 3 is a total; of 2,800)
    mmbench      accuracy of all rows; circular: right in every row that the file has of a question (arXiv 2307.06281,
                 section 4.1; the 80.1 of Table 3), as VLMEvalKit counts: rotations that the file lacks are not asked
                 for, and a question whose row without rotation is missing is none. The test files (mmbench_test, ...)
                 have no answers: what is written is the file for the publisher's server (write_submission)
    realworldqa  accuracy
    vstar        accuracy, and that of its two categories
    hrbench      the same; every rotation of the options is a question (the authors average over rotations)
MME and RealWorldQA are read by published rules (answer_parsing.py); accuracy_lenient is what a more lenient reader
finds. ``unread`` is the share of answers that cannot be read; they are wrong.

Readings of what the paper leaves open:
  1. It names no prompts: questions are asked as their files have them, options by letter.
  2. It has no number for V*Bench, and its demo asks each crop by itself, without options, and joins nothing.
     Here all images are in one prompt.
  3. V*Bench's own script ranks the options by likelihood; here a letter is generated.
"""

import csv
import io
from collections import Counter
from pathlib import Path
from typing import Any, Iterable, Mapping, NamedTuple, Sequence

import numpy as np
from PIL import Image

from activeo3 import data_mmbench, intervals, metrics, outputs, prompts
from activeo3.answer_parsing import (
    WORD_ERRORS,
    Reading,
    final_text,
    lmms_eval_word,
    mme_script,
    plain,
    read_letter,
    read_word,
    read_yes_or_no,
)
from activeo3.config import Config
from activeo3.data_vqa import COGNITION, HRBENCH_KINDS, PERCEPTION, VSTAR_KINDS
from activeo3.drawing import NOTHING
from activeo3.eval_baselines import METHODS, sensed
from activeo3.eval_core import Benchmark, Map, Models, Row, Setting, regions_of, rollout_record
from activeo3.eval_runner import Model, Record
from activeo3.generate import in_batches
from activeo3.model import VisionLanguageModel
from activeo3.samples import Sample
from activeo3.task_models import crop_view, is_valid_region
from activeo3.tasks import sensing_view
from activeo3.types import Example, Region, Reward

Asked = tuple[Example, Sequence[Region]]
"""An example and the regions that are shown beside the whole image."""


class Answer(NamedTuple):
    """What a model wrote, what that says, and whether it is right (None: the right answer is not known).

    ``lenient`` is the same as a lenient reader sees it, where ``reading`` goes by a published rule."""

    text: str
    reading: Reading
    right: bool | None
    lenient: bool | None


class VQABenchmark(Benchmark):
    """Questions with one right answer, asked about the whole image and the regions of each method."""

    methods = {
        name: METHODS[name]
        for name in ("direct", "direct-native", "random", "grid", "repeat", "cot", "active", "oracle-regions")
    }
    default_methods = ("direct", "random", "grid", "cot", "active", "oracle-regions")
    in_memory = 0
    kinds: tuple[str, ...] = ()
    """Categories that have a column of their own."""
    own_columns: tuple[str, ...] = ()
    """Metrics beside the accuracy."""
    published = False
    """True: answers are read by a published rule, and ``accuracy_lenient`` is the accuracy as ours reads them."""

    @property
    def columns(self) -> tuple[str, ...]:  # type: ignore[override]
        lenient = ("accuracy_lenient",) * self.published
        return ("accuracy", *lenient, *self.own_columns, *self.kinds, "region_recall", "unread", "regions", "seconds")

    def tables(self, rows: Sequence[Row]) -> dict[str, tuple[str, ...]]:
        return super().tables(rows) | {"answers that cannot be read": tuple(f"unread/{error}" for error in WORD_ERRORS)}

    def task_models(self, method: str, policy: str, models: Models) -> list[str]:
        """The models that answer: the start policy and each checkpoint, about its own regions; and another language
        model."""
        trained = models.titles("every") if policy in ("", "start") else dict.fromkeys(("start", policy))
        return [*trained, *([self.config.expert_name("mllm")] if self.config.other_mllm else [])]

    def answering(self, setting: Setting, models: Models) -> VisionLanguageModel:
        """The model that answers in a row."""
        name = setting.task_model
        return models[name] if name in models.policies else models.task_models[name]

    def models_of(self, setting: Setting, models: Models) -> list[Model | None]:
        return [models[setting.policy], self.answering(setting, models)]

    def can_be_blind(self, method: str) -> bool:
        return self.methods[method].zooms

    def asked(self, setting: Setting, examples: Sequence[Example]) -> Sequence[Example]:
        """All examples; for oracle-regions none, unless all have boxes around what they ask about."""
        boxed = setting.method != "oracle-regions" or all(len(example.boxes_px) for example in examples)
        return examples if boxed else []

    def passes(self, setting: Setting) -> int:
        return 1 + self.methods[setting.method].zooms

    def predict(self, setting: Setting, examples: Sequence[Example], models: Models, map: Map) -> list[Record]:
        """The regions of a policy or a rule, and the answer of a model that sees the whole image and these regions
        enlarged."""
        config, policy, method = self.config_of(setting), models[setting.policy], self.methods[setting.method]
        model, native = self.answering(setting, models), setting.method == "direct-native"

        def rollouts(block: Sequence[Example]) -> list[Record]:
            return [rollout_record(rollout) for rollout in method.propose(policy, block, config)]

        def answers(block: Sequence[Asked]) -> list[Record]:
            return [
                self.record(e, r, answer)
                for (e, r), answer in zip(block, self.ask(model, block, config, native, setting.blind))
            ]

        proposed: list[Record] = [{"regions": [], "seconds": 0.0}] * len(examples)
        if method.zooms:
            how = "greedy" if method.propose is sensed else setting.method
            proposed = map(rollouts, examples, ("propose", how, policy, config))
        pairs = [(e, regions_of(one["regions"])) for e, one in zip(examples, proposed, strict=True)]
        answered = map(answers, pairs, ("words", self.name, native, setting.blind, model, config))
        return [one | {"seconds": one["seconds"] + two["seconds"]} for one, two in zip(answered, proposed, strict=True)]

    def record(self, example: Example, regions: Sequence[Region], answer: Answer) -> Record:
        """A question with its answer."""
        return {
            "id": example.id, "category": example.vqa.category, "question": example.query,
            "options": list(example.vqa.options),
            "answer": example.vqa.answer, "text": answer.text, "read": answer.reading.value,
            "error": answer.reading.error,
            "right": answer.right, "lenient": answer.lenient, "regions": [list(region) for region in regions],
        }  # fmt: skip

    def ask(
        self, model: VisionLanguageModel, asked: Sequence[Asked], config: Config, native: bool, blind: bool
    ) -> list[Answer]:
        """One greedy answer per example."""
        sampling = config.sampling(0.0, config.task_max_new_tokens)

        def work(part: Sequence[Asked]) -> list[Answer]:
            shown = [views(model, example, regions, config, native, blind) for example, regions in part]
            questions = [
                prompts.question_prompt(e.query, e.vqa.options, e.vqa.hint, len(images) - 1)
                for (e, _), images in zip(part, shown)
            ]
            answers = model.generate(model.encode(shown, questions), 1, sampling)
            return [
                self.read(e, model.decode(ids), model.is_finished(ids))
                for (e, _), (ids,) in zip(part, answers, strict=True)
            ]

        return in_batches(work, asked, max(1, config.task_batch // (1 + config.regions)))

    def read(self, example: Example, text: str, finished: bool) -> Answer:
        """What an answer says and whether that is right, by the rules of the benchmark."""
        options, right = example.vqa.options, example.vqa.answer
        reading = read_letter(text, options, finished) if options else read_word(text, example.query, finished)
        is_right = None if right is None else _same(reading, right)
        return Answer(text, reading, is_right, is_right)

    def metrics(self, setting: Setting, examples: Sequence[Example], records: Sequence[Record]) -> dict[str, Any]:
        """``scores`` of all questions and of each category; unread answers by what kept them from being read; regions
        and seconds."""
        resamples, right = self.config.resamples, marks(record["right"] for record in records)
        found = self.scores(examples, right, resamples) if not np.isnan(right).all() else {}
        if found and self.published:
            lenient = marks(record["lenient"] for record in records)
            found["accuracy_lenient"] = intervals.bootstrap_interval(lenient, ids(examples), resamples)
        if setting.regions and any(len(example.boxes_px) for example in examples):
            recalls = [metrics.region_recall(r["regions"], metrics.asked_boxes(e)) for r, e in zip(records, examples)]
            found["region_recall"] = intervals.bootstrap_interval(recalls, ids(examples), resamples)
        errors = Counter(record["error"] for record in records)
        found |= {"unread": 1 - errors[None] / len(records)} | {
            f"unread/{error}": errors[error] for error in WORD_ERRORS
        }
        found |= {name: float(np.mean([len(r["regions"]) for r in records])) for name in ("regions",)}
        found["seconds"] = float(np.mean([record["seconds"] for record in records]))
        return (
            found | self.by_category(examples, right, "category") | self.by_category(examples, right, "ability", "l2/")
        )

    def scores(self, examples: Sequence[Example], right: np.ndarray, resamples: int) -> dict[str, Any]:
        """The numbers of a benchmark by column, with intervals over images; ``right`` (E,) is 1 or 0."""
        found = {"accuracy": intervals.bootstrap_interval(right, ids(examples), resamples)}
        for kind in self.kinds:
            own = [index for index, example in enumerate(examples) if example.vqa.category == kind]
            found[kind] = intervals.bootstrap_interval(right[own], [examples[k].image_id for k in own], resamples)
        return found

    def by_category(
        self, examples: Sequence[Example], right: np.ndarray, field: str, prefix: str = ""
    ) -> dict[str, float]:
        """``scores`` of each category alone, as ``accuracy/<category>``; none where the questions have none."""
        kinds = [getattr(example.vqa, field) for example in examples]
        found: dict[str, float] = {}
        for kind in sorted(set(kinds)) if any(kinds) and not np.isnan(right).all() else ():
            own = [index for index, other in enumerate(kinds) if other == kind]
            values = self.scores([examples[k] for k in own], right[own], resamples=0)
            finite = {
                name: cell.value for name, cell in values.items() if np.isfinite(cell.value) and name not in self.kinds
            }
            found |= {f"n/{prefix}{kind}": len(own)} | {
                f"{name}/{prefix}{kind}": value for name, value in finite.items()
            }
        return found

    def sample(self, example: Example, record: Record, title: str) -> Sample:
        regions, reward = tuple(Region(*box) for box in record["regions"]), float(record["right"] or 0)
        return Sample(
            example,
            record["text"],
            regions,
            NOTHING,
            Reward({"right": reward}, reward),
            title,
            record["error"],
            record["text"],
        )

    def write(self, folder: Path, examples: Sequence[Example], rows: Mapping[str, Row]) -> str:
        """Of a test set, whose answers are not public, the file for the publisher's server."""
        if not all(example.vqa.answer is None and example.vqa.columns for example in examples):
            return ""
        for label, row in rows.items():
            write_submission(folder / f"submission-{self.name}-{label}.tsv", examples, row.records)
        files = f"{folder}/submission-{self.name}-*.tsv"
        return f"{self.name} has no public answers: submit {files} ({len(examples)} rows; all of them with --limit 0)"


class GroupedBenchmark(VQABenchmark):
    """Some questions belong together: ``group_column`` is the share of groups in which every answer is right.

    A group of which a question is missing does not count.
    """

    group_column = ""

    def members(self, example: Example) -> int:
        """How many questions belong to the group of an example; 0: the group does not count."""
        return 2

    def groups(self, examples: Sequence[Example]) -> list[list[int]]:
        """The indices of each group of which every question is there, in order of appearance."""
        found: dict[str, list[int]] = {}
        for index, example in enumerate(examples):
            found.setdefault(example.vqa.group, []).append(index)
        return [group for group in found.values() if 0 < self.members(examples[group[0]]) <= len(group)]

    def scores(self, examples: Sequence[Example], right: np.ndarray, resamples: int) -> dict[str, Any]:
        groups = self.groups(examples)
        images = [examples[group[0]].image_id for group in groups]
        together = [float(right[group].all()) for group in groups]
        found = super().scores(examples, right, resamples)
        return found | {self.group_column: intervals.bootstrap_interval(together, images, resamples)}


class MMEBenchmark(GroupedBenchmark):
    """MME: both questions about an image, and the points of its two parts."""

    group_column = "accuracy_plus"
    own_columns = ("accuracy_plus", "perception", "cognition", "total")
    published = True

    def read(self, example: Example, text: str, finished: bool) -> Answer:
        return _published(example, text, mme_script(text, finished), read_yes_or_no(text, finished))

    def scores(self, examples: Sequence[Example], right: np.ndarray, resamples: int) -> dict[str, Any]:
        """A category scores 100 x (accuracy + accuracy_plus), at most 200; the parts and the total are sums over
        categories."""
        found, groups = super().scores(examples, right, resamples), self.groups(examples)
        for name, kinds in (("perception", PERCEPTION), ("cognition", COGNITION), ("total", PERCEPTION + COGNITION)):
            own = [group for group in groups if examples[group[0]].vqa.category in kinds]
            points = [100 * (right[group].mean() + right[group].all()) for group in own]
            firsts = [examples[group[0]] for group in own]
            strata = [first.vqa.category for first in firsts]
            found[name] = intervals.bootstrap_total(points, ids(firsts), strata, resamples)
        return found


class MMBenchBenchmark(GroupedBenchmark):
    """MMBench: right in every rotation of the options."""

    group_column = "circular"
    own_columns = ("circular",)

    def members(self, example: Example) -> int:
        return example.vqa.rotations


class RealWorldQABenchmark(VQABenchmark):
    """RealWorldQA: answers without options are read as its publisher reads them."""

    published = True

    def read(self, example: Example, text: str, finished: bool) -> Answer:
        if example.vqa.options:
            return super().read(example, text, finished)
        query = example.query
        return _published(example, text, lmms_eval_word(text, query, finished), read_word(text, query, finished))


class VStarBenchmark(VQABenchmark):
    """V*Bench, and that of its two categories."""

    kinds = VSTAR_KINDS


class HRBenchBenchmark(VQABenchmark):
    """HR-Bench, and that of its two categories."""

    kinds = HRBENCH_KINDS


OF_DATA: dict[str, type[VQABenchmark]] = {
    "mme": MMEBenchmark, "realworldqa": RealWorldQABenchmark, "vstar": VStarBenchmark, "hrbench": HRBenchBenchmark,
    "hrbench_8k": HRBenchBenchmark, **dict.fromkeys(data_mmbench.NAMES, MMBenchBenchmark),
}  # fmt: skip
"""Data sets that have metrics of their own."""


# ---------------------------------------------------------------------- asking and reading


def views(
    model: VisionLanguageModel, example: Example, regions: Sequence[Region], config: Config, native: bool, blind: bool
) -> list[Image.Image]:
    """The whole image and its crops, in the order in which the prompt speaks of them."""
    whole, _ = sensing_view(model, example.image, config.sensing_side, config.max_view_pixels)
    if native:
        least = min(config.crop_side**2, config.max_view_pixels)
        whole = example.image.resize(
            model.view_size(example.size_px, (least, config.max_view_pixels)), Image.Resampling.BICUBIC
        )
    source = Image.new("RGB", example.size_px) if blind else example.image
    return [whole, *(crop_view(model, source, region, config)[0] for region in regions if is_valid_region(region))]


def _published(example: Example, text: str, reading: Reading, lenient: Reading) -> Answer:
    """An answer by a published rule, which compares words as they stand, and as the lenient reader sees it."""
    right = example.vqa.answer
    if right is None:
        return Answer(text, reading, None, None)
    return Answer(text, reading, reading.value == right.strip().lower(), _same(lenient, right))


def _same(reading: Reading, right: str) -> bool:
    return reading.value is not None and plain(reading.value) == plain(right)


def marks(verdicts: Iterable[bool | None]) -> np.ndarray:
    """1 for a right answer, 0 for a wrong one and NaN where the right one is not known, (E,)."""
    return np.array([np.nan if right is None else float(right) for right in verdicts])


def ids(examples: Sequence[Example]) -> list[int]:
    """The images of the examples, which are resampled together."""
    return [example.image_id for example in examples]


def write_submission(path: Path, examples: Sequence[Example], answers: Sequence[Mapping[str, Any]]) -> None:
    """Write the file that MMBench's server takes for a test set; ``answers`` have the ``text`` that was written, in the
    same order.

    It is a table with the columns of the published file, without the image, and ``prediction``, as VLMEvalKit writes
    it; the server (its ``scripts/mmb_eval_gradio.py``) takes .xlsx, .tsv and .csv, and wants ``index``, ``question``,
    ``A`` to ``D`` and ``prediction``. It reads the letter out of what a model wrote by its own rules; a thought and its
    tags would mislead it, so the answer is what ``answer_parsing.final_text`` leaves.
    """
    columns = list(
        dict.fromkeys(column for example in examples for column in example.vqa.columns if column != "answer")
    )
    file = io.StringIO(newline="")
    writer = csv.DictWriter(
        file,
        [*columns, "prediction"],
        delimiter="\t",
        quoting=csv.QUOTE_ALL,
        extrasaction="ignore",
        lineterminator="\n",
    )
    writer.writeheader()
    for example, answer in zip(examples, answers, strict=True):
        writer.writerow(example.vqa.columns | {"prediction": final_text(answer["text"])})
    outputs.leave(path, file.getvalue().encode())
