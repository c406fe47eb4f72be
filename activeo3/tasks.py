"""The interface of a task, from the prompt to the reward, and the register of tasks.

    prepare    an example of any data set becomes a question of the task
    prompt     what the policy is shown and asked
    parse      what an answer says; a task of several turns has ``start`` instead, a Conversation
    act        what the task model makes of it; without crops, the answers are the results
    reward     the weighted sum of ``reward_terms``

A task is a class with a ``name``: it is known as soon as it is defined. Every file ``task_*.py`` of this package is
imported when tasks are looked up, so a new task is one file, beside its prompt texts in prompts.py.
"""

import importlib
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Callable, ClassVar, Mapping, NamedTuple, Protocol, Self, Sequence

import numpy as np
import torch
from PIL import Image

from activeo3 import geometry, task_model_detectors, user_code
from activeo3.cli import check_known, did_you_mean, is_code
from activeo3.config import Config, ConfigError, TrainConfig
from activeo3.data_io import DataError
from activeo3.data_set import Dataset
from activeo3.geometry import Frame
from activeo3.metrics import asked_boxes
from activeo3.model import VisionLanguageModel
from activeo3.task_model_detectors import Thresholds
from activeo3.task_models import Oracle, TaskModel, UserFunction
from activeo3.types import Example, Parsed, ParsedAnswer, Region, Reward, Rollout, Sampling, TaskResult


class PromptSpec(NamedTuple):
    """What a policy is shown (several images are a list) and asked. ``frame`` maps the numbers it writes to
    original pixels."""

    view: Image.Image | list[Image.Image]
    frame: Frame
    words: str

    @property
    def first_view(self) -> Image.Image:
        """The image, or the first of several."""
        return self.view[0] if isinstance(self.view, list) else self.view


class Observation(NamedTuple):
    """What a policy is shown after a turn: words, and before them an image, or several, unless None.

    With ``replaces``, the earlier images are masked from here on.
    """

    view: Image.Image | Sequence[Image.Image] | None
    words: str
    replaces: bool = False


class Conversation(Protocol):
    """One answer in the making, turn by turn."""

    def step(self, text: str, finished: bool) -> Observation | None:
        """Read a turn (without its end token) and return what to show next, or None if the answer is complete."""

    def truncate(self) -> None:
        """End the answer because the next observation would exceed ``--episode_options episode_tokens``."""

    def result(self) -> Parsed:
        """What the turns say, read together."""


