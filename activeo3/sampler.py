"""Step 1 of train.py: look. The policy sees a picture, is asked something, and answers G times.

What it is shown and asked, and how its answer is read, is its role. The sensing role lives here: the whole
picture at sensing size, "where should one look for this?", regions. tasks.py has the others. The sampled
ids are the record and travel untouched to the loss; everything else is read off them here, once.
"""

from dataclasses import dataclass
from typing import Callable, NamedTuple, Sequence

from PIL import Image

from activeo3 import geometry, prompts
from activeo3.config import _Config
from activeo3.geometry import Frame
from activeo3.models import Prompt, VisionLanguageModel
from activeo3.schema import Action, Example, Reading, Region, Rollout, Sampling


class Question(NamedTuple):
    """What a policy is shown and asked. ``frame`` maps the numbers it writes to original pixels."""

    view: Image.Image
    frame: Frame
    words: str


@dataclass(frozen=True)
class Role:
    """What a policy is shown and asked about an example, and how its answer is read.

    ``ask(actor, example, config)`` makes the question. ``read(text, finished, frame, example, config)`` reads
    an answer without its end token; ``finished`` is False when it hit the length limit. A bad answer is a
    value, ``Action.error``. ``longest(config)`` is the length limit in tokens.
    """

    ask: Callable[[VisionLanguageModel, Example, _Config], Question]
    read: Callable[[str, bool, Frame, Example, _Config], Reading]
    longest: Callable[[_Config], int]


def ask_where(actor: VisionLanguageModel, example: Example, config: _Config) -> Question:
    """The whole picture, and: where should one look for the query?"""
    view, frame = sensing_view(actor, example.image, config.sensing_side, config.max_view_pixels)
    return Question(view, frame, prompts.sensing_prompt(example.query, config.wording, config.regions))


def read_where(text: str, finished: bool, frame: Frame, example: Example, config: _Config) -> Reading:
    """The regions that a sensing answer wants to zoom into."""
    action = prompts.read_regions(text, finished, config.regions)
    return Reading(action, regions_of(action, frame, example.size_px))


SENSING = Role(ask_where, read_where, lambda config: config.max_new_tokens)


def look(
    actor: VisionLanguageModel,
    examples: Sequence[Example],
    group: int,
    sampling: Sampling,
    config: _Config,
    role: Role = SENSING,
) -> tuple[list[Prompt], list[list[Rollout]]]:
    """Sample ``group`` answers to the role's question about each of P examples.

    Returns the P encoded prompts, which the update uses again, and P lists of G rollouts.
    """
    questions = [role.ask(actor, example, config) for example in examples]
    encoded = actor.encode([asked.view for asked in questions], [asked.words for asked in questions])
    answers = actor.generate(encoded, group, sampling)
    rollouts = [
        [read_rollout(actor, example, asked.frame, ids, config, role) for ids in of_example]
        for example, asked, of_example in zip(examples, questions, answers, strict=True)
    ]
    return encoded, rollouts


def sensing_view(
    actor: VisionLanguageModel, image: Image.Image, side: int, most: int = 2**40
) -> tuple[Image.Image, Frame]:
    """The whole picture with its shorter side at ``side`` pixels (paper E.2), and its frame.

    A view of more than ``most`` pixels is shrunk to at most that many, its aspect kept.
    """
    size = actor.view_size(geometry.with_shorter_side(image.size, side), pixels=(1, most))
    window = (0.0, 0.0, float(image.width), float(image.height))
    return geometry.crop(image, window, size), Frame(window, actor.text_scale(size))


def read_rollout(
    actor: VisionLanguageModel,
    example: Example,
    frame: Frame,
    ids: tuple[int, ...],
    config: _Config,
    role: Role = SENSING,
) -> Rollout:
    """What one sampled answer says, in pixels of the original picture."""
    finished = bool(ids) and ids[-1] == actor.end_token
    text = actor.tokenizer.decode(ids[:-1] if finished else ids, skip_special_tokens=False)
    return Rollout(example, ids, text, finished, *role.read(text, finished, frame, example, config))


def regions_of(action: Action, frame: Frame, size: tuple[int, int]) -> tuple[Region, ...]:
    """The regions of an answer in original pixels: corners put in order, cut off at the picture's border.

    A region without area stays in the list (its area is wrong, and the reward should say so).
    """
    boxes_px = frame.to_px(geometry.as_boxes(action.boxes_text))
    return tuple(Region(*map(float, box)) for box in geometry.clipped(geometry.ordered(boxes_px), size))
