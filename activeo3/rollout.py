"""Step 1 of train.py: look. The policy sees a picture, is asked something, and answers G times.

What it is shown and asked, and how its answer is read, is its role. The sensing role lives here: the whole
picture at sensing size, "where should one look for this?", regions. tasks.py has the others. The sampled
ids are the record and travel untouched to the loss; everything else is read off them here, once.

Every answer is a dialogue. Most are over after one turn; in some roles the policy is shown something then,
and goes on (task_zoom_qa.py).
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Callable, NamedTuple, Protocol, Sequence

from PIL import Image

from activeo3 import geometry, prompts
from activeo3.answer_parsing import read_regions
from activeo3.config import Config
from activeo3.geometry import Frame
from activeo3.model import VisionLanguageModel
from activeo3.packing import Branch, Prompt
from activeo3.types import Example, Parsed, ParsedAnswer, Region, Rollout, Sampling


class PromptSpec(NamedTuple):
    """What a policy is shown (several pictures are a list) and asked. ``frame`` maps the numbers it writes to
    original pixels."""

    view: Image.Image | list[Image.Image]
    frame: Frame
    words: str


class Observation(NamedTuple):
    """What a policy is shown after a turn: words, and before them a view, or several, unless None.

    With ``replaces``, nothing that follows can see the views before these any more.
    """

    view: Image.Image | Sequence[Image.Image] | None
    words: str
    replaces: bool = False


class Conversation(Protocol):
    """One answer in the making, turn by turn."""

    def hear(self, text: str, finished: bool) -> Observation | None:
        """Take in a turn, without its end token; what to show next, or None if the answer is complete."""

    def cut(self) -> None:
        """Take note that what ``hear`` wanted to show did not fit in: there is no next turn."""

    def reading(self) -> Parsed:
        """What the turns come to."""


@dataclass(frozen=True)
class Role:
    """What a policy is shown and asked about an example, and how its answer is read.

    ``ask(policy, example, config)`` makes the question. ``read(text, finished, frame, example, config)`` reads
    an answer without its end token; ``finished`` is False when it hit the length limit. A bad answer is a
    value, ``ParsedAnswer.error``. ``longest(config)`` is the length limit of a turn in tokens.

    A role that goes on over several turns has ``follow(policy, example, question, config)`` in the place of
    ``read``: it begins the dialogue of one answer.
    """

    ask: Callable[[VisionLanguageModel, Example, Config], PromptSpec]
    read: Callable[[str, bool, Frame, Example, Config], Parsed] | None
    longest: Callable[[Config], int]
    follow: Callable[[VisionLanguageModel, Example, PromptSpec, Config], Conversation] | None = field(
        default=None, kw_only=True
    )

    def begin(
        self, policy: VisionLanguageModel, example: Example, question: PromptSpec, config: Config
    ) -> Conversation:
        """The dialogue of one answer to a question."""
        return (self.follow or partial(SingleTurn, self.read))(policy, example, question, config)


@dataclass
class SingleTurn:
    """The dialogue of an answer that is complete after its first turn."""

    read: Callable[[str, bool, Frame, Example, Config], Parsed]
    policy: VisionLanguageModel
    example: Example
    question: PromptSpec
    config: Config
    said: tuple[str, bool] = ("", False)

    def hear(self, text: str, finished: bool) -> None:
        self.said = text, finished

    def cut(self) -> None:
        raise RuntimeError("an answer of one turn has nothing to show")

    def reading(self) -> Parsed:
        return self.read(*self.said, self.question.frame, self.example, self.config)


def ask_where(policy: VisionLanguageModel, example: Example, config: Config) -> PromptSpec:
    """The whole picture, and: where should one look for the query, or for the answer if it is a question in words?"""
    view, frame = sensing_view(policy, example.image, config.sensing_side, config.max_view_pixels)
    words = prompts.looking_prompt if example.asks_in_words else prompts.sensing_prompt
    return PromptSpec(view, frame, words(example.query, config.wording, config.regions, policy.boxes))


def read_where(text: str, finished: bool, frame: Frame, example: Example, config: Config) -> Parsed:
    """The regions that a sensing answer wants to zoom into."""
    action = read_regions(text, finished, config.regions, parser=config.parser)
    return Parsed(action, regions_of(action, frame, example.size_px))


SENSING = Role(ask_where, read_where, lambda config: config.max_new_tokens)


def sample_rollouts(
    policy: VisionLanguageModel,
    examples: Sequence[Example],
    group: int,
    sampling: Sampling,
    config: Config,
    role: Role = SENSING,
) -> tuple[list[Prompt], list[list[Rollout]]]:
    """Sample ``group`` answers to the role's question about each of P examples.

    Returns the P encoded prompts, which the update uses again, and P lists of G rollouts.
    """
    config = config.decided(policy.trained_here)
    questions = [role.ask(policy, example, config) for example in examples]
    names = [example.id for example in examples]
    encoded = policy.encode([asked.view for asked in questions], [asked.words for asked in questions], names)
    dialogues = [
        role.begin(policy, example, asked, config) for example, asked in zip(examples, questions) for _ in range(group)
    ]
    written = [0] * len(dialogues)  # tokens behind the prompt
    cut: set[int] = set()

    def observe(ended: Sequence[tuple[int, tuple[int, ...]]]) -> list[Prompt | None]:
        """What rows are shown after the turns that they have ended: what their dialogues say, if it fits in."""
        shown = [dialogues[row].hear(policy.answer_of(ids), True) for row, ids in ended]
        going_on = [(row, ids, new) for (row, ids), new in zip(ended, shown) if new]
        observations = policy.encode_next(
            [new.view for _, _, new in going_on], [new.words for _, _, new in going_on],
            [names[row // group] for row, _, _ in going_on],
        )  # fmt: skip
        given: dict[int, Prompt] = {}
        for (row, ids, new), observation in zip(going_on, observations):
            written[row] += len(ids) + len(observation.ids)
            if written[row] + sampling.max_new_tokens <= config.episode_tokens:
                given[row] = replace(observation, replaces=new.replaces)
            else:  # words and picture go together, so that every image token has its features
                dialogues[row].cut()
                cut.add(row)
        return [given.get(row) for row, _ in ended]

    branches = [branch for of_one in policy.generate_multi_turn(encoded, group, sampling, observe) for branch in of_one]
    rollouts = []
    for row, (branch, dialogue) in enumerate(zip(branches, dialogues, strict=True)):
        ended = policy.is_finished(branch.turns[-1])
        if not ended:
            dialogue.hear(policy.answer_of(branch.turns[-1]), False)
        example, text, finished = examples[row // group], told(policy, branch), ended and row not in cut
        rollouts.append(Rollout(example, branch.answer, text, finished, *dialogue.reading(), branch=branch))
    return encoded, [rollouts[first : first + group] for first in range(0, len(rollouts), group)]


def told(policy: VisionLanguageModel, branch: Branch) -> str:
    """An answer as text for people: its turns, and between them the words that were shown."""
    said = [policy.decode(turn) for turn in branch.turns]
    for i, prompt in enumerate(branch.shown):
        words = policy.tokenizer.decode([token for token in prompt.ids.tolist() if token != policy.image_token])
        said[i] += f"\n[{' '.join(words.split())}]\n"
    return "".join(said)


def sensing_view(
    policy: VisionLanguageModel, image: Image.Image, side: int, most: int = 2**40
) -> tuple[Image.Image, Frame]:
    """The whole picture with its shorter side at ``side`` pixels (paper E.2), and its frame.

    A view of more than ``most`` pixels is shrunk to at most that many, its aspect kept.
    """
    size = policy.view_size(geometry.with_shorter_side(image.size, side), pixels=(1, most))
    window = (0.0, 0.0, float(image.width), float(image.height))
    return geometry.crop(image, window, size), Frame(window, policy.text_scale(size))


def regions_of(action: ParsedAnswer, frame: Frame, size: tuple[int, int]) -> tuple[Region, ...]:
    """The regions of an answer in original pixels: corners put in order, cut off at the picture's border.

    A region without area stays in the list (its area is wrong, and the reward should say so).
    """
    boxes_px = frame.to_px(geometry.as_boxes(action.boxes_text))
    return tuple(Region(*map(float, box)) for box in geometry.clipped(geometry.ordered(boxes_px), size))