class Task(ABC):
    """One task under one config. ``reward_config`` holds the settings of the reward; an evaluation uses the defaults.

    Class attributes: ``name`` as in ``--task``; ``terms`` with the default weight of every reward term, of which
    ``costs`` are what an answer pays for; ``crops`` is False where the answer is the result; ``turns`` is True where
    the policy may zoom and answer again; ``benchmark`` names the evaluation; ``task_models`` are the values of
    ``--task_model`` that can work on its crops.
    """

    name: ClassVar[str]
    terms: ClassVar[Mapping[str, float]]
    costs: ClassVar[tuple[str, ...]] = ()
    crops: ClassVar[bool] = True
    turns: ClassVar[bool] = False
    benchmark: ClassVar[str] = "detection"
    task_models: ClassVar[tuple[str, ...]] = ("mllm", "detector", "oracle")

    def __init_subclass__(cls) -> None:
        if "name" in cls.__dict__ and not user_code.defines(cls):  # those are known by their file
            TASKS[cls.name] = cls

    def __init__(self, config: Config, reward_config: TrainConfig | None = None) -> None:
        self.config = config
        self.reward_config = reward_config or (config if isinstance(config, TrainConfig) else TrainConfig())
        self.user_terms = {term.name: term for term in map(UserTerm, self.reward_config.reward)}
        given, own = self.reward_config.given_weights, dict.fromkeys(self.user_terms, 1.0)
        self.weights = {term: given.get(term, weight) for term, weight in {**self.terms, **own}.items()}

    def under(self, config: Config) -> Self:
        """The same task under another config, with the same reward."""
        return self if config is self.config else type(self)(config, self.reward_config)

    @property
    def max_new_tokens(self) -> int:
        """The length limit of an answer, or of a turn, in tokens."""
        return self.config.max_new_tokens

    def sampling(self, temperature: float = 0.0) -> Sampling:
        """How answers of this task are sampled; temperature 0 is greedy."""
        return self.config.sampling(temperature, self.max_new_tokens)

    def prepare(self, example: Example) -> Example:
        """The example as a question of this task. Raises DataError if it cannot be one."""
        return example

    def prepare_batch(self, task_model: Any, examples: Sequence[Example]) -> list[Example]:
        """Examples with what only the task model can add, such as SAM's first masks."""
        return list(examples)

    def load_task_model(self, name: str, device: torch.device) -> TaskModel:
        """The task model ``name`` of this task that is not a language model."""
        if name == "oracle":
            return Oracle()
        if is_code(name):
            return UserFunction(name)
        thresholds = Thresholds(self.config.box_threshold, self.config.text_threshold)
        return task_model_detectors.load(self.config.task_checkpoint, device, thresholds)

    @abstractmethod
    def prompt(self, vlm: VisionLanguageModel, example: Example) -> PromptSpec:
        """Images, question and coordinate frame."""

    def parse(self, text: str, finished: bool, prompt: PromptSpec, example: Example) -> Parsed:
        """Read an answer (without its end token). ``finished`` is False if it hit the length limit. A bad answer is a
        value, ``ParsedAnswer.error``."""
        raise NotImplementedError(f"task {self.name} reads its answers turn by turn")

    def start(self, vlm: VisionLanguageModel, example: Example, prompt: PromptSpec) -> Conversation:
        """Begin one answer; tasks of several turns return a Conversation of their own."""
        return SingleTurn(self, example, prompt)

    def act(self, task_model: Any, rollouts: Sequence[Rollout]) -> list[TaskResult]:
        """One result per rollout. Here the answers are the results; tasks with crops run the task model."""
        return [rollout.result for rollout in rollouts]

    def truth(self, example: Example, frame: Frame) -> str:
        """The right answer in the policy's own words, which ``--task_update sft`` learns."""
        raise NotImplementedError(f"task {self.name} is learned by reward")

    @abstractmethod
    def reward_terms(self, rollout: Rollout, result: TaskResult) -> dict[str, float]:
        """The unweighted value of every term of ``terms``."""

    def reward(self, rollout: Rollout, result: TaskResult) -> Reward:
        """The terms, those of the user's last, and their weighted sum."""
        terms = self.reward_terms(rollout, result) | {
            name: term(rollout, result) for name, term in self.user_terms.items()
        }
        weighted = {name: self.weights[name] * value for name, value in terms.items()}
        apart = () if self.reward_config.divide_costs else self.costs
        return Reward(terms, sum(weighted.values()), cost=sum((weighted[name] for name in apart), 0.0))

    def settle(self, row: Mapping[str, float]) -> dict[str, float]:
        """The row of a step, with what the task adds to it. A task whose reward follows the run moves it here; a run
        that is continued calls this for every earlier row again."""
        return dict(row)

    def check(self) -> None:
        """Raise ConfigError for flags that do not go with this task."""
        config, task_models = self.config, self.config.task_model_names
        trains = isinstance(config, TrainConfig)
        if trains and not self.crops and task_models != ("mllm",):
            raise self._without_crops(f"--task_model {' '.join(task_models)}")
        if trains and not self.crops and config.other_mllm:
            raise self._without_crops(f"--task_checkpoint {config.other_mllm}")
        if config.wording == "zoom_roi" and not self.turns:
            raise self._of_another("--wording zoom_roi asks for zooms turn by turn", "zoom_qa")
        if self.reward_config.coverage == "recall" and "sam" not in self.task_models:
            raise self._of_another("--coverage recall is of a mask's errors", "segment")
        if "sam" in task_models and "sam" not in self.task_models:
            raise self._of_another("--task_model sam corrects masks", "segment")
        for term in self.user_terms.keys() & self.terms.keys():
            raise ConfigError(f"--reward: --task {self.name} has a term {term!r} already; give yours another name.")
        for term in self.reward_config.given_weights if trains else ():
            if term not in self.weights:
                near, named = did_you_mean(term, self.weights), ", ".join(self.weights)
                raise ConfigError(
                    f"--reward_weights {term} is no term of --task {self.name}{near}; there are: {named}."
                )

    def _without_crops(self, flag: str) -> ConfigError:
        return ConfigError(f"--task {self.name} has no crops to work on: leave out {flag}.")

    def _of_another(self, what: str, task: str) -> ConfigError:
        return ConfigError(f"{what}: it goes with --task {task}, not with --task {self.name}.")


@dataclass
class SingleTurn:
    """The conversation of an answer that is complete after its first turn."""

    task: Task
    example: Example
    prompt: PromptSpec
    message: tuple[str, bool] = ("", False)

    def step(self, text: str, finished: bool) -> None:
        self.message = text, finished

    def truncate(self) -> None:
        raise RuntimeError("an answer of one turn has nothing to show")

    def result(self) -> Parsed:
        return self.task.parse(*self.message, self.prompt, self.example)


# ---------------------------------------------------------------------- a term of the user's


@dataclass(frozen=True, eq=False)
class Attempt:
    """One sampled answer and what came of it, as a reward of the user's sees it. All boxes are xyxy in pixels of the
    image.

    ``question`` is what was asked; ``text`` the answer as it was written, all turns of an episode; ``error`` what is
    wrong with its form, or None; ``finished`` False if it hit the length limit. ``regions`` (K) are where it looked,
    ``crop_texts`` what the task model wrote about each. ``boxes`` (M, 4) with ``scores`` (M,) is what was found, best
    first; ``answer`` an episode's answer in words, or None. ``true_boxes`` (N, 4) are those that were asked for, crowds
    apart; ``example`` is the question with all that its data set knows.
    """

    question: str
    image: Image.Image
    text: str
    finished: bool
    error: str | None
    regions: tuple[Region, ...]
    crop_texts: tuple[str, ...]
    boxes: np.ndarray
    scores: np.ndarray
    answer: str | None
    true_boxes: np.ndarray
    example: Example

    @classmethod
    def of(cls, rollout: Rollout, result: TaskResult) -> Self:
        """What a rollout and its result say."""
        example = rollout.example
        return cls(
            example.query, example.image, rollout.text, rollout.finished, rollout.action.error, rollout.regions,
            result.texts, result.boxes_px, result.scores, rollout.episode and rollout.episode.answer,
            asked_boxes(example), example,
        )  # fmt: skip


