"""Step 1 of train.py: look. The sensing policy sees a whole picture and says where to zoom.

One look per example: the picture at sensing size, the sensing prompt, G sampled answers. The sampled ids
are the record and travel untouched to the loss; text and regions are read off them here, once.
"""

from typing import Sequence

from PIL import Image

from activeo3 import geometry, prompts
from activeo3.config import _Config
from activeo3.geometry import Frame
from activeo3.models import Prompt, VisionLanguageModel
from activeo3.schema import Action, Example, Region, Rollout, Sampling


def look(
    actor: VisionLanguageModel, examples: Sequence[Example], group: int, sampling: Sampling, config: _Config
) -> tuple[list[Prompt], list[list[Rollout]]]:
    """Sample ``group`` answers to "where should one look for this?" for each of P examples.

    An example with a ``question`` among its fields, to be answered in words, is looked at for its answer.
    Returns the P encoded prompts, which the update uses again, and P lists of G rollouts.
    """
    side, most = config.sensing_side, config.max_view_pixels
    views, frames = zip(*(sensing_view(actor, example.image, side, most) for example in examples))
    asked = [
        (prompts.looking_prompt if "question" in example.fields else prompts.sensing_prompt)(
            example.query, config.wording, config.regions
        )
        for example in examples
    ]
    encoded = actor.encode(views, asked)
    answers = actor.generate(encoded, group, sampling)
    rollouts = [
        [read_rollout(actor, example, frame, ids, config.regions) for ids in of_example]
        for example, frame, of_example in zip(examples, frames, answers, strict=True)
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
    actor: VisionLanguageModel, example: Example, frame: Frame, ids: tuple[int, ...], most: int
) -> Rollout:
    """What one sampled answer says, with its regions in pixels of the original picture."""
    finished = bool(ids) and ids[-1] == actor.end_token
    text = actor.tokenizer.decode(ids[:-1] if finished else ids, skip_special_tokens=False)
    action = prompts.read_regions(text, finished, most)
    return Rollout(example, ids, text, finished, action, regions_of(action, frame, example.size_px))


def regions_of(action: Action, frame: Frame, size: tuple[int, int]) -> tuple[Region, ...]:
    """The regions of an answer in original pixels: corners put in order, cut off at the picture's border.

    A region without area stays in the list (its area is wrong, and the reward should say so).
    """
    boxes_px = frame.to_px(geometry.as_boxes(action.boxes_text))
    return tuple(Region(*map(float, box)) for box in geometry.clipped(geometry.ordered(boxes_px), size))
