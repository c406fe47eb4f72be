"""The frame of every evaluation: settings x examples -> records -> metrics -> rows.

A ``Benchmark`` names the rows of its table (``settings``), lets the models work on examples (``predict``: one JSON
record each) and measures the records (``metrics``). ``evaluate`` runs one. Several checkpoints, budgets of regions, the
blind control, several processes and resumption are here and in eval_runner.py, and hold for every benchmark.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable, Literal, NamedTuple, Sequence, TypeVar

import numpy as np
from PIL import Image

from activeo3.config import Config, ConfigError, TrainConfig
from activeo3.eval_config import EvalConfig
from activeo3.eval_runner import Model, Record, Runner
from activeo3.geometry import as_boxes, mask_to_rle, rle_to_mask
from activeo3.intervals import Metric, value_of
from activeo3.model import VisionLanguageModel
from activeo3.samples import Sample
from activeo3.task_perception import Answer
from activeo3.tasks import task_of
from activeo3.types import Example, ParsedAnswer, Region, Rollout, TaskResult

T = TypeVar("T")
ITSELF = "itself"
"""The task model of a row in which the policy itself answers."""
STRICT, LENIENT_ONLY, CROPS_LENIENT_ONLY = "_strict", "lenient_only", "crops_lenient_only"
"""Ends of metrics had only the strict reader been there; shares of answers that only the lenient one could read."""
Map = Callable[..., list[Record]]
"""``map(work, items, key)``: see ``Runner.map``; here it also reads images and counts ``seconds``."""


# ---------------------------------------------------------------------- rows


@dataclass(frozen=True)
class Method:
    """How a row gets from examples to rollouts.

    Args:
        propose: ``propose(policy, examples, config)`` gives a rollout per example; None where the benchmark has a way
        of its own.
        policy: which policies have a row: none is asked, the start policy, each trained one, or every one.
        zooms: False where the budget of regions makes no difference.
        overrides: fields of the config that the method fixes.
    """

    propose: Callable[[VisionLanguageModel | None, Sequence[Example], Config], list[Rollout]] | None = None
    policy: Literal["none", "start", "trained", "every"] = "trained"
    zooms: bool = True
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """One row of a table: a method, the title of its policy, the name of its task model, its budget of regions (0: no
    zoom), and whether it is the control in which images are black."""

    method: str
    policy: str = ""
    task_model: str = ""
    regions: int = 0
    blind: bool = False


class Row(NamedTuple):
    """A row with its records, one per example; ``parser`` is lenient if the answers of any of its models are read
    so."""

    benchmark: str
    setting: Setting
    n: int
    metrics: dict[str, Metric | float | int | None]
    records: list[Record]
    parser: str = "strict"


class Models:
    """The policies of a table by title, and the frozen task models by name.

    Args:
        policies: title -> model, or its source, which ``load`` loads; "start" is the untrained policy.
        task_models: the task models by name.
        trained: the titles of the policies that are evaluated; by default all but "start".
        trained_for: title -> the task of its training run.
    """

    def __init__(
        self,
        policies: Mapping[str, VisionLanguageModel | str],
        task_models: Mapping[str, Model] | None = None,
        load: Callable[[str], VisionLanguageModel] | None = None,
        trained: Sequence[str] = (),
        trained_for: Mapping[str, str] | None = None,
    ) -> None:
        self.policies, self.task_models, self.load = policies, task_models or {}, load
        self.trained = list(trained) or [title for title in policies if title != "start"] or ["start"]
        self.trained_for = trained_for or {}

    def __getitem__(self, title: str) -> VisionLanguageModel | None:
        """The policy of a title, loaded if it is not there; None for ""."""
        policy = self.policies[title] if title else None
        return self.load(policy) if self.load and isinstance(policy, str) else policy

    def titles(self, which: str) -> list[str]:
        """The titles that ``Method.policy`` means."""
        every = list(dict.fromkeys(["start", *self.trained]))
        return {"none": [""], "start": ["start"], "trained": self.trained, "every": every}[which]

    def turn(self, setting: Setting) -> int:
        """Rows of one turn need no other checkpoint beside the start policy than each other."""
        places = {title: place for place, title in enumerate(self.policies)}
        return max(places.get(setting.policy, 0), places.get(setting.task_model, 0))


# ---------------------------------------------------------------------- benchmarks


class Benchmark(ABC):
    """A data set, the rows of its table, and what they measure.

    Args:
        name: the data set, also the name of the table.
        config: flags of the evaluation.
        rewards: the weights of the reward that pages and episodes show; by default those of a training run.
    """

    methods: Mapping[str, Method]
    default_methods: tuple[str, ...]
    flag = "methods"
    """The flag that chooses among the methods."""
    in_memory: float = math.inf
    """Of more examples than this, images are read block by block, because all of them may not fit into memory."""
    columns: tuple[str, ...] = ()
    """Metrics of the headline table."""
    best: str = ""
    """``main_metric``, if that is not the first column."""
    known_columns: frozenset[str] = frozenset()
    """Metrics that --columns may name beside ``columns``."""
    training: Sequence[Example] = ()
    """Training examples that a method is fitted on, as many as ``fitted_on``."""
    fitted_on = 0

    def __init__(self, name: str, config: EvalConfig, rewards: TrainConfig | None = None) -> None:
        self.name, self.config, self.rewards = name, config, rewards or TrainConfig()
        self.task = type(task_of(config))(config, self.rewards)
        self.chosen, self.digits = getattr(config, self.flag) or self.default_methods, config.digits
        if unknown := [method for method in self.chosen if method not in self.methods]:
            what = f"--{self.flag} {' '.join(unknown)} not known for {name} (--task {config.task})"
            raise ConfigError(f"{what}; there are: {', '.join(self.methods)}.")
        if unknown := [column for column in config.columns if column not in {*self.columns, *self.known_columns}]:
            usual = ", ".join(self.columns)
            raise ConfigError(
                f"--columns {' '.join(unknown)}: for {name} there are {usual} and what else results.json has."
            )

    def tables(self, rows: Sequence[Row]) -> dict[str, tuple[str, ...]]:
        """Title -> metrics that are its columns; the first is the headline table. Metrics that no row has are not
        shown.

        The headline table has --columns, or the usual ones and those of both readers if some row is read leniently.
        """
        chosen = tuple(name for name in self.config.columns if any(name in row.metrics for row in rows))
        lenient = any(row.parser == "lenient" for row in rows)
        readers = [name for row in rows for name in row.metrics if name.endswith((STRICT, LENIENT_ONLY))]
        return {"": chosen or (*self.columns, *(readers if lenient else ()))}

    def shown(self, row: Row) -> bool:
        """Whether the page shows the answers of a row."""
        return bool(row.setting.policy) and not row.setting.blind

    def settings(self, models: Models) -> list[Setting]:
        """The rows, method by method, each with its policies, budgets, task models and the blind control."""
        return [
            Setting(method, policy, task_model, regions, blind)
            for method in self.chosen
            for policy in models.titles(self.methods[method].policy)
            for regions in self.budgets(method, policy, models)
            for task_model in self.task_models(method, policy, models)
            for blind in ((False, True) if self.config.black and self.can_be_blind(method) else (False,))
        ]

    def budgets(self, method: str, policy: str, models: Models) -> list[int]:
        """How many regions a method may propose: --regions for the tables, --budgets for the curve."""
        return sorted({self.config.regions, *self.config.budgets}) if self.methods[method].zooms else [0]

    @property
    def main_metric(self) -> str:
        """The metric by which policies and checkpoints are compared."""
        return self.best or self.columns[0]

    @property
    def main_budget(self) -> int:
        """The budget whose rows stand in the tables."""
        return self.config.regions

    def task_models(self, method: str, policy: str, models: Models) -> list[str]:
        """The names of the task models that work for a method; "" where the policy's answer is the result."""
        return [""]

    def can_be_blind(self, method: str) -> bool:
        """Whether a method has a row of the control in which images are black."""
        return True

    def config_of(self, setting: Setting) -> EvalConfig:
        """The flags under which a row is made."""
        regions = {"regions": setting.regions} if setting.regions else {}
        return replace(self.config, **regions, **self.methods[setting.method].overrides)

    def models_of(self, setting: Setting, models: Models) -> list[Model | None]:
        """The models whose answers a row reads."""
        return [models[setting.policy], models.task_models.get(setting.task_model)]

    def asked(self, setting: Setting, examples: Sequence[Example]) -> Sequence[Example]:
        """The examples that a row can be asked about."""
        return examples

    def prepare(self, examples: Sequence[Example], models: Models) -> list[Example]:
        """The examples with what the benchmark needs to know of them; before ``evaluate``."""
        return list(examples)

    def passes(self, setting: Setting) -> int:
        """How often ``predict`` maps every example: for the bar."""
        return 1

    @abstractmethod
    def predict(self, setting: Setting, examples: Sequence[Example], models: Models, map: Map) -> list[Record]:
        """One record per example."""

    @abstractmethod
    def metrics(self, setting: Setting, examples: Sequence[Example], records: Sequence[Record]) -> dict[str, Any]:
        """The numbers of a row by name."""

    def sample(self, example: Example, record: Record, title: str) -> Sample | None:
        """What the page shows of one answer; None: nothing."""
        return None

    def write(self, folder: Path, examples: Sequence[Example], rows: Mapping[str, Row]) -> str:
        """Write files of the benchmark's own, ``rows`` by their labels; return what is to be said of them."""
        return ""


