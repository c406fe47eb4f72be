"""model.py and decoding.py: three ways to score a group, for every family, against plain transformers on whole rows;
and sampling with running states. The naive rows are those of test_packing.py."""

from contextlib import contextmanager
from dataclasses import replace
from typing import Callable, Iterator, Sequence

import pytest
import torch
from naive_rows import Shows, ids_of, naive_logits, naive_logps, packed_logps
from PIL import Image
from torch import Tensor

from activeo3.decoding import has_states, recompute_with_cache
from activeo3.families import FAMILIES
from activeo3.model import VisionLanguageModel
from activeo3.packing import Branch, Packed, Prompt
from activeo3.types import Sampling

Picture = Callable[..., Image.Image]
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
WAYS = ("packed", "cached", "rows")
TOLERANCE = {False: (1e-5, 1e-5), True: (5e-5, 5e-4)}
"""Of log-probabilities and of gradients, by whether a family has running states: transformers computes those in float32
by solving triangular systems of 64 tokens, which plain rows of other lengths round differently as well."""


@pytest.fixture(scope="module")
def episodes(every_family: VisionLanguageModel, picture: Picture) -> tuple[list[Prompt], list[list[Branch]]]:
    """Two prompts of unequal lengths with two branches each, of one to three turns; one has a single token."""
    vlm = every_family
    prompts = vlm.encode([picture(64, 48, 0), picture(80, 32, 1)], ["Where is a red star?", "Read it."], ["a", "b"])
    seen = vlm.encode_next([picture(48, 32, 2), None], ["Closer.", "That is no box."])
    turn = lambda length, seed: ids_of(length, seed, vlm.end_token)  # noqa: E731
    return prompts, [
        [Branch((turn(5, 1), turn(3, 2), turn(4, 3)), (seen[1], seen[0])), Branch(((40,),))],
        [Branch((turn(6, 4),)), Branch((turn(2, 5), turn(7, 6)), (seen[0],))],
    ]


@pytest.fixture(scope="module")
def naive(every_family: VisionLanguageModel, episodes: tuple) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Of every branch, in order, the log-probabilities of a plain row; and the gradients of ``weighted`` of them."""
    prompts, branches = episodes
    logps = [naive_logps(every_family, prompt, branch) for prompt, row in zip(prompts, branches) for branch in row]
    gradients = gradients_of(every_family, weighted(logps))
    return [one.detach() for one in logps], gradients


def weighted(logps: Sequence[Tensor]) -> Tensor:
    """A sum in which every token of every branch counts differently."""
    return sum(
        (one * torch.linspace(-1, 1, len(one) + number + 2)[1:-1][: len(one)]).sum() for number, one in enumerate(logps)
    )


def gradients_of(vlm: VisionLanguageModel, loss: Tensor) -> dict[str, Tensor]:
    loss.backward()
    found = {name: p.grad.clone() for name, p in vlm.model.named_parameters() if p.grad is not None}
    vlm.model.zero_grad()
    return found


def scored(vlm: VisionLanguageModel, packed: Packed) -> list[Tensor]:
    """Of every branch, in order, the log-probabilities of its sampled tokens."""
    logps = packed_logps(vlm, packed)
    return [logps[r, b][packed.completion_mask[r, b]] for r in range(len(logps)) for b in range(logps.shape[1])]


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        scale = max(float(gradient.abs().max()), 1e-3 * largest)
        assert float((found[name] - gradient).abs().max()) <= tolerance * scale, name


@contextmanager
def recomputing(vlm: VisionLanguageModel, wanted: bool) -> Iterator[None]:
    """As engine.Sharded with --recompute, if ``wanted``."""
    if wanted:
        vlm.model.gradient_checkpointing_enable({"use_reentrant": False})
        recompute_with_cache(vlm.model.model.language_model)
        vlm.model.train()
    yield
    vlm.model.gradient_checkpointing_disable()
    vlm.model.eval()


@pytest.mark.parametrize("recompute", [False, True], ids=["", "recompute"])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_is_that_of_plain_rows(
    way: str,
    recompute: bool,
    every_family: VisionLanguageModel,
    episodes: tuple,
    naive: tuple,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vlm, (prompts, branches) = every_family, episodes
    monkeypatch.setattr(vlm, "scoring", way)
    with recomputing(vlm, recompute):
        packed = vlm.pack(prompts, branches)
        found = scored(vlm, packed)
        gradients = gradients_of(vlm, weighted(found))
    logps, expected = naive
    if way == "packed" and vlm.states:  # refused (test_families.py): a mask cannot separate siblings in a running state
        assert max(float((ours - theirs).abs().max()) for ours, theirs in zip(found, logps)) > 0.1
        return
    near, steep = TOLERANCE[vlm.states]
    for ours, theirs in zip(found, logps, strict=True):
        torch.testing.assert_close(ours.detach(), theirs, rtol=0, atol=near)
    assert_same_gradients(gradients, expected, steep)


def test_layers_are_computed_again_although_there_is_a_cache(
    every_family: VisionLanguageModel, episodes: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two passes forwards, and both once more backwards: transformers would drop either the cache or the checkpoint."""
    vlm, (prompts, branches), passes = every_family, episodes, []
    monkeypatch.setattr(vlm, "scoring", "cached")
    hook = vlm.model.model.language_model.layers[0].mlp.register_forward_pre_hook(lambda *_: passes.append(1))
    with recomputing(vlm, True):
        loss = weighted(scored(vlm, vlm.pack(prompts, branches)))
        assert len(passes) == 2
        gradients_of(vlm, loss)
    hook.remove()
    assert len(passes) == 4


