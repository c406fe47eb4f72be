"""Scripted zoom episodes on one picture with a number plate."""

from typing import Callable, Sequence

import numpy as np
from scripted import END, Scripted, painted

from activeo3.config import TrainConfig
from activeo3.prompts import final_answer
from activeo3.rollout import sample_rollouts
from activeo3.tasks import known_tasks
from activeo3.types import VQA, Example, Rollout, Sampling

TASKS = known_tasks()

CONFIG = TrainConfig(task="zoom_qa", crop_side=256, episode_tokens=4000)

SIZE = (1344, 896)

PLATE = (700.0, 200.0, 760.0, 244.0)

TASK = TASKS["zoom_qa"]

IN = '<zoom_roi x0="0.5" y0="0.125" x1="0.75" y1="0.375"/>' + END  # (672, 112) to (1008, 336) of the whole picture

ANSWER = final_answer("42") + END


def question(answer: str = "42", box: Sequence[float] = PLATE, size: tuple[int, int] = SIZE) -> Example:
    image = painted(size, [("red", (700, 200, 760, 244))])
    vqa = VQA("What number is on the plate?", (answer,), evidence_px=np.array([box]))
    return Example("a", image, "red star", np.array([box]), vqa=vqa)


def script(turns: Sequence[str]) -> Callable[..., str]:
    """A policy that says one thing after the other, whatever it is shown."""
    left = list(turns)
    return lambda *_: left.pop(0)


def episode(
    family: str, tokenizer, turns: Sequence[str], config: TrainConfig = CONFIG, example: Example | None = None
) -> Rollout:
    policy = Scripted(family, tokenizer, script(turns))
    sampling = Sampling(1.0, TASK(config).max_new_tokens)
    _, ((rollout,),) = sample_rollouts(policy, TASK(config), [example or question()], 1, sampling)
    return rollout


SMALL = '<zoom_roi x0="0" y0="0" x1="0.1" y1="0.1"/>' + END

LARGE = '<zoom_roi x0="0" y0="0" x1="1" y1="0.9"/>' + END

OUTSIDE = '<zoom_roi x0="0.5" y0="0.5" x1="1.5" y1="0.9"/>' + END

BROKEN = '<zoom_roi x0="0.5"/>' + END

WAYS: dict[str, tuple[list[str], list[str], str | None]] = {
    # name: (the turns, their statuses, the answer)
    "at once": ([ANSWER], ["answered_without_zoom"], "42"),
    "one look": ([IN, ANSWER], ["zoom_executed", "answered"], "42"),
    "three looks": ([IN, IN, IN, ANSWER], ["zoom_executed"] * 3 + ["answered"], "42"),
    "one too many": ([IN, IN, IN, IN, ANSWER], ["zoom_executed"] * 3 + ["zoom_limit", "answered"], "42"),
    "no turn left": (
        [BROKEN, IN, SMALL, IN, IN],
        ["malformed_zoom", "zoom_executed", "too_small", "zoom_limit", "zoom_limit"],
        None,
    ),
    "refused": (
        [LARGE, OUTSIDE, BROKEN, ANSWER],
        ["too_large", "invalid_zoom", "malformed_zoom", "answered_without_zoom"],
        "42",
    ),
    "neither": (["I see nothing." + END], ["missing_zoom"], None),
    "neither, after a look": ([IN, "I see it." + END], ["zoom_executed", "missing_zoom"], None),
    "both": ([IN.removesuffix(END) + ANSWER, final_answer("7") + END], ["zoom_executed", "answered"], "7"),
    "cut off": (["<think>so"], ["truncated"], None),
    "cut off after a look": ([IN, "<answer>42</answer>"], ["zoom_executed", "truncated"], None),
    "nothing at all": ([""], ["truncated"], None),
}