def evaluate(
    benchmark: Benchmark,
    examples: Sequence[Example],
    models: Models,
    runner: Runner,
    load: Callable[[Example], Example] | None = None,
) -> list[Row]:
    """The rows of a benchmark in the order of its settings, of examples that it has prepared; every checkpoint is
    loaded once.

    ``load`` reads the image of an example that was put aside (``Dataset.without_images``).
    """
    settings = benchmark.settings(models)
    rows: dict[Setting, Row] = {}
    for setting in sorted(settings, key=models.turn):
        runner.expect(len(examples) * benchmark.passes(setting))
        if asked := benchmark.asked(setting, examples):
            records = benchmark.predict(setting, asked, models, _map_examples(runner.map, load))
            records = [{"id": example.id} | record for example, record in zip(asked, records, strict=True)]
            measured = benchmark.metrics(setting, asked, records)
            parser = parser_of(benchmark.config, benchmark.models_of(setting, models))
            row = rows[setting] = Row(benchmark.name, setting, len(asked), measured, records, parser)
            runner.say(f"{benchmark.name} {_said(row)}")
        else:
            runner.say(f"{benchmark.name} {setting.method}: no row, because no example has what it needs")
        runner.expect(0)
    return [rows[setting] for setting in settings if setting in rows]


def total_work(benchmark: Benchmark, questions: int, models: Models) -> int:
    """How many questions ``evaluate`` counts, every pass of every row."""
    return questions * sum(map(benchmark.passes, benchmark.settings(models)))