@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_views_that_were_replaced_are_hidden_in_every_way(
    way: str, vlm: VisionLanguageModel, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = vlm.encode([picture(64, 48, 0), picture(80, 32, 1)], ["Where is a red star?", "Read it."])
    (seen,) = (replace(one, replaces=True) for one in vlm.encode_next([picture(48, 32, 2)], ["Closer."]))
    branches = [[Branch(((40, 41), (42, 43, 44)), (seen,))], [Branch(((50, 51, 52),))]]
    monkeypatch.setattr(vlm, "scoring", way)
    expected = [naive_logps(vlm, prompt, branch) for prompt, (branch,) in zip(prompts, branches)]
    for ours, theirs in zip(scored(vlm, vlm.pack(prompts, branches)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@torch.no_grad()
def test_what_was_seen_is_not_looked_at_again(
    every_family: VisionLanguageModel, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a frozen tower the prompts' pictures and the answers' crops are given as features, in every pass of every
    way."""
    vlm = every_family
    prompts = vlm.encode([picture(64, 48, 0), picture(80, 32, 1)], ["Where is a red star?", "Read it."])
    (seen,) = vlm.encode_next([picture(48, 32, 2)], ["Closer."])
    branches = [[Branch(((40, 41), (42, 43, 44)), (seen,)), Branch(((45,),))], [Branch(((50, 51, 52),))] * 2]
    expected = scored(vlm, vlm.pack(prompts, branches))
    monkeypatch.setattr(vlm.vision_cache, "keep", True)
    vlm.vision_cache.encode([*prompts, seen])
    monkeypatch.setattr(vlm.model.model.visual, "forward", None)  # nothing may look
    for way in WAYS[vlm.states :]:
        monkeypatch.setattr(vlm, "scoring", way)
        packed = vlm.pack(prompts, branches)
        assert all("pixel_values" not in given for given in (packed.inputs, packed.prompts or {}))
        near = TOLERANCE[vlm.states][0]
        torch.testing.assert_close(torch.cat(scored(vlm, packed)), torch.cat(expected), rtol=0, atol=near)


# ---------------------------------------------------------------------- sampling with running states


STATES = pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.states])


def test_the_table_knows_which_towers_have_states(every_family: VisionLanguageModel) -> None:
    assert (
        has_states(every_family.model.config.get_text_config())
        == every_family.states
        == FAMILIES[every_family.family].states
    )


@torch.no_grad()
def test_answers_of_every_family_are_scored_by_the_distribution_that_drew_them(
    every_family: VisionLanguageModel, picture: Picture, biased: Callable
) -> None:
    """Sampled episodes: every token's log-probability when it was drawn is the one of the family's own way to score."""
    vlm = every_family
    prompts = vlm.encode([picture(64, 48, 0), picture(80, 32, 1)], ["Where?", "Read it, please."])
    with biased(vlm, {vlm.end_token: 4.0}):
        torch.manual_seed(4)
        branches = vlm.generate_multi_turn(prompts, 4, Sampling(1.0, max_new_tokens=9), Shows(vlm, picture, 3))
        found = scored(vlm, vlm.pack(prompts, branches))
    drawn = [branch for row in branches for branch in row]
    assert len({len(branch.turns) for branch in drawn}) > 1
    for ours, branch in zip(found, drawn, strict=True):
        torch.testing.assert_close(ours, torch.tensor(branch.logps), rtol=0, atol=1e-4 if vlm.states else 2e-5)


@STATES
@torch.no_grad()
def test_greedy_answers_are_those_of_plain_forward_passes(
    family: str, make_vlm: Callable, picture: Picture, biased: Callable
) -> None:
    """States that are repeated, selected and read again after an observation, against a plain pass for every token."""
    vlm, longest = make_vlm(family), 7
    prompts = vlm.encode([picture(64, 48, 0), picture(80, 32, 1)], ["Where?", "Read it, please."])
    with biased(vlm, {vlm.end_token: 2.5}):
        ours = vlm.generate_multi_turn(
            prompts, 2, Sampling(temperature=0, max_new_tokens=longest), Shows(vlm, picture, 2)
        )
        for prompt, branches in zip(prompts, ours):
            for branch in branches:
                logits = naive_logits(vlm, prompt, branch)[0, len(prompt.ids) - 1 : -1]
                logits[:, list(vlm.suppressed_ids)] = -torch.inf
                assert [int(best) for best, own in zip(logits.argmax(dim=-1), branch.sampled) if own] == list(
                    branch.answer
                )
    assert max(len(branch.turns) for branches in ours for branch in branches) > 1


@STATES
def test_a_view_cannot_be_removed_from_a_state(
    family: str, make_vlm: Callable, picture: Picture, biased: Callable
) -> None:
    vlm = make_vlm(family)
    with biased(vlm, {vlm.end_token: 50.0}), pytest.raises(ValueError, match=f"a {family} model cannot forget a view"):
        vlm.generate_multi_turn(
            vlm.encode([picture(64, 48)], ["Where?"]), 2, Sampling(1.0, 4), Shows(vlm, picture, 9, notes=True)
        )
