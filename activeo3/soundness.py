"""Can the policy still be used? Asked before it is saved, and said in one sentence, with where to go back to, when it cannot.

A learning rate that is too high makes weights of 1e18 in one update. They are finite numbers, and so are the loss and the
gradient that made them; what they make of a picture is not. So an answer decides, and not how large a weight is: a policy whose
logits are finite can be used, however little it may know.
"""

from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

from activeo3 import checkpoints, lora, processes
from activeo3.config import TrainConfig
from activeo3.engine import Zero3Model
from activeo3.model import ModelError
from activeo3.model_weights import check_finite
from activeo3.rollout import sample_rollouts
from activeo3.tasks import task_of
from activeo3.types import Example, Sampling

ENOUGH = Sampling(temperature=0.0, max_new_tokens=8)
"""The beginning of an answer, in which every layer reads what was written. Greedy: it takes no random number from the run."""


def check(policy: Zero3Model, example: Example, config: TrainConfig, step: int) -> None:
    """Raise ModelError on all ranks if, after the update of ``step``, weights or the logits of an answer about ``example`` are
    not finite on one of them."""
    with way_back(config, step, step), policy.gathered() as vlm, processes.together(policy.ranks.all_gather):
        check_finite(vlm.name, vlm.model)
        lora.check_finite(vlm.name, vlm.model)
        sample_rollouts(vlm, task_of(config), [example], 1, ENOUGH)


@contextmanager
def way_back(config: TrainConfig, step: int, updates: int) -> Iterator[None]:
    """Add to a ModelError of the block in which ``step`` it was raised, and the last checkpoint from before update ``updates``."""
    try:
        yield
    except ModelError as error:
        earlier = [
            path
            for path in checkpoints.complete(Path(config.output_dir))
            if int(path.name.rpartition("-")[2]) < updates
        ]
        last = f"{earlier[-1]} is the last good one" if earlier else f"there is none, only {config.model}"
        raise ModelError(
            f"step {step}: {str(error).rstrip('.')}: {last}. Begin from it with a lower --lr in a new --output_dir."
        ) from None
