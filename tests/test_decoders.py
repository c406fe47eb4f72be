"""Our loop against transformers' generate: the same noise gives the same tokens, turn by turn."""

from dataclasses import replace
from typing import Any, Callable, Sequence

import pytest
import torch

from activeo3.answer_text import repeats
from activeo3.generate import Generator
from activeo3.model import ModelError, VisionLanguageModel
from activeo3.packing import Branch, Prompt
from activeo3.types import Sampling

Picture = Callable[..., Any]
END_SOON = 5.0  # added to the end token's logit


def prompts_of(vlm: VisionLanguageModel, picture: Picture) -> list[Prompt]:
    """Prompts of different lengths, so that two of three are padded."""
    sizes = [(64, 48), (80, 32), (32, 96)]
    return vlm.encode([picture(*size, i) for i, size in enumerate(sizes)], ["Where?", "Read it, please.", "And?"])


def showing(vlm: VisionLanguageModel, picture: Picture, notes: bool) -> Callable:
    """Shows two of three rows a picture after each of their first two turns; with notes the earlier ones are hidden."""
    asked: dict[int, int] = {}

    def observe(ended: Sequence[tuple[int, tuple[int, ...]]]) -> list[Prompt | None]:
        found: list[Prompt | None] = []
        for row, _ in ended:
            asked[row] = asked.get(row, 0) + 1
            (seen,) = vlm.encode_next([picture(48, 32 + 16 * asked[row], row)], ["Closer."])
            found.append(replace(seen, replaces=notes))
        return [one if row % 3 and asked[row] < 3 else None for one, (row, _) in zip(found, ended)]

    return observe


def answers(
    vlm: VisionLanguageModel, picture: Picture, decoder: str, temperature: float, observe: bool, notes: bool = False
) -> tuple[list[Branch], torch.Tensor]:
    """Four answers to each of three prompts, and the random generator's state behind them."""
    torch.manual_seed(5)
    sampling = Sampling(temperature, 12, decoder)
    rows = vlm.generate_multi_turn(
        prompts_of(vlm, picture), 4, sampling, showing(vlm, picture, notes) if observe else None
    )
    return [branch for row in rows for branch in row], torch.get_rng_state()


def written(branches: Sequence[Branch]) -> list[tuple]:
    return [branch.turns for branch in branches]


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.7])
@pytest.mark.parametrize("observe, notes", [(False, False), (True, False), (True, True)])
def test_both_decoders_draw_the_same_tokens(
    vlm: VisionLanguageModel, picture: Picture, biased: Callable, temperature: float, observe: bool, notes: bool
) -> None:
    """Bit for bit, with their log-probabilities, and the next rollout begins with the same noise."""
    with biased(vlm, {vlm.end_token: END_SOON}):
        ours, state = answers(vlm, picture, "graph", temperature, observe, notes)
        theirs, their_state = answers(vlm, picture, "hf", temperature, observe, notes)
    assert written(ours) == written(theirs) and [one.logps for one in ours] == [one.logps for one in theirs]
    assert torch.equal(state, their_state)
    lengths = {len(turn) for branch in ours for turn in branch.turns}
    assert temperature == 0 or len(lengths) > 3
    assert not observe or temperature == 0 or max(len(branch.turns) for branch in ours) == 3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("observe", [False, True])
def test_a_cache_that_is_read_whole_draws_the_same_tokens(
    vlm: VisionLanguageModel, picture: Picture, biased: Callable, monkeypatch: pytest.MonkeyPatch, temperature: float, observe: bool
) -> None:  # fmt: skip
    """As on a GPU: the cache has room that is masked, and rows that have ended keep their places for a while."""
    with biased(vlm, {vlm.end_token: END_SOON}):
        theirs, _ = answers(vlm, picture, "hf", temperature, observe)
        monkeypatch.setattr(Generator, "fixed_room", True)
        ours, _ = answers(vlm, picture, "graph", temperature, observe)
    assert written(ours) == written(theirs)
    for mine, other in zip(ours, theirs):
        assert mine.logps == pytest.approx(other.logps, rel=0, abs=1e-5)


@pytest.mark.parametrize("decoder", ["graph", "hf"])
def test_logits_that_are_no_distribution_end_the_rollout(make_vlm: Callable, picture: Picture, decoder: str) -> None:
    vlm = make_vlm("qwen3_vl")
    vlm.model.model.language_model.norm.weight.data.fill_(torch.nan)
    with pytest.raises(ModelError):
        answers(vlm, picture, decoder, 1.0, False)


@pytest.mark.parametrize("decoder", ["graph", "hf"])
def test_an_answer_that_repeats_itself_is_cut_off(
    vlm: VisionLanguageModel, picture: Picture, biased: Callable, decoder: str
) -> None:
    """At the first look behind 32 equal tokens; without the rule it goes on to the limit."""
    prompts = prompts_of(vlm, picture)[:1]
    with biased(vlm, {17: 200.0}):
        (((stopped,)), ((free,))) = (vlm.generate(prompts, 1, Sampling(1.0, 90, decoder, times))[0] for times in (4, 0))
    assert stopped == (17,) * len(stopped) and repeats(stopped, 4) and 32 <= len(stopped) <= 64
    assert free == (17,) * 90 and not vlm.is_finished(stopped)


def test_a_loop_is_copies_of_one_piece() -> None:
    box = list(range(12))
    assert repeats([90, 91, *box * 4], 4) and not repeats([90, 91, *box * 3], 4)
    assert not repeats([*box * 4, 5], 4) and not repeats([7] * 31, 4) and repeats([7] * 32, 4)
    assert not repeats([], 4) and not repeats(list(range(500)), 8)
