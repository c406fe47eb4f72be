"""The whole circle learns: sample, reward, compare, learn, again. On a random network, in seconds, for three seeds."""

from typing import Callable

import pytest
import torch
from scripted import USUAL

from activeo3 import grpo
from activeo3.model import VisionLanguageModel
from activeo3.types import Sampling

P, G, T = 2, 8, 4


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("family", USUAL)
def test_a_policy_learns_what_each_picture_wants(
    family: str, seed: int, make_vlm: Callable[..., VisionLanguageModel], picture
) -> None:
    """Two pictures, one question. The reward of an answer is the share of its tokens whose ids are even for the
    first picture and odd for the second: 0.5 by chance, and 0.5 for whoever does not look at the picture."""
    vlm = make_vlm(family, seed)
    vlm.model.train()
    torch.manual_seed(seed)
    prompts = vlm.encode([picture(64, 64, 1), picture(64, 64, 2)], ["even or odd?"] * P)
    optimizer = torch.optim.AdamW(vlm.model.parameters(), lr=2e-3)

    def rewards_of(answers: list[list[tuple[int, ...]]]) -> torch.Tensor:
        shares = [[sum(token % 2 == p for token in ids) / len(ids) for ids in group] for p, group in enumerate(answers)]
        return torch.tensor(shares)  # (P, G)

    history = []
    for _ in range(60):
        answers = vlm.generate(prompts, G, Sampling(1.0, T))
        rewards = rewards_of(answers)
        packed = vlm.pack(prompts, answers)
        logp, _ = grpo.answer_logps(vlm.forward_packed(packed), packed.tokens, packed.columns, 1.0, vlm.suppressed_ids)
        weight = grpo.token_weights(packed.completion_mask, "response", P * G, 0, T)
        loss, _ = grpo.policy_loss(logp, logp.detach(), None, grpo.group_advantages(rewards), weight, beta=0.0)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vlm.model.parameters(), 1.0)
        optimizer.step()
        history.append(float(rewards.mean()))
    first, last = sum(history[:5]) / 5, sum(history[-5:]) / 5
    assert first < 0.65 and last > 0.9, history

    swapped = vlm.generate([prompts[1], prompts[0]], G, Sampling(1.0, T))
    assert float(rewards_of(swapped).mean()) < 0.2  # it is the picture that decides
