"""Teach a vision-language model where to look, by reward alone (ACTIVE-O3, arXiv 2505.21457).

    deepspeed train.py                                       # tiny policy, embedded world, a laptop
    deepspeed train.py --preset paper --data_root DIR        # Qwen2.5-VL-7B on a COCO-format folder
    deepspeed train.py --help                                # every number and its reason

One step: look -> zoom -> act -> score -> compare -> learn. The same command again continues a run.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import Callable

from activeo3 import processes, terminal
from activeo3.cli import ConfigError
from activeo3.config import TrainConfig
from activeo3.data import DATASETS
from activeo3.data_io import DataError

if __name__ == "__main__":  # flags are read before torch is imported, so a wrong one is answered at once
    terminal.protect()
    processes.watch()
    with processes.one_sentence(ConfigError, DataError):
        CONFIG = TrainConfig.from_args(known={"data": DATASETS})
    print("activeo3: loading torch, transformers and deepspeed takes some seconds", flush=True)

import torch

from activeo3 import (
    checkpoints,
    curriculum,
    data_images,
    engine,
    eval_detection,
    eval_segmentation,
    grpo,
    log,
    memory,
    monitor,
    outputs,
    random_states,
    soundness,
)  # fmt: skip
from activeo3.data import open_dataset
from activeo3.data_loader import PrefetchLoader, TrainingOrder, left_out_file, name_left_out
from activeo3.drawing import Sample, save_samples
from activeo3.engine import Distributed, Zero3Model
from activeo3.eval_core import Runner
from activeo3.log import Timer
from activeo3.model import ModelError, VisionLanguageModel
from activeo3.packing import Branch, Packed, Prompt, sampler_logps
from activeo3.rollout import sample_rollouts
from activeo3.task_models import TaskModel
from activeo3.tasks import prepared, task_of
from activeo3.types import Example, Reward, Rollout, TaskResult


def train_step(
    step: int,
    examples: list[Example],
    policy: Zero3Model,
    reference: Zero3Model,
    config: TrainConfig,
    task_model: TaskModel | Zero3Model | None = None,
) -> tuple[dict[str, float], list[tuple[Rollout, TaskResult, Reward]]]:
    """The method, once: P prompts, G answers each, one reward per answer, one update (or more)."""
    timer, task = Timer(), task_of(config)
    examples = task.prepare_batch(task_model, examples)

    with timer("rollout"), policy.gathered() as vlm, processes.together(policy.ranks.all_gather):
        sampling = task.sampling(config.temperature)
        prompts, rollouts = sample_rollouts(vlm, task, examples, config.group, sampling)  # P lists of G answers
    answers = [rollout for group in rollouts for rollout in group]  # P*G

    # Zoom, then act: the frozen start policy on the crops, unless there is another task model. Where the
    # answer is the result nobody acts, and no weights are gathered.
    acting = (task_model or reference).gathered() if task.crops else nullcontext()
    with timer("task_model"), acting as frozen, processes.together(policy.ranks.all_gather):
        outcomes = task.act(frozen, answers)

    scores = [task.reward(a, found) for a, found in zip(answers, outcomes)]
    rewards = torch.tensor([s.total for s in scores]).view(len(examples), config.group)  # (P, G)
    # Left out of its group: a reward that is no finite number, and what was cut off, which may be no answer (--mask_truncated).
    compared = [not s.faults and (a.finished or not config.mask_truncated) for a, s in zip(answers, scores)]
    scored = torch.tensor(compared).view_as(rewards)  # (P, G)
    advantage = grpo.advantages(
        rewards, config.advantage, config.divide_by_std, policy.ranks.all_reduce_sum, scored
    )  # (P, G)

    with timer("update"):
        learned = update(step, prompts, rollouts, advantage.to(policy.ranks.device), policy, reference, config)

    flat = int(grpo.zero_spread(rewards, scored).sum())
    row = monitor.step_row(step, answers, scores, scored.numpy(), flat, policy.ranks.all_reduce_sum)
    return row | learned | timer.times(), list(zip(answers, outcomes, scores))


def update(
    step: int,
    prompts: list[Prompt],
    rollouts: list[list[Rollout]],
    advantage: torch.Tensor,
    policy: Zero3Model,
    reference: Zero3Model,
    config: TrainConfig,
) -> dict[str, float]:
    """Move the policy towards its better answers: clipped loss, KL to the reference, packed rows."""
    ranks, micro, longest = policy.ranks, config.micro_prompts, task_of(config).max_new_tokens
    tokens = ranks.all_reduce_sum({"all": sum(len(a.token_ids) for group in rollouts for a in group)})["all"]
    responses = ranks.world * config.prompts * config.group
    batches, sampled_logps = [], []
    for first in range(0, config.prompts, micro):
        rows = slice(first, first + micro)
        branches = [[Branch.of(a.branch or a.token_ids) for a in group] for group in rollouts[rows]]
        packed = policy.vlm.pack(prompts[rows], branches)
        weight = grpo.token_weights(packed.completion_mask, config.normalise, responses, int(tokens), longest)
        with torch.no_grad():
            ref_logp = log_probs(reference, packed, config)[0] if config.beta else None  # (P, G, T)
        batches.append((packed, advantage[rows], weight, ref_logp))
        sampled_logps.append(sampler_logps(branches).to(ranks.device))

    old_logps: list[torch.Tensor] = []  # per micro-batch (P, G, T): the policy that sampled
    for _ in range(config.epochs):
        sums, ratio_max = (
            dict.fromkeys(("loss", "kl", "clip_fraction", "entropy"), 0.0),
            torch.zeros((), device=ranks.device),
        )
        for index, (packed, advantages, weight, ref_logp) in enumerate(batches):
            logp, entropy = log_probs(policy, packed, config)  # (P, G, T)
            if len(old_logps) == index:
                old_logps.append(logp.detach())  # in the first epoch the policy is still the one that sampled
            loss, seen = grpo.policy_loss(
                logp, old_logps[index], ref_logp, advantages, weight,
                config.clip_low, config.clip_high, config.beta, config.ratio,
            )  # fmt: skip
            policy.backward(loss)
            ratio_max = torch.maximum(ratio_max, seen.pop("ratio_max"))  # NaN if one is, as it is not with Python's max
            for name, value in ({"loss": loss.detach(), "entropy": (weight * entropy).sum()} | seen).items():
                sums[name] += float(value)
        grad_norm, skipped = policy.step(config.lr_at(step))
    # How far the sampler's arithmetic is from the scorer's: other kernels and a cache, but the same distribution.
    apart = torch.cat(
        [
            (old - said).abs()[packed.completion_mask]
            for old, said, (packed, *_) in zip(old_logps, sampled_logps, batches)
        ]
    )
    return ranks.all_reduce_sum(sums | {"logp_difference/mean": float(apart.sum()) / tokens}) | {
        "logp_difference/max": ranks.largest(float(apart.max())), "ratio_max": ranks.largest(float(ratio_max)),
        "grad_norm": grad_norm, "lr": config.lr_at(step), "skipped_steps": skipped, "memory_gb": ranks.memory_gb(),
    }  # fmt: skip


def log_probs(model: Zero3Model, packed: Packed, config: TrainConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """(P, G, T) log-probabilities and entropies of the answers under the distribution that was sampled."""
    logits = model.logits(packed)  # (P, 1 + W, V), or the columns that are needed of an episode
    return grpo.answer_logps(
        logits,
        packed.tokens,
        packed.columns,
        config.temperature,
        model.vlm.suppressed_ids,
        packed.logit_columns,
        packed.completion_mask,
    )


def start_policy(ranks: Distributed, config: TrainConfig, learns: bool, source: str = "") -> Zero3Model:
    """The start policy under ZeRO-3: once to learn, once frozen as reference and task model; or the model ``source``."""
    with ranks.redirect_output():
        whole = VisionLanguageModel.load(source or config.model, engine.pick_dtype(config.dtype), config.attention)
    return Zero3Model(whole, ranks, config, learns)


def other_task_model(ranks: Distributed, config: TrainConfig) -> TaskModel | Zero3Model | None:
    """The task model if it is not the reference in its second role; another language model is sharded as the reference is."""
    if config.other_mllm:
        return start_policy(ranks, config, learns=False, source=config.other_mllm)
    with ranks.redirect_output():
        return None if config.task_model == "mllm" else task_of(config).load_task_model(config.task_model, ranks.device)


def list_left_out(
    stream: TrainingOrder, ranks: Distributed, path: Path, say: Callable[[str], None] = lambda line: None
) -> None:
    """Keep the names of the pictures that no rank could read in the run's folder, so that a continued run knows them, and say them."""
    reasons = stream.left_out(ranks.all_gather)
    if ranks.rank == 0:
        name_left_out(reasons, say, path)


