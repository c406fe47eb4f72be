"""Ours and the naive way to make one GRPO step: the same mathematics on the same weights.

**Ours** is the project's own rooms, in the order in which train.py uses them, without DeepSpeed: one prefill
per prompt, one packed row per prompt. **Naive** is what one writes first: every answer is a row of its own
with prompt and picture; plain ``generate``, plain forward passes over whole rows, the loss by its formula.
"""

from typing import Sequence

import torch
from setting import BETA, CLIP, QUESTION, Point, Scored, Setting, Stopwatch, pictures, reward
from torch import Tensor

from activeo3 import grpo
from activeo3.model import VisionLanguageModel
from activeo3.packing import Packed, Prompt
from activeo3.types import Sampling

Answers = Sequence[Sequence[tuple[int, ...]]]


class Ours:
    """model.py and grpo.py: shared prefill, packed rows."""

    name = "ours"

    def __init__(self, setting: Setting, point: Point) -> None:
        self.setting, self.point = setting, point
        self.views = pictures(point.prompts, point.image_tokens)

    def sample(self) -> tuple[list[Prompt], Answers]:
        """P encoded prompts and P x G answers of T tokens."""
        vlm = self.setting.policy
        prompts = vlm.encode(self.views, [QUESTION] * self.point.prompts)
        return prompts, vlm.generate(prompts, self.point.group, Sampling(1.0, self.point.tokens))

    def step(self, clock: Stopwatch) -> None:
        """train.train_step and train.update, without zooming and DeepSpeed."""
        with clock("generate"):
            prompts, answers = self.sample()
        with clock("reward"):
            for group in answers:
                self.setting.policy.tokenizer.batch_decode(group)  # read in training, and by TRL here
            rewards = torch.tensor([[reward(ids) for ids in group] for group in answers])  # (P, G)
            advantage = grpo.group_advantages(rewards)  # (P, G)
        with clock("reference"):
            batches = self.batches(prompts, answers)
        with clock("update"):
            self.backward(batches, advantage)
            self.setting.apply()

    def score(self, answers: Answers, advantage: Tensor) -> Scored:
        prompts = self.setting.policy.encode(self.views, [QUESTION] * self.point.prompts)
        self.setting.policy.vision_cache.encode(prompts)
        batches = self.batches(prompts, answers)
        logps, loss = self.backward(batches, advantage)
        return Scored(torch.cat(logps), torch.cat([ref for _, ref in batches]), loss, self.setting.take_gradients())

    def batches(self, prompts: list[Prompt], answers: Answers) -> list[tuple[Packed, Tensor]]:
        """The step in pieces of ``micro`` prompts: packed rows and the reference's log-probabilities."""
        pieces = []
        for first in range(0, self.point.prompts, self.point.micro):
            rows = slice(first, first + self.point.micro)
            packed = self.setting.policy.pack(prompts[rows], answers[rows])
            with torch.no_grad():
                pieces.append((packed, self.logps(self.setting.reference, packed)))
        return pieces

    def backward(self, batches: list[tuple[Packed, Tensor]], advantage: Tensor) -> tuple[list[Tensor], float]:
        """Add the gradient of the step's loss: (log-probabilities per piece, loss)."""
        logps, total, responses = [], 0.0, self.point.prompts * self.point.group
        pieces = advantage.to(self.setting.policy.model.device).split(self.point.micro)
        for (packed, ref_logp), advantages in zip(batches, pieces):
            weight = grpo.token_weights(packed.completion_mask, "response", responses, 0, self.point.tokens)
            logp = self.logps(self.setting.policy, packed)
            loss, _ = grpo.policy_loss(logp, logp.detach(), ref_logp, advantages, weight, CLIP, CLIP, BETA)
            loss.backward()
            logps.append(logp.detach())
            total += float(loss.detach())
        return logps, total

    def logps(self, vlm: VisionLanguageModel, packed: Packed) -> Tensor:
        """(P, G, T) log-probabilities of the answers, over the whole vocabulary, as TRL's are."""
        return grpo.answer_logps(vlm.forward_packed(packed), packed.tokens, packed.columns)[0]


