"""Samples G answers per prompt from the policy, turn by turn where the task has several turns.

The task (tasks.py) says what the policy is shown and how its answers are read. The sampled ids are the record and go to
the loss as they are; text, regions and results are read off them here, once.
"""

import math
from dataclasses import replace
from typing import Sequence

from activeo3 import lora, model_files
from activeo3.model import VisionLanguageModel
from activeo3.packing import Branch, Prompt
from activeo3.tasks import PromptSpec, Task
from activeo3.types import Example, Rollout, Sampling


def sample_rollouts(
    policy: VisionLanguageModel,
    task: Task,
    examples: Sequence[Example],
    group: int = 1,
    sampling: Sampling | None = None,
) -> tuple[list[Prompt], list[list[Rollout]]]:
    """Sample ``group`` answers to the task's prompt about each of P examples; by default one greedy answer.

    Returns the P encoded prompts, which the update uses again, and P lists of G rollouts.
    """
    task, sampling = task.under(task.config.decided(policy.trained_here)), sampling or task.sampling()
    specs, prompts = asked(policy, task, examples)
    names = [example.id for example in examples]
    conversations = [task.start(policy, example, spec) for example, spec in zip(examples, specs) for _ in range(group)]
    written = [0] * len(conversations)  # tokens behind the prompt
    truncated: set[int] = set()

    def observe(ended: Sequence[tuple[int, tuple[int, ...]]]) -> list[Prompt | None]:
        """The encoded observation after each row's finished turn; None ends the row."""
        steps = [conversations[row].step(policy.answer_of(ids), True) for row, ids in ended]
        going_on = [(row, ids, new) for (row, ids), new in zip(ended, steps) if new]
        encoded = policy.encode_next(
            [new.view for _, _, new in going_on], [new.words for _, _, new in going_on],
            [names[row // group] for row, _, _ in going_on],
        )  # fmt: skip
        shown: dict[int, Prompt] = {}
        for (row, ids, new), observation in zip(going_on, encoded):
            written[row] += len(ids) + len(observation.ids)
            if written[row] + sampling.max_new_tokens <= task.config.episode_tokens:
                shown[row] = replace(observation, replaces=new.replaces)
            else:  # words and image go together, so that every image token has its features
                conversations[row].truncate()
                truncated.add(row)
        return [shown.get(row) for row, _ in ended]

    branches = [branch for of_one in policy.generate_multi_turn(prompts, group, sampling, observe) for branch in of_one]
    rollouts = []
    for row, (branch, conversation) in enumerate(zip(branches, conversations, strict=True)):
        ended = policy.is_finished(branch.turns[-1])
        if not ended:
            conversation.step(policy.answer_of(branch.turns[-1]), False)
        example, text, finished = examples[row // group], transcript(policy, branch), ended and row not in truncated
        rollouts.append(Rollout(example, branch.answer, text, finished, *conversation.result(), branch=branch))
    return prompts, [rollouts[first : first + group] for first in range(0, len(rollouts), group)]


def asked(
    policy: VisionLanguageModel, task: Task, examples: Sequence[Example]
) -> tuple[list[PromptSpec], list[Prompt]]:
    """What the policy is shown and asked about each of P examples, and the same encoded."""
    specs = [task.prompt(policy, example) for example in examples]
    names = [example.id for example in examples]
    return specs, policy.encode([spec.view for spec in specs], [spec.words for spec in specs], names)


def right_answers(
    policy: VisionLanguageModel, task: Task, examples: Sequence[Example], group: int = 1, _: Sampling | None = None
) -> tuple[list[Prompt], list[list[Rollout]]]:
    """In place of ``sample_rollouts`` the right answer to the task's prompt about each of P examples, ``group``
    times."""
    task = task.under(task.config.decided(policy.trained_here))
    specs, prompts = asked(policy, task, examples)
    groups = []
    for example, spec in zip(examples, specs):
        text = task.truth(example, spec.frame)
        ids = (*policy.tokenizer.encode(text, add_special_tokens=False), policy.end_token)
        nobody = (math.nan,) * len(ids)  # no sampler gave them a probability
        parsed = task.parse(text, True, spec, example)
        groups.append(
            [Rollout(example, ids, policy.decode(ids), True, *parsed, branch=Branch((ids,), (), nobody))] * group
        )
    return prompts, groups


def transcript(policy: VisionLanguageModel, branch: Branch) -> str:
    """An answer as text: its turns, and between them, in brackets, the words that were shown."""
    parts = [policy.decode(turn) for turn in branch.turns]
    for i, prompt in enumerate(branch.shown):
        words = policy.tokenizer.decode([token for token in prompt.ids.tolist() if token != policy.image_token])
        parts[i] += f"\n[{' '.join(words.split())}]\n"
    return "".join(parts)


def check_finite_logits(task: Task, example: Example, vlm: VisionLanguageModel) -> None:
    """Raise ModelError if weights, or the logits of the beginning of an answer, are not finite. Draws no random
    number."""
    model_files.check_finite(vlm.name, vlm.model)
    lora.check_finite(vlm.name, vlm.model)
    sample_rollouts(vlm, task, [example], sampling=Sampling(temperature=0.0, max_new_tokens=8))