def main(config: TrainConfig) -> None:
    """Train from the start policy or from the newest checkpoint, then compare the two in a table."""
    data_images.limit_pixels(config.max_image_pixels)
    task = task_of(config)
    processes.tell(kept=lambda: checkpoints.kept(config))
    ranks = engine.start(Path(config.output_dir))
    outputs.claim(Path(config.output_dir), *outputs.OF_A_RUN)
    saved = checkpoints.resumable(config, ranks)
    dataset = open_dataset(config.data, config.split, config.data_root, config.limit or None, *config.dataset_options)
    dataset = curriculum.stage_of(prepared(dataset, task), config)
    held_out = eval_detection.held_out(config, ranks.all_gather, ranks.rank == 0)
    if ranks.rank == 0 and (said := memory.forecast(config, ranks.world, ranks.gpu_memory_gb())):
        print(said, flush=True)
    policy = start_policy(ranks, config, learns=True)
    reference = engine.WithoutAdapters(policy) if config.lora else start_policy(ranks, config, learns=False)
    task_model = other_task_model(ranks, config)
    random_states.seed_everything(config.seed, ranks.rank)
    first = 1
    if saved:
        checkpoints.restore(policy, saved)
        first = saved["step"] + 1
    if first <= config.steps:
        checkpoints.check_room(policy, config)
    of_all: Callable[[list[str]], list[str]] = lambda names: sum(ranks.all_gather(names), [])  # noqa: E731  of all ranks
    stream = TrainingOrder(dataset, config.prompts, config.seed, ranks.rank, ranks.world)
    left_out = left_out_file(Path(config.output_dir), dataset)
    if saved and ranks.rank == 0:
        stream.recall(left_out)
    ahead = PrefetchLoader(stream, config.steps)

    with log.RunLog(config.output_dir, config.steps, first_step=first, speaks=ranks.rank == 0) as run_log:
        run_log.say(log.introduction(config, task.weights, policy.vlm, ranks.world, len(dataset), first))
        watcher = monitor.TrainingMonitor(config.max_skipped, policy.engine.skipped_steps)
        watcher.recall(ranks.all_gather(run_log.rows())[0])
        for step in processes.whole(range(first, config.steps + 1), config.save_on_exit):
            examples = ahead.at(step - 1)
            with soundness.way_back(config, step, step - 1):
                row, judged = train_step(step, examples, policy, reference, config, task_model)
            if step == first:
                run_log.say("\n\n".join(log.rollout_lines(*item) for item in log.spread_out(judged, 3)))
            run_log.step(row)
            ids = [example.id for example in examples]
            watcher.check(row, lambda: of_all(ids), lambda: of_all(monitor.faults(judged)), run_log.say)
            if ranks.rank == 0 and config.samples_every and step % config.samples_every == 0:
                save_samples(config.output_dir, step, [Sample.of(*item) for item in log.spread_out(judged, 4)])
            ended = (
                max(ranks.all_gather(processes.asked())) if config.save_on_exit else 0
            )  # in the same step on all ranks
            if ended or step % config.save_every == 0 or step == config.steps:
                soundness.check(policy, judged[0][0].example, config, step)
                with processes.held("the checkpoint that is being written"):
                    list_left_out(stream, ranks, left_out)
                    checkpoints.save(policy, config, step, run_log.say)
            if ended:
                processes.leave(ended)
        if said := monitor.lost(run_log.rows()):
            run_log.say(said)
        list_left_out(stream, ranks, left_out, run_log.say)
        if held_out:
            compare = eval_segmentation if config.task == "segment" else eval_detection
            with (
                policy.gathered() as vlm,
                reference.gathered() as start,
                (task_model or reference).gathered() as frozen,
            ):
                compare.compare_start_and_trained(vlm, start, held_out, config, run_log.say, Runner(ranks), frozen)
            ranks.barrier()
    engine.stop()


if __name__ == "__main__":
    with processes.one_sentence(ConfigError, DataError, ModelError):
        main(CONFIG)
