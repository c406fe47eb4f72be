"""Teach a vision-language model where to look, by reward alone (ACTIVE-O3, arXiv 2505.21457).

    deepspeed train.py                                       # tiny policy, embedded world, a laptop
    deepspeed train.py --preset paper --data_root DIR        # Qwen2.5-VL-7B on a COCO-format folder
    deepspeed train.py --help all                            # every number and its reason

One step: rollout -> crop -> task model -> reward -> advantage -> update. The same command again continues a run.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from activeo3 import cli, processes
from activeo3.config import TrainConfig
from activeo3.data import DATASETS

if __name__ == "__main__":  # flags are read before torch is imported, so a wrong one is answered at once
    CONFIG = cli.read_command_line(TrainConfig, {"data": DATASETS})

import torch

from activeo3 import alternation, checkpoints, curriculum, engine, eval_setup, grpo, log, memory, monitor, trackers
from activeo3.data_loader import PrefetchLoader, TrainingOrder
from activeo3.engine import Zero3Model
from activeo3.eval_training import HeldOut
from activeo3.packing import Branch, Prompt, sampler_logps
from activeo3.rollout import check_finite_logits, right_answers, sample_rollouts
from activeo3.run_page import RunPage
from activeo3.task_models import TaskModel
from activeo3.tasks import Task, task_of
from activeo3.types import Example, Reward, Rollout, TaskResult


def train_step(
    step: int, examples: list[Example], policy: Zero3Model, reference: Zero3Model, task_model: TaskModel | Zero3Model,
    task: Task, config: TrainConfig,
) -> tuple[dict[str, float], list[tuple[Rollout, TaskResult, Reward]]]:  # fmt: skip
    """P prompts, G rollouts each, one reward per rollout, one update (or more)."""
    timer, ranks = log.Timer(), policy.ranks
    examples = task.prepare_batch(task_model, examples)

    with timer("rollout"), policy.gathered() as vlm, processes.together(ranks.all_gather):  # weights gathered once
        learn_from = right_answers if config.task_update == "sft" else sample_rollouts
        prompts, groups = learn_from(vlm, task, examples, config.group, task.sampling(config.temperature))
    rollouts = [rollout for group in groups for rollout in group]  # P lists of G -> P*G

    with timer("task_model"), task_model.gathered() as frozen, processes.together(ranks.all_gather):
        results = task.act(frozen, rollouts)  # P*G: crops from the original pixels, seen by a frozen model
        rewards = [task.reward(rollout, result) for rollout, result in zip(rollouts, results)]  # P*G

    values, costs = torch.tensor([reward.parts for reward in rewards]).view(-1, config.group, 2).unbind(-1)  # (P, G)
    # Excluded from its group: a reward that is not finite and, with --mask_truncated, a truncated completion.
    complete = [rollout.finished or not config.mask_truncated for rollout in rollouts]
    scored = torch.tensor([ok and not reward.faults for ok, reward in zip(complete, rewards)]).view_as(values)  # (P, G)
    advantages = grpo.advantages(values, config.advantage, config.divide_by_std, ranks.all_reduce_sum, scored, costs)

    with timer("update"):
        stats = update(step, prompts, groups, advantages.to(ranks.device), policy, reference, task, config)
    zero_std_groups = int(grpo.zero_spread(advantages, scored).sum())
    row = task.settle(monitor.step_row(step, rollouts, rewards, scored.numpy(), zero_std_groups, ranks.all_reduce_sum))
    compared = [replace(one, advantage=value) for one, value in zip(rewards, advantages.flatten().tolist())]  # P*G
    return row | stats | timer.times(), list(zip(rollouts, results, compared))


def update(
    step: int, prompts: list[Prompt], groups: list[list[Rollout]], advantages: torch.Tensor, policy: Zero3Model,
    reference: Zero3Model, task: Task, config: TrainConfig,
) -> dict[str, float]:  # fmt: skip
    """Move the policy towards its better answers: clipped loss + beta * KL(policy || reference), in micro-batches."""
    ranks, micro = policy.ranks, config.micro_prompts
    tokens = int(ranks.all_reduce_sum({"all": sum(len(one.token_ids) for group in groups for one in group)})["all"])
    responses = ranks.world * config.prompts * config.group
    batches, sampled_logps, old_logps = [], [], []  # of every micro-batch; the last two (P, G, T)
    for first in range(0, config.prompts, micro):
        rows = slice(first, first + micro)
        branches = [[Branch.of(one.branch or one.token_ids) for one in group] for group in groups[rows]]
        packed = policy.vlm.pack(prompts[rows], branches)
        weight = grpo.token_weights(packed.completion_mask, config.normalise, responses, tokens, task.max_new_tokens)
        with torch.no_grad():
            ref_logp = reference.token_logps(packed, config.temperature)[0] if config.beta else None  # (P, G, T)
        batches.append((packed, advantages[rows], weight, ref_logp))
        sampled_logps.append(sampler_logps(branches).to(ranks.device))

    for epoch in range(config.epochs):
        sums = dict.fromkeys(("loss", "kl", "clip_fraction", "entropy"), 0.0)
        ratio_max = torch.zeros((), device=ranks.device)
        for index, (packed, advantage, weight, ref_logp) in enumerate(batches):
            logp, entropy = policy.token_logps(packed, config.temperature)  # (P, G, T)
            if epoch == 0:
                old_logps.append(logp.detach())  # the policy is still the one that sampled
            clip, old = (config.clip_low, config.clip_high), old_logps[index]
            loss, seen = grpo.policy_loss(logp, old, ref_logp, advantage, weight, *clip, config.beta, config.ratio)
            policy.backward(loss)
            ratio_max = torch.maximum(ratio_max, seen.pop("ratio_max"))  # NaN if one is, unlike Python's max
            for name, value in ({"loss": loss.detach(), "entropy": (weight * entropy).sum()} | seen).items():
                sums[name] += float(value)
        grad_norm, skipped = policy.step(config.lr_at(step))
    # The sampler's arithmetic against the scorer's: other kernels and a cache, but the same distribution.
    pairs = zip(old_logps, sampled_logps, batches)
    apart = torch.cat([(old - sampled).abs()[packed.completion_mask] for old, sampled, (packed, *_) in pairs])
    return ranks.all_reduce_sum(sums | {"logp_difference/mean": float(apart.sum()) / tokens}) | {
        "logp_difference/max": ranks.largest(float(apart.max())), "ratio_max": ranks.largest(float(ratio_max)),
        "grad_norm": grad_norm, "lr": config.lr_at(step), "skipped_steps": skipped, "memory_gb": ranks.memory_gb(),
    }  # fmt: skip


def main(config: TrainConfig) -> None:
    """Train from the start policy or from the newest checkpoint, then compare the two in a table."""
    folder, task = Path(config.output_dir), task_of(config)
    ranks, saved = checkpoints.open_run(config)
    dataset = curriculum.stage_of(curriculum.open_questions(config, task), config)
    held_out = eval_setup.held_out(config, ranks.all_gather, ranks.rank == 0)
    ranks.print(memory.forecast(config, ranks.world, ranks.gpu_memory_gb()))
    policy, reference, task_model = checkpoints.load_models(ranks, task, config)
    first = checkpoints.begin(policy, saved, config)
    order = TrainingOrder(dataset, config.prompts, config.seed, ranks.rank, ranks.world)
    order.recall(folder, bool(saved))
    loader = PrefetchLoader(order, config.steps)

    with trackers.run_log(config, first, writes=ranks.rank == 0) as run_log:
        run_log.say(log.introduction(config, task.weights, policy.vlm, ranks.world, len(dataset), first))
        page = RunPage(config, task, held_out, (policy, task_model), first, run_log)
        evaluation = HeldOut(held_out, config, (policy, reference, task_model), run_log, first)
        watcher = monitor.TrainingMonitor(config.max_skipped, policy.engine.skipped_steps)
        watcher.recall(ranks.all_gather(run_log.rows())[0], task.settle)
        for step in processes.whole(range(first, config.steps + 1), config.save_on_exit):
            with checkpoints.naming_last_good(config, step, step - 1):
                row, samples = train_step(step, loader.at(step - 1), policy, reference, task_model, task, config)
            run_log.step(row, samples)
            watcher.watch(row, samples, ranks.all_gather, run_log.say)
            page.step(step, samples)
            ended = max(ranks.all_gather(processes.asked())) if config.save_on_exit else 0  # the same step on all ranks
            if ended or step % config.save_every == 0 or step == config.steps:
                order.list_left_out(folder, ranks.all_gather)
                check = partial(check_finite_logits, task, samples[0][0].example)
                checkpoints.check_and_save(policy, config, step, run_log.say, check)
            if ended:
                processes.leave(ended)
            evaluation.step(step)
        run_log.say(monitor.lost(run_log.rows()))
        order.list_left_out(folder, ranks.all_gather, run_log.say)
        evaluation.end()


if __name__ == "__main__":
    with processes.one_sentence(cli.OneLine):
        for run in alternation.rounds(CONFIG):
            main(run)
        engine.stop()