class Naive:
    """P x G full rows, each with its own copy of prompt and picture; nothing is shared."""

    name = "naive"

    def __init__(self, setting: Setting, point: Point) -> None:
        self.setting, self.point = setting, point
        self.views = pictures(point.prompts, point.image_tokens)

    def rows(self) -> list[Prompt]:
        """P*G encoded prompts, each G times; all are of one length, since question and picture size are."""
        prompts = self.setting.policy.encode(self.views, [QUESTION] * self.point.prompts)
        return [prompt for prompt in prompts for _ in range(self.point.group)]

    def step(self, clock: Stopwatch) -> None:
        vlm, tokens = self.setting.policy, self.point.tokens
        with clock("generate"):
            rows = self.rows()
            with torch.no_grad():
                out = vlm.model.generate(
                    **self.inputs(rows), min_new_tokens=tokens, max_new_tokens=tokens, do_sample=True, top_k=0,
                    eos_token_id=vlm.end_token, pad_token_id=vlm.end_token, suppress_tokens=list(vlm.suppressed_ids),
                )  # fmt: skip
            answers = out[:, -tokens:]  # (P*G, T)
        with clock("reward"):
            vlm.tokenizer.batch_decode(answers)
            rewards = torch.tensor([reward(ids) for ids in answers.tolist()]).view(self.point.prompts, -1)  # (P, G)
            spread = rewards.std(dim=1, keepdim=True, correction=0).clamp(min=1e-6)
            advantage = ((rewards - rewards.mean(dim=1, keepdim=True)) / spread).flatten()  # (P*G,)
        with clock("reference"), torch.no_grad():
            pieces = self.pieces(rows, answers, advantage)
            ref_logps = [self.logps(self.setting.reference, piece, ids) for piece, ids, _ in pieces]
        with clock("update"):
            self.backward(pieces, ref_logps)
            self.setting.apply()

    def score(self, answers: Answers, advantage: Tensor) -> Scored:
        ids = torch.tensor(answers).flatten(0, 1).to(self.setting.policy.model.device)  # (P*G, T)
        pieces = self.pieces(self.rows(), ids, advantage.flatten())
        with torch.no_grad():
            ref_logps = [self.logps(self.setting.reference, piece, ids) for piece, ids, _ in pieces]
        logps, loss = self.backward(pieces, ref_logps)
        shape = (self.point.prompts, self.point.group, -1)
        logp, ref_logp = (torch.cat(parts).view(shape) for parts in (logps, ref_logps))
        return Scored(logp, ref_logp, loss, self.setting.take_gradients())

    def pieces(self, rows: list[Prompt], ids: Tensor, advantage: Tensor) -> list[tuple[list[Prompt], Tensor, Tensor]]:
        """Rows, ids (R, T) and advantages (R,) of ``micro`` prompts' answers at a time."""
        size = self.point.micro * self.point.group
        return [(rows[i : i + size], ids[i : i + size], advantage[i : i + size]) for i in range(0, len(rows), size)]

    def backward(self, pieces: list, ref_logps: list[Tensor]) -> tuple[list[Tensor], float]:
        """Add the gradient of the step's loss: (log-probabilities per piece, loss)."""
        logps, total = [], 0.0
        for (rows, ids, advantage), ref_logp in zip(pieces, ref_logps):
            logp = self.logps(self.setting.policy, rows, ids)  # (R, T)
            ratio = (logp - logp.detach()).exp()
            gain = advantage[:, None].to(logp.device)
            surrogate = torch.minimum(ratio * gain, ratio.clamp(1 - CLIP, 1 + CLIP) * gain)
            kl = (ref_logp - logp).exp() - (ref_logp - logp) - 1
            loss = (BETA * kl - surrogate).mean() * len(rows) / (self.point.prompts * self.point.group)
            loss.backward()
            logps.append(logp.detach())
            total += float(loss.detach())
        return logps, total

    def logps(self, vlm: VisionLanguageModel, rows: list[Prompt], answers: Tensor) -> Tensor:
        """(R, T) log-probabilities of the answers behind their prompts."""
        keep = answers.shape[1] + 1
        logits = vlm.model(**self.inputs(rows, answers), logits_to_keep=keep, use_cache=False).logits[:, :-1]
        return logits.float().log_softmax(dim=-1).gather(-1, answers[..., None])[..., 0]

    def inputs(self, rows: list[Prompt], answers: Tensor | None = None) -> dict[str, Tensor]:
        """A model's arguments for prompts, or for prompts and answers (R, T)."""
        model = self.setting.policy.model
        ids = torch.stack([row.ids for row in rows]).to(model.device)  # (R, S)
        ids = ids if answers is None else torch.cat([ids, answers], dim=1)
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == self.setting.policy.image_token).long(),
            "pixel_values": torch.cat([row.pixels for row in rows]).to(model.device, model.dtype),
            "image_grid_thw": torch.cat([row.grids for row in rows]).to(model.device),
        }