def _map_examples(run: Map, load: Callable[[Example], Example] | None) -> Map:
    """``Runner.map`` for work on examples (or pairs with one): images are read, and every record gets its
    ``seconds``."""

    def loaded(item: Any) -> Any:
        return (load(item[0]), *item[1:]) if isinstance(item, tuple) else load(item)

    def map_examples(
        work: Callable[[Sequence[T]], Sequence[Record]], items: Sequence[T], key: tuple, **more: int
    ) -> list[Record]:
        def timed(block: Sequence[T]) -> list[Record]:
            began = time.perf_counter()
            records = work([loaded(item) for item in block] if load else block)
            seconds = (time.perf_counter() - began) / len(block)
            return [record | {"seconds": seconds} for record in records]

        return run(timed, items, key, **more)

    return map_examples


def _said(row: Row) -> str:
    """A row in a few words: its setting and its first metric."""
    name, value = next(iter(row.metrics.items()), ("", None))
    number = value_of(value)
    shown = filter(
        None, [row.setting.method, row.setting.policy, row.setting.task_model and f"with {row.setting.task_model}"]
    )
    return (
        f"{' '.join(shown)}{' blind' * row.setting.blind}: {name} {number if number is None else format(number, '.3f')}"
    )


def parser_of(config: Config, models: Sequence[Any]) -> str:
    """How the answers of these models are read: leniently if those of any are. Task models of another kind have
    none."""
    written = [model for model in models if isinstance(model, VisionLanguageModel)]
    lenient = any(config.decided(model.trained_here).parser == "lenient" for model in written)
    return "lenient" if lenient else "strict"