class UserTerm:
    """A function ``score(attempt) -> float`` of a file of the user's, a reward term under the function's name.

    NaN and infinity leave the answer out of its group, as those of any term do (``Reward.faults``).
    """

    def __init__(self, named: str) -> None:
        self.named, (self.path, self.name) = named, user_code.parts_of(named)
        self.function: Callable[[Attempt], float] = user_code.load_function("--reward", named, ("attempt",))

    def __call__(self, rollout: Rollout, result: TaskResult) -> float:
        """The term. Raises ConfigError, naming the example, if the function fails or returns no number."""
        what = f"--reward {self.named}, for example {rollout.example.id},"
        value = user_code.call(what, self.path, self.function, Attempt.of(rollout, result))
        if (
            not isinstance(value, Real) and getattr(value, "shape", None) != ()
        ):  # an array or tensor of one number is one
            raise ConfigError(f"{what} returns {value!r:.60}; it must return a number.")
        return float(value)


# ---------------------------------------------------------------------- views and regions, for all tasks


def sensing_view(
    policy: VisionLanguageModel, image: Image.Image, side: int, most: int = 2**40
) -> tuple[Image.Image, Frame]:
    """The whole image with its shorter side at ``side`` pixels (paper E.2), and its frame.

    A view of more than ``most`` pixels is shrunk to at most that many, its aspect kept.
    """
    size = policy.view_size(geometry.with_shorter_side(image.size, side), pixels=(1, most))
    window = (0.0, 0.0, float(image.width), float(image.height))
    return geometry.crop(image, window, size), Frame(window, policy.text_scale(size))


def regions_of(action: ParsedAnswer, frame: Frame, size: tuple[int, int]) -> tuple[Region, ...]:
    """The regions of an answer in original pixels: corners put in order, clipped to the image.

    A region without area stays in the list (its area is wrong, and the reward should say so).
    """
    boxes_px = frame.to_px(geometry.as_boxes(action.boxes_text))
    return tuple(Region(*map(float, box)) for box in geometry.clipped(geometry.ordered(boxes_px), size))


# ---------------------------------------------------------------------- the register

LOOKED_AT = 16
"""How many examples are read to see what a data set asks for."""

TASKS: dict[str, type[Task]] = {}
"""Every task class that has been defined, by its name."""


def prepared(dataset: Dataset, task: Task) -> Dataset:
    """The data set as questions of the task; an example that does not fit counts as an unreadable image."""
    return dataset if type(task).prepare is Task.prepare else dataset.map(task.prepare)


def check_queries(dataset: Dataset, task: Task) -> None:
    """Raise ModelError if the task model is a detector with fixed labels, and a query is none of them.

    A data set whose rows do not show their queries answers for the first LOOKED_AT only; later ones are checked when
    they are asked.
    """
    if not task.crops or "detector" not in task.config.task_model_names:
        return
    queries = [row.query for row in getattr(dataset, "items", ()) if hasattr(row, "query")]
    queries = queries or [example.query for example in first_readable(dataset, LOOKED_AT)]
    task_model_detectors.check_queries(task.config.task_checkpoint, list(dict.fromkeys(queries)))


def first_readable(dataset: Dataset, count: int) -> list[Example]:
    """Those of the first ``count`` examples that can be read."""
    found = []
    for index in range(min(count, len(dataset))):
        with suppress(DataError):
            found.append(dataset[index])
    return found


def known_tasks() -> dict[str, type[Task]]:
    """The register, after every ``task_*.py`` of this package has been imported."""
    for path in sorted(Path(__file__).parent.glob("task_*.py")):
        importlib.import_module(f"activeo3.{path.stem}")
    return TASKS


def task_of(config: Config) -> Task:
    """The task of a run or an evaluation. Raises ConfigError if it is unknown, or if a flag does not go with it."""
    task = class_of(config.task)(config)
    task.check()
    return task


def class_of(name: str) -> type[Task]:
    """The class of a task by its name, or by FILE.py:NAME. Raises ConfigError if there is none."""
    known = known_tasks()
    if not is_code(name):
        check_known("task", [name], known)
        return known[name]
    found = user_code.load("--task", name)
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise ConfigError(f"--task {name} must be a class of tasks.Task, and is {found!r:.60}.")
    lacking = [
        part for part in ("terms", "prompt", "reward_terms") if getattr(found, part, None) is getattr(Task, part, None)
    ]
    if lacking:
        raise ConfigError(f"--task {name} has no {', '.join(lacking)}: write it, or take it over from another task.")
    found.name = vars(found).get("name", found.__name__)
    return found
