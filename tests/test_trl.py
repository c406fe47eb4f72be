"""TRL's GRPOTrainer as a second opinion: its advantages, its loss and its gradients, where it is installed."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("trl", reason='TRL is heavy; pip install -e ".[bench]" brings it')
sys.path.insert(0, str(Path(__file__).parent / "bench"))

import step  # noqa: E402
from contenders import Ours  # noqa: E402
from setting import BETA, Point, Setting  # noqa: E402
from trl_peer import Trl  # noqa: E402

from activeo3 import grpo  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, for words that TRL uses

P, G, T = 3, 4, 6
POINT = Point(image_tokens=6, prompts=P, group=G, tokens=T, micro=P)
NAMES = {"response": "grpo", "token": "dapo", "constant": "dr_grpo"}  # our normalisations in TRL's words


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp("start")
    return Setting.make("mini", folder, torch.float32, torch.device("cpu"), checkpointing=False)


@pytest.fixture(scope="module")
def peer(setting: Setting) -> Trl:
    return Trl(setting, POINT)


def rand(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_log_probabilities_and_gradients_are_trls(setting: Setting, peer: Trl) -> None:
    """Of the whole model, from pictures on: its own tokenising, image processing and reference."""
    assert set(step.agreement([Ours(setting, POINT), peer], (1e-4, 1e-4))) == {"trl"}


@pytest.mark.parametrize("micro", [1, 3])
def test_a_step_in_pieces_moves_the_weights_as_ours_does(setting: Setting, micro: int) -> None:
    """A whole ``step`` of each, as it is timed, for the same answers: the same gradient reaches the optimiser."""
    point = Point(image_tokens=6, prompts=P, group=G, tokens=T, micro=micro)
    ours, trl = Ours(setting, point), Trl(setting, point)
    prompts, answers = ours.sample()
    ours.sample = lambda: (prompts, answers)
    trl.trainer.given = [list(ids) for group in answers for ids in group]
    gradients = []
    for contender in (ours, trl):
        taken: dict[str, Tensor] = {}
        object.__setattr__(setting, "apply", lambda: taken.update(setting.take_gradients()))
        contender.step(step.Stopwatch(torch.device("cpu")))
        gradients.append(taken)
    del setting.__dict__["apply"]
    norms = {name: float(gradient.norm()) for name, gradient in gradients[0].items()}
    for name, gradient in gradients[0].items():
        # TRL divides by the spread of a sample, we by that of the group itself.
        other = gradients[1][name] * (G / (G - 1)) ** 0.5
        assert float((gradient - other).norm()) < 0.01 * max(norms[name], 1e-3 * max(norms.values())), name


def test_advantages_are_trls_but_for_the_definition_of_the_spread(peer: Trl) -> None:
    """TRL divides by the standard deviation of a sample (n - 1) plus 1e-4, we by that of the group (n)."""
    rewards = torch.tensor([[1.0, 3.0, 2.5, 0.0], [0.5, 0.5, 0.5, 0.5], [2.0, torch.nan, 1.0, 4.0]])
    trainer = peer.trainer
    own, trainer.reward_funcs = trainer.reward_funcs, [
        lambda completion_ids, **_: [None if r.isnan() else float(r) for r in rewards.flatten()]
    ]  # fmt: skip
    trainer.given = [[10 + i] * T for i in range(P * G)]
    trainer.model.train()
    theirs = trainer._generate_and_score_completions(peer.batch)["advantages"].view(P, G)
    trainer.reward_funcs, trainer.given = own, None
    ours = grpo.group_advantages(
        rewards, scored=~rewards.isnan()
    )  # TRL takes None for a reward that does not apply, and masks it
    for p, row in enumerate(rewards):
        scored = row[~row.isnan()]
        factor = (scored.std(correction=1) + 1e-4) / scored.std(correction=0) if p != 1 else 1.0
        torch.testing.assert_close(ours[p], theirs[p] * factor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ratio_of", ["token", "sequence"])
@pytest.mark.parametrize("normalise", NAMES)
def test_loss_and_gradient_are_trls(
    peer: Trl, normalise: grpo.Normalisation, ratio_of: grpo.Ratio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For unequal lengths, a policy that has moved and ratios on both sides of the clip range."""
    lengths = torch.tensor([[6, 1, 3, 4], [2, 5, 6, 6], [1, 1, 6, 2]])
    sampled = torch.arange(T) < lengths[..., None]  # (P, G, T)
    advantage = rand(P, G, seed=1)
    start = -2 + 0.3 * rand(P, G, T, seed=2)
    old_logp, ref_logp = start + 0.4 * rand(P, G, T, seed=3), start + 0.5 * rand(P, G, T, seed=4)

    logp = start.clone().requires_grad_()
    weight = grpo.token_weights(sampled, normalise, P * G, int(sampled.sum()), T)
    loss, seen = grpo.policy_loss(logp, old_logp, ref_logp, advantage, weight, beta=BETA, ratio_of=ratio_of)
    loss.backward()
    assert 0.05 < float(seen["clip_fraction"])  # some are clipped

    theirs = start.clone().requires_grad_()
    trainer = peer.trainer
    monkeypatch.setattr(trainer, "loss_type", NAMES[normalise])
    monkeypatch.setattr(trainer, "importance_sampling_level", ratio_of)
    flat = theirs.view(P * G, T)
    monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", lambda *a, **k: (flat, flat.detach(), None))
    trainer.model.train()
    inputs = {
        "prompt_ids": torch.zeros(P * G, 1, dtype=torch.long),
        "prompt_mask": torch.ones(P * G, 1, dtype=torch.long),
        "completion_ids": torch.zeros(P * G, T, dtype=torch.long),
        "completion_mask": sampled.view(P * G, T).long(),
        "advantages": advantage.flatten(),
        "old_per_token_logps": old_logp.view(P * G, T),
        "ref_per_token_logps": ref_logp.view(P * G, T),
        "num_items_in_batch": sampled.sum(),
    }
    their_loss = trainer.compute_loss(trainer.model, inputs)
    their_loss.backward()
    torch.testing.assert_close(loss, their_loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logp.grad, theirs.grad, rtol=1e-5, atol=1e-7)