def strictly_read(rollout: Rollout) -> Rollout:
    """The answer, had only the strict reader been there: it had no region where only the lenient one found some."""
    strict = rollout.action.strict
    if strict is None:
        return rollout
    return replace(
        rollout, action=strict, regions=(), result=rollout.result and (rollout.result.strict or rollout.result)
    )


def strict_columns(metrics: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """These metrics, measured of what was strictly read or found, under the names of their columns."""
    return {f"{name}{STRICT}": metrics[name] for name in names}


def shares(rollouts: Sequence[Rollout], outcomes: Sequence[TaskResult] = ()) -> dict[str, float]:
    """lenient_only of answers and, where there are any, of what was said about crops."""
    found = {LENIENT_ONLY: sum(rollout.action.strict is not None for rollout in rollouts) / len(rollouts)}
    calls = sum(outcome.calls for outcome in outcomes)
    return found | ({CROPS_LENIENT_ONLY: sum(outcome.lenient_only for outcome in outcomes) / calls} if calls else {})


def blackened(examples: Sequence[Example]) -> list[Example]:
    """The same questions about black images; those of one size share their pixels."""
    black = {size: Image.new("RGB", size) for size in {example.size_px for example in examples}}
    return [replace(example, image=black[example.size_px]) for example in examples]


# ---------------------------------------------------------------------- records


def rollout_record(rollout: Rollout) -> dict[str, Any]:
    """A rollout of one turn without its example."""
    return {
        "token_ids": rollout.token_ids, "text": rollout.text, "finished": rollout.finished,
        "action": _answer_record(rollout.action),
        "regions": rollout.regions, "result": rollout.result and result_record(rollout.result),
    }  # fmt: skip


def rollout_of(example: Example, record: Mapping[str, Any]) -> Rollout:
    """The rollout of a record."""
    return Rollout(
        example, tuple(record["token_ids"]), record["text"], record["finished"], _answer_of(record["action"]),
        regions_of(record["regions"]), record["result"] and result_of(record["result"]),
    )  # fmt: skip


def regions_of(boxes: Sequence[Sequence[float]]) -> tuple[Region, ...]:
    """Regions from lists of four numbers."""
    return tuple(Region(*box) for box in boxes)


def result_record(outcome: TaskResult) -> dict[str, Any]:
    """An outcome, its mask as run lengths."""
    return {
        "boxes_px": outcome.boxes_px.tolist(), "scores": outcome.scores.tolist(), "texts": outcome.texts,
        "calls": outcome.calls,
        "tokens": outcome.tokens, "lenient_only": outcome.lenient_only,
        "strict": outcome.strict and result_record(outcome.strict),
        "mask": None if outcome.mask is None else mask_to_rle(outcome.mask),
    }  # fmt: skip


def result_of(record: Mapping[str, Any]) -> TaskResult:
    """The outcome of a record."""
    return TaskResult(
        as_boxes(record["boxes_px"]), np.array(record["scores"], dtype=np.float64), tuple(record["texts"]),
        record["calls"],
        record["tokens"], None if record["mask"] is None else rle_to_mask(record["mask"]),
        record["strict"] and result_of(record["strict"]), record["lenient_only"],
    )  # fmt: skip


def _answer_record(action: ParsedAnswer) -> dict[str, Any]:
    record = {"boxes_text": action.boxes_text, "labels": action.labels, "error": action.error}
    record |= {"strict": action.strict and _answer_record(action.strict)}
    return record | ({"count": action.count, "text": action.text} if isinstance(action, Answer) else {})


def _answer_of(record: Mapping[str, Any]) -> ParsedAnswer:
    boxes, strict = tuple(map(tuple, record["boxes_text"])), record["strict"] and _answer_of(record["strict"])
    common = (boxes, tuple(record["labels"]), record["error"], strict)
    return Answer(*common, count=record["count"], text=record["text"]) if "count" in record else ParsedAnswer(*common)
