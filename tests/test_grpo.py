"""grpo.py by second opinion: loops written out in Python, hand-computed cases and analytic gradients."""

import dataclasses
import math
import statistics
from typing import Any, Callable, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical

from activeo3 import grpo
from activeo3.config import TrainConfig
from activeo3.grpo import advantages, answer_logps, group_advantages, kl_to_reference, policy_loss, token_weights
from activeo3.presets import PRESETS

NORMALISATIONS = ("response", "token", "constant")
RATIOS = get_args(grpo.Ratio)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prefix_mask(lengths: list[list[int]], T: int) -> Tensor:
    return torch.arange(T) < torch.tensor(lengths)[..., None]  # (P, G, T)


def step(P: int = 8, G: int = 3, T: int = 6) -> dict[str, Tensor]:
    """A whole step of random numbers: unequal lengths, ratios inside and outside of the clip range."""
    lengths = torch.randint(1, T + 1, (P, G), generator=torch.Generator().manual_seed(3)).tolist()
    logp = -2 + 0.3 * rand(P, G, T, seed=1)
    return {
        "logp": logp,
        "old_logp": logp + 0.3 * rand(P, G, T, seed=2),
        "ref_logp": logp + 0.5 * rand(P, G, T, seed=4),
        "advantage": rand(P, G, seed=5),
        "sampled": prefix_mask(lengths, T),
    }


def loop_loss(
    batch: dict[str, Tensor], normalise: str, longest: int, ratio_of: str = "token", beta: float = 0.04
) -> float:
    """The loss of a whole step, as eq. 3 of GRPO reads, in plain Python."""
    P, G, T = batch["logp"].shape
    answers: list[tuple[float, int]] = []  # (sum of token losses, tokens)
    for p in range(P):
        for g in range(G):
            tokens = [t for t in range(T) if batch["sampled"][p, g, t]]
            ratios = [math.exp(batch["logp"][p, g, t] - batch["old_logp"][p, g, t]) for t in tokens]
            if ratio_of == "sequence":
                ratios = [math.prod(ratios) ** (1 / len(ratios))] * len(ratios)
            total, advantage = 0.0, float(batch["advantage"][p, g])
            if ratio_of == "geometric":  # GMPO's objective: one-sided clips by the sign, product, root, times A
                one_sided = [min(ratio, 1.2) if advantage > 0 else max(ratio, 0.8) for ratio in ratios]
                mean = math.prod(one_sided) ** (1 / len(one_sided))
            for t, ratio in zip(tokens, ratios):
                clipped = 0.8 if ratio < 0.8 else 1.2 if ratio > 1.2 else ratio
                difference = float(batch["ref_logp"][p, g, t] - batch["logp"][p, g, t])
                if ratio_of == "geometric":
                    total -= mean * advantage
                elif ratio_of == "none":
                    total -= float(batch["logp"][p, g, t]) * advantage
                else:
                    total -= min(ratio * advantage, clipped * advantage)
                total += beta * (math.exp(difference) - difference - 1)
            answers.append((total, len(tokens)))
    match normalise:
        case "response":
            return sum(total / tokens for total, tokens in answers) / len(answers)
        case "token":
            return sum(total for total, _ in answers) / sum(tokens for _, tokens in answers)
    return sum(total / longest for total, _ in answers) / len(answers)


def loss_of(batch: dict[str, Tensor], weight: Tensor, **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    return policy_loss(batch["logp"], batch["old_logp"], batch["ref_logp"], batch["advantage"], weight, **options)


def weights_of(batch: dict[str, Tensor], normalise: str = "response", longest: int = 6) -> Tensor:
    sampled = batch["sampled"]
    return token_weights(sampled, normalise, sampled.shape[0] * sampled.shape[1], int(sampled.sum()), longest)


def cut(batch: dict[str, Tensor], rows: slice) -> dict[str, Tensor]:
    return {name: tensor[rows] for name, tensor in batch.items()}


# ---------------------------------------------------------------------- compare

spread = st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=8).filter(lambda r: max(r) - min(r) > 0)


@given(spread)
@settings(max_examples=200)
def test_advantages_have_mean_0_and_standard_deviation_1(rewards: list[float]) -> None:
    advantages = group_advantages(torch.tensor([rewards]))[0].double()
    assert abs(float(advantages.mean())) < 1e-5
    assert abs(float(advantages.std(correction=0)) - 1) < 1e-5
    best, worst = rewards.index(max(rewards)), rewards.index(min(rewards))
    assert advantages[best] == advantages.max() > 0 > advantages[worst] == advantages.min()


def test_advantages_by_hand() -> None:
    rewards = torch.tensor([[0.0, 1.0, 2.0, 5.0], [1.0, 1.0, 1.0, 5.0]])
    root = math.sqrt(3.5)
    expected = torch.tensor([[-2 / root, -1 / root, 0, 3 / root], [-1 / 3**0.5] * 3 + [3**0.5]])
    torch.testing.assert_close(group_advantages(rewards), expected)
    only_centred = torch.tensor([[-2.0, -1, 0, 3], [-1, -1, -1, 3]])
    torch.testing.assert_close(group_advantages(rewards, divide_by_std=False), only_centred)


def test_costs_are_compared_and_never_divided() -> None:
    """All wrong; one right; all right: of the last two, rewards weigh as without costs."""
    rewards = torch.tensor([[0.0, 0, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1]])
    costs = torch.tensor([[0.0, -0.1, -0.2, -0.1], [0.0, 0, 0, -0.4], [-0.1, -0.1, 0, 0]])
    found = advantages(rewards, costs=costs)
    for row, (group, cost) in enumerate(zip(rewards.tolist(), costs.tolist())):
        mean, least = sum(group) / 4, sum(cost) / 4
        std = (sum((one - mean) ** 2 for one in group) / 4) ** 0.5 or 1.0
        by_hand = [(one - mean) / std + (paid - least) for one, paid in zip(group, cost)]
        assert found[row].tolist() == pytest.approx(by_hand, abs=1e-6)
    # As a part of the reward, the cost of a group without a right answer weighs as much as a right answer.
    assert found[0].abs().max() == pytest.approx(0.1) and advantages(rewards + costs)[0].abs().max() > 1.4
    scored = torch.tensor([[True, True, True, False]]).expand(3, 4)
    assert advantages(rewards, scored=scored, costs=costs)[0].tolist() == pytest.approx([0.1, 0.0, -0.1, 0.0])
    assert torch.equal(advantages(rewards, costs=torch.zeros(3, 4)), advantages(rewards))


@given(st.floats(-1e6, 1e6), st.integers(2, 16), st.sampled_from([torch.float32, torch.float64]), st.booleans())
@settings(max_examples=200)
def test_a_flat_group_has_exactly_no_advantage(
    reward: float, group: int, dtype: torch.dtype, divide_by_std: bool
) -> None:
    rewards = torch.full((1, group), reward, dtype=dtype)
    assert group_advantages(rewards, divide_by_std).tolist() == [[0.0] * group]
    assert grpo.zero_spread(rewards).tolist() == [True]


def test_a_flat_group_whose_mean_rounds_has_exactly_no_advantage() -> None:
    for reward in (0.1, 0.7, 1 / 3, 2.3, 1e-40, 1e30):
        for group in (3, 5, 6, 7, 10, 11):
            rewards = torch.tensor([[reward] * group, list(range(group))])
            assert group_advantages(rewards)[0].tolist() == [0.0] * group
            assert grpo.zero_spread(rewards).tolist() == [True, False]


def test_the_smallest_differences_neither_overflow_nor_vanish() -> None:
    for rewards in ([1e-30, 2e-30], [1.0, 1.0 + 2**-23], [3e38, -3e38]):
        torch.testing.assert_close(group_advantages(torch.tensor([sorted(rewards)])), torch.tensor([[-1.0, 1.0]]))


@pytest.mark.parametrize("hidden", [9.0, math.nan, math.inf, -math.inf])
def test_an_answer_that_is_not_scored_takes_no_part_whatever_its_reward(hidden: float) -> None:
    rewards = torch.tensor(
        [[1.0, hidden, 3.0, 5.0], [2.0, hidden, hidden, 2.0], [hidden] * 4, [7.0, hidden, hidden, hidden]]
    )
    scored = torch.tensor([[1, 0, 1, 1], [1, 0, 0, 1], [0] * 4, [1, 0, 0, 0]]).bool()
    advantages = group_advantages(rewards, scored=scored)
    rest = group_advantages(torch.tensor([[1.0, 3.0, 5.0]]))[0].tolist()
    assert advantages[0].tolist() == pytest.approx([rest[0], 0.0, rest[1], rest[2]])
    assert advantages[1:].tolist() == [[0.0] * 4] * 3
    assert grpo.zero_spread(rewards, scored).tolist() == [False, True, True, True]
    without_std = group_advantages(rewards, divide_by_std=False, scored=scored)
    assert without_std.tolist() == [[-2.0, 0.0, 0.0, 2.0]] + [[0.0] * 4] * 3


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf])
def test_a_reward_that_counts_must_be_a_number(reward: float) -> None:
    """Not left out in silence: who leaves it out has to say so."""
    for kind in RELATIVES:
        with pytest.raises(ValueError, match=r"must be a finite number, got \[\[1.0, 2.0, (nan|-?inf)\]\]"):
            advantages(torch.tensor([[1.0, 2.0, reward]]), kind)


@pytest.mark.parametrize("shape", [(4, 1), (0, 1), (4,), (2, 2, 2), (3, 0)])
def test_a_group_of_one_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"at least 2 answers.*\("):
        group_advantages(torch.ones(shape))


def test_advantages_ignore_shift_and_scale_of_the_rewards() -> None:
    rewards = rand(6, 5)
    advantages = group_advantages(rewards)
    torch.testing.assert_close(group_advantages(rewards + 3), advantages, atol=1e-5, rtol=0)
    torch.testing.assert_close(group_advantages(rewards * 7), advantages, atol=1e-5, rtol=0)
    torch.testing.assert_close(group_advantages(-rewards), -advantages, atol=1e-5, rtol=0)
    centred = group_advantages(rewards, divide_by_std=False)
    torch.testing.assert_close(group_advantages(rewards * 7 + 3, divide_by_std=False), 7 * centred, atol=1e-5, rtol=0)


def test_advantages_follow_permutations_of_answers_and_of_groups() -> None:
    rewards = rand(4, 5)
    answers, groups = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([2, 3, 1, 0])
    advantages = group_advantages(rewards)
    torch.testing.assert_close(group_advantages(rewards[:, answers]), advantages[:, answers])
    torch.testing.assert_close(group_advantages(rewards[groups]), advantages[groups])
    assert not torch.allclose(group_advantages(rewards.T.reshape(4, 5)), advantages)


# ---------------------------------------------------------------------- compare: the relatives

RELATIVES = [kind for kind in get_args(grpo.Advantage) if kind != "one"]  # which compares nothing


def written_out(rewards: list[list[float]], kind: str) -> list[list[float]]:
    """Every relative's advantages as its paper writes them; what is not scored, a NaN here, is left out of all and gets
    0."""
    groups = [[r for r in group if not math.isnan(r)] for group in rewards]
    everything = [r for group in groups for r in group]
    centred = [r - statistics.fmean(group) for group in groups for r in group]
    flat = [max(group, default=0) == min(group, default=0) for group in groups]

    def one(r: float, group: list[float]) -> float:
        if math.isnan(r):
            return 0.0
        siblings = list(group)
        siblings.remove(r)
        difference = r - statistics.fmean(group)
        match kind:
            case "group":
                return difference / statistics.pstdev(group) if difference else 0.0
            case "leave_one_out":
                return r - statistics.fmean(siblings) if siblings else 0.0
            case "batch":
                return (r - statistics.fmean(everything)) / statistics.pstdev(everything)
            case "group_batch":
                return (difference - statistics.fmean(centred)) / statistics.pstdev(centred)
            case "rescaled":
                return difference * len(groups) / (len(groups) - sum(flat))
        raise AssertionError(kind)

    return [[one(r, group) for r in whole] for whole, group in zip(rewards, groups)]


def scored_of(rewards: Tensor) -> Tensor:
    return ~rewards.isnan()


REWARDS = [
    [1.0, 3.0, 3.5, 0.25],
    [2.0] * 4,
    [-1.0, 5.0, 0.0, 0.0],
    [4.0, math.nan, 1.0, 2.0],
    [math.nan, 7.0, math.nan, math.nan],
]


@pytest.mark.parametrize("kind", RELATIVES)
def test_the_relatives_are_what_their_papers_write(kind: str) -> None:
    rewards = torch.tensor(REWARDS)
    before, scored = rewards.clone(), scored_of(rewards)
    expected = torch.tensor(written_out(REWARDS, kind))
    torch.testing.assert_close(advantages(rewards, kind, scored=scored), expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(rewards.nan_to_num(), before.nan_to_num())
    assert torch.equal(advantages(rewards, scored=scored), group_advantages(rewards, scored=scored))


masked_groups = st.integers(2, 6).flatmap(
    lambda G: st.lists(
        st.lists(st.tuples(st.floats(-100, 100, width=16), st.booleans()), min_size=G, max_size=G),
        min_size=1,
        max_size=4,
    )
)


@given(masked_groups, st.sampled_from(RELATIVES))
@settings(max_examples=150)
def test_any_mask_is_what_a_loop_makes_of_it(groups: list[list[tuple[float, bool]]], kind: str) -> None:
    """Drawn rewards and masks, and an empty group and one of a single answer beside them."""
    G = len(groups[0])
    groups = [*groups, [(1.0, False)] * G, [(3.0, i == 0) for i in range(G)], [(float(i), True) for i in range(G)]]
    rewards, scored = (torch.tensor([[pair[i] for pair in group] for group in groups]) for i in (0, 1))
    loop = written_out([[r if counts else math.nan for r, counts in group] for group in groups], kind)
    found = advantages(rewards.double(), kind, scored=scored)
    torch.testing.assert_close(found, torch.tensor(loop, dtype=torch.float64), atol=1e-9, rtol=1e-6)
    assert not found[~scored].any()
    if kind != "batch":  # which compares answers with those of all groups
        assert not (found[scored.sum(dim=1) < 2].abs() > 1e-12).any()


@pytest.mark.parametrize("kind", RELATIVES)
def test_ranks_that_share_a_step_find_the_advantages_of_one(kind: str) -> None:
    """Rank by rank, with sums that are known from all ranks; test_train.py has it with two real ones."""
    everything, asked = torch.tensor(REWARDS), []
    parts = everything.split([2, 3])
    whole = advantages(everything, kind, totals=lambda sums: asked.append(sums) or sums, scored=scored_of(everything))
    for part, rows in zip(parts, (slice(0, 2), slice(2, 5))):
        answers = iter(asked)
        found = advantages(part, kind, totals=lambda sums: next(answers), scored=scored_of(part))
        torch.testing.assert_close(found, whole[rows])
        assert next(answers, None) is None  # every rank asks equally often
    assert bool(asked) == (kind in ("batch", "group_batch", "rescaled"))


@pytest.mark.parametrize("kind", RELATIVES)
def test_a_step_without_any_spread_teaches_nothing(kind: str) -> None:
    for reward in (0.1, 0.7, 1 / 3, 1e-40, 1e30):
        assert advantages(torch.full((3, 7), reward), kind).abs().max() == 0
    assert advantages(rand(3, 7), kind, scored=torch.zeros(3, 7, dtype=torch.bool)).abs().max() == 0


def test_only_the_whole_step_tells_good_groups_from_bad_ones() -> None:
    """REINFORCE++ without baseline: a group without spread still learns, from the other groups."""
    rewards = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    assert advantages(rewards, "batch").tolist() == [[1.0, 1.0], [-1.0, -1.0]]
    assert advantages(rewards, "group_batch").abs().max() == 0


def test_an_unknown_advantage_is_refused() -> None:
    with pytest.raises(ValueError, match="'best': use group, leave_one_out, batch"):
        advantages(rand(2, 2), "best")


def test_the_config_knows_the_relatives() -> None:
    kinds = {field.name: get_args(field.type) for field in dataclasses.fields(TrainConfig)}
    assert kinds["advantage"] == get_args(grpo.Advantage) and kinds["ratio"] == RATIOS
    assert kinds["normalise"] == get_args(grpo.Normalisation)


def test_gmpo_clips_from_e_to_the_minus_0_4_to_e_to_the_0_4() -> None:
    """Tokens far out on the side that the sign of A clips, at the preset's range."""
    clip = {name: PRESETS["gmpo"][name] for name in ("clip_low", "clip_high")}
    for advantage in (2.0, -2.0):
        outside = torch.tensor([[[2.0, 2.0, 0.1]]]) * (1 if advantage > 0 else -1)  # log-ratios
        logp = outside.clone().requires_grad_(True)
        weight = torch.full((1, 1, 3), 1 / 3)
        loss, seen = policy_loss(
            logp, torch.zeros(1, 1, 3), None, torch.tensor([[advantage]]), weight, **clip, beta=0, ratio_of="geometric"
        )
        loss.backward()
        mean = math.exp((0.4 + 0.4 + 0.1) / 3 * (1 if advantage > 0 else -1))
        assert loss.item() == pytest.approx(-advantage * mean, rel=1e-4)
        assert logp.grad.flatten().tolist() == pytest.approx([0, 0, -advantage * mean / 3], rel=1e-4)
        assert seen["clip_fraction"].item() == pytest.approx(2 / 3)


# ---------------------------------------------------------------------- log-probabilities


def laid_out(lengths: list[list[int]], T: int) -> tuple[Tensor, int]:
    """(columns (P, G, T), W) of answers that stand in a row with gaps, the last answer first; padding holds 0."""
    columns = torch.zeros(len(lengths), len(lengths[0]), T, dtype=torch.long)
    for p, row in enumerate(lengths):
        begin = 2
        for g in reversed(range(len(row))):
            columns[p, g, : row[g]] = torch.arange(begin, begin + row[g])
            begin += row[g] + 1
    return columns, int(columns.max()) + 2


def naive_logps(
    logits: Tensor,
    tokens: Tensor,
    columns: Tensor,
    sampled: Tensor,
    temperature: float,
    suppressed_ids: tuple[int, ...],
) -> tuple[Tensor, Tensor]:
    """Loops over the tokens with an explicit shift; logits[:, 0] is the prompt's last column."""
    logp, entropy = torch.zeros(tokens.shape), torch.zeros(tokens.shape)
    allowed = [i for i in range(logits.shape[-1]) if i not in suppressed_ids]
    for p, g, t in sampled.nonzero().tolist():
        scores = logits[p, 0] if t == 0 else logits[p, 1:][columns[p, g, t - 1]]
        distribution = Categorical(logits=scores[allowed] / temperature)
        logp[p, g, t] = distribution.log_prob(torch.tensor(allowed.index(int(tokens[p, g, t]))))
        entropy[p, g, t] = distribution.entropy()
    return logp, entropy


@pytest.mark.parametrize("temperature", [1.0, 0.5, 1.7])
@pytest.mark.parametrize("suppressed_ids", [(), (3, 7)])
@pytest.mark.parametrize("lengths", [[[4, 2, 1], [3, 3, 4]], [[1, 1], [1, 1]]])
def test_log_probabilities_are_those_of_a_loop(
    temperature: float, suppressed_ids: tuple[int, ...], lengths: list[list[int]]
) -> None:
    T = max(map(max, lengths))
    columns, W = laid_out(lengths, T)
    sampled = prefix_mask(lengths, T)
    logits = 2 * rand(2, 1 + W, 9)
    drawn = torch.randint(7, columns.shape, generator=torch.Generator().manual_seed(1))
    tokens = torch.tensor([0, 1, 2, 4, 5, 6, 8])[drawn]
    logits.requires_grad_(True)
    logp, entropy = answer_logps(logits, tokens, columns, temperature, suppressed_ids)
    expected_logp, expected_entropy = naive_logps(logits, tokens, columns, sampled, temperature, suppressed_ids)
    torch.testing.assert_close(logp[sampled], expected_logp[sampled])
    torch.testing.assert_close(entropy[sampled], expected_entropy[sampled])
    assert logp.requires_grad and not entropy.requires_grad
    weight = rand(*columns.shape, seed=2) * sampled
    (gradient,) = torch.autograd.grad((weight * logp).sum(), logits)
    (expected,) = torch.autograd.grad((weight * expected_logp).sum(), logits)
    torch.testing.assert_close(gradient, expected)
    assert gradient[:, :, list(suppressed_ids)].abs().sum() == 0
    for p, row in enumerate(lengths):  # the last column of an answer predicts nothing
        for g, length in enumerate(row):
            assert gradient[p, 1 + columns[p, g, length - 1]].abs().sum() == 0


def test_forbidden_ids_have_no_share_however_likely_they_look() -> None:
    logits = rand(1, 5, 6)
    logits[..., [1, 4]] += 1000
    columns = torch.arange(4).view(1, 4, 1)  # four answers of one token: all read off the prompt's last column
    logp, entropy = answer_logps(logits, torch.tensor([[[0], [2], [3], [5]]]), columns, suppressed_ids=(1, 4))
    assert logp.exp().sum().item() == pytest.approx(1, abs=1e-6)
    assert entropy.isfinite().all() and (entropy > 0).all()
    banned, _ = answer_logps(logits, torch.tensor([[[1], [4], [1], [4]]]), columns, suppressed_ids=(1, 4))
    assert (banned < -1e30).all() and banned.isfinite().all()


@pytest.mark.parametrize("at_once", [1, 9, 5 * 9, 7 * 9])
def test_scored_in_pieces_is_scored_whole(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """28 positions, padding included, in pieces of 1, 1, 5 and 7: five does not divide them."""
    columns, W = laid_out([[4, 3], [7, 7]], 7)
    logits = rand(2, 1 + W, 9).requires_grad_(True)
    tokens = torch.randint(9, columns.shape, generator=torch.Generator().manual_seed(3))
    weight = rand(*columns.shape, seed=4)
    whole = answer_logps(logits, tokens, columns, 0.7, (2,))
    (expected,) = torch.autograd.grad((weight * whole[0]).sum(), logits)
    monkeypatch.setattr(grpo, "AT_ONCE", at_once)
    pieces = answer_logps(logits, tokens, columns, 0.7, (2,))
    (gradient,) = torch.autograd.grad((weight * pieces[0]).sum(), logits)
    for one, other in zip((*pieces, gradient), (*whole, expected)):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


TWO_PAIRS = torch.tensor([[[1, 2], [3, 4]]]), torch.tensor([[[0, 1], [2, 3]]])  # tokens, columns


def test_greedy_answers_are_scored_at_temperature_1() -> None:
    logits = rand(1, 5, 7)
    for one, zero in zip(answer_logps(logits, *TWO_PAIRS, 1.0), answer_logps(logits, *TWO_PAIRS, 0)):
        assert torch.equal(one, zero)


def test_half_precision_logits_are_normalised_in_full_precision() -> None:
    logits = (4 * rand(1, 5, 300)).bfloat16()
    logp, entropy = answer_logps(logits, *TWO_PAIRS)
    expected, _ = answer_logps(logits.float(), *TWO_PAIRS)
    assert logp.dtype == entropy.dtype == torch.float32
    assert torch.equal(logp, expected)


# ---------------------------------------------------------------------- learn


def test_nothing_is_clipped_and_nothing_drifted_on_the_first_update() -> None:
    batch = step()
    batch["old_logp"] = batch["ref_logp"] = batch["logp"].clone()
    weight = weights_of(batch)
    loss, statistics = loss_of(batch, weight)
    assert float(statistics["ratio_max"]) == 1
    assert float(statistics["clip_fraction"]) == float(statistics["kl"]) == 0
    torch.testing.assert_close(loss, -(weight * batch["advantage"][..., None]).sum())


@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("ratio_of", RATIOS)
def test_the_first_gradient_is_that_of_reinforce(normalise: str, ratio_of: str) -> None:
    P, G, T, V = 2, 3, 4, 9
    lengths = [[4, 2, 1], [3, 3, 4]]
    sampled, (columns, W) = prefix_mask(lengths, T), laid_out(lengths, T)
    logits = rand(P, 1 + W, V).requires_grad_(True)
    tokens = torch.randint(V, (P, G, T), generator=torch.Generator().manual_seed(1))
    weight = token_weights(sampled, normalise, P * G, int(sampled.sum()), T)
    advantage = group_advantages(rand(P, G))
    logp, _ = answer_logps(logits, tokens, columns)
    loss, _ = policy_loss(logp, logp.detach(), None, advantage, weight, beta=0, ratio_of=ratio_of)
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (reinforce,) = torch.autograd.grad(-(weight * advantage[..., None] * logp).sum(), logits)
    torch.testing.assert_close(gradient, reinforce, atol=1e-7, rtol=1e-5)
    assert gradient.abs().max() > 1e-3


@pytest.mark.parametrize(
    "advantage, ratio, loss, slope",
    [
        # min(w A, clip(w) A) by hand; slope is d loss / d logp = -w A, or 0 where the clip holds
        (+2.0, 1.5, -2.4, 0.0),  # good and already likelier: clipped at 1.2
        (+2.0, 0.5, -1.0, -1.0),  # good and less likely: pushed up
        (-2.0, 1.5, +3.0, +3.0),  # bad and likelier: pushed down
        (-2.0, 0.5, +1.6, 0.0),  # bad and already less likely: clipped at 0.8
        (+2.0, 1.1, -2.2, -2.2),  # inside the range nothing is clipped
        (-2.0, 0.9, +1.8, +1.8),
    ],
)
def test_clipping_by_hand(advantage: float, ratio: float, loss: float, slope: float) -> None:
    logp = torch.tensor([[[math.log(ratio) - 3.0]]], requires_grad=True)
    old, one = torch.tensor([[[-3.0]]]), torch.ones(1, 1, 1)
    value, statistics = policy_loss(logp, old, None, torch.tensor([[advantage]]), one, beta=0)
    value.backward()
    assert value.item() == pytest.approx(loss, abs=1e-5)
    assert logp.grad.item() == (0.0 if slope == 0 else pytest.approx(slope, abs=1e-5))
    assert statistics["clip_fraction"].item() == (slope == 0)
    assert statistics["ratio_max"].item() == pytest.approx(ratio, abs=1e-5)


def test_the_upper_clip_is_its_own_argument() -> None:
    def slope(ratio: float, advantage: float, **clip: float) -> float:
        logp = torch.tensor([[[math.log(ratio)]]], requires_grad=True)
        zero, one = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
        policy_loss(logp, zero, None, torch.tensor([[advantage]]), one, beta=0, **clip)[0].backward()
        return logp.grad.item()

    assert slope(1.25, 1.0) == 0 and slope(1.25, 1.0, clip_high=0.3) == pytest.approx(-1.25, abs=1e-5)
    assert slope(0.75, -1.0) == 0 and slope(0.75, -1.0, clip_high=0.3) == 0
    assert slope(0.75, -1.0, clip_low=0.3) == pytest.approx(0.75, abs=1e-5)
    assert slope(1.25, 1.0, clip_low=0.3) == 0


def test_the_clip_fraction_and_kl_are_shares_of_the_step() -> None:
    batch = step(P=2, G=2, T=3)
    weight = weights_of(batch, "token")
    _, statistics = loss_of(batch, weight)
    clipped, kl, largest = 0, 0.0, 0.0
    for p, g, t in batch["sampled"].nonzero().tolist():
        ratio = math.exp(batch["logp"][p, g, t] - batch["old_logp"][p, g, t])
        difference = float(batch["ref_logp"][p, g, t] - batch["logp"][p, g, t])
        clipped += (ratio > 1.2 and batch["advantage"][p, g] > 0) or (ratio < 0.8 and batch["advantage"][p, g] < 0)
        kl += math.exp(difference) - difference - 1
        largest = max(largest, ratio)
    count = int(batch["sampled"].sum())
    assert 0 < clipped < count
    assert statistics["clip_fraction"].item() == pytest.approx(clipped / count)
    assert statistics["kl"].item() == pytest.approx(kl / count, rel=1e-5)
    assert statistics["ratio_max"].item() == pytest.approx(largest, rel=1e-5)
    assert not any(value.requires_grad for value in statistics.values())


# ---------------------------------------------------------------------- KL


def test_kl_estimates_are_never_negative_and_0_where_the_policies_agree() -> None:
    logp, ref = rand(1000), rand(1000, seed=1)
    assert (kl_to_reference(logp, ref) >= 0).all()
    assert torch.equal(kl_to_reference(logp, logp), torch.zeros(1000))
    near = kl_to_reference(logp, logp + 1e-3)  # x^2 / 2 to first order, which exp(x) - 1 - x would lose
    torch.testing.assert_close(near, torch.full((1000,), 5e-7), rtol=0.01, atol=0)


def test_the_expectation_of_k3_is_the_reverse_kl_and_its_gradient_the_forward_kl() -> None:
    """Deviation 5, on 8 tokens: summing over all tokens, weighted with the policy, is the expectation."""
    scores = rand(8).requires_grad_(True)
    ref = rand(8, seed=1).log_softmax(0)
    logp = scores.log_softmax(0)
    expectation = (logp.exp().detach() * kl_to_reference(logp, ref)).sum()
    reverse = (logp.exp() * (logp - ref)).sum()
    assert expectation.item() == pytest.approx(reverse.item(), abs=1e-6)
    forward = (ref.exp() * (ref - logp)).sum()
    (of_k3,) = torch.autograd.grad(expectation, scores, retain_graph=True)
    (of_forward,) = torch.autograd.grad(forward, scores, retain_graph=True)
    (of_reverse,) = torch.autograd.grad(reverse, scores)
    torch.testing.assert_close(of_k3, of_forward, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(of_k3, of_reverse, atol=1e-2)


def test_descending_the_kl_term_alone_brings_the_policy_to_the_reference() -> None:
    scores, ref = rand(8).requires_grad_(True), rand(8, seed=1).log_softmax(0)
    for _ in range(300):
        logp = scores.log_softmax(0)
        loss, _ = policy_loss(
            logp.view(1, 8, 1),
            logp.detach().view(1, 8, 1),
            ref.view(1, 8, 1),
            torch.zeros(1, 8),
            logp.exp().detach().view(1, 8, 1),
            beta=1.0,
        )
        (gradient,) = torch.autograd.grad(loss, scores)
        scores = (scores - gradient).detach().requires_grad_(True)
    torch.testing.assert_close(scores.log_softmax(0), ref, atol=1e-3, rtol=0)


@pytest.mark.parametrize("drift", [50.0, -50.0, 1000.0, -1000.0])
@pytest.mark.parametrize("ratio_of", RATIOS)
def test_a_token_that_drifted_far_stays_finite_forward_and_backward(drift: float, ratio_of: str) -> None:
    for advantage in (1.0, -1.0):
        logp = torch.tensor([[[-3.0, -3.0]]], requires_grad=True)
        away = torch.tensor([[[-3.0 + drift, -3.0]]])
        loss, statistics = policy_loss(
            logp, away, away, torch.tensor([[advantage]]), torch.full((1, 1, 2), 0.5), ratio_of=ratio_of
        )
        loss.backward()
        assert loss.isfinite() and logp.grad.isfinite().all()
        assert all(value.isfinite() for value in statistics.values())


# ---------------------------------------------------------------------- how a step is cut


@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("ratio_of", RATIOS)
def test_a_step_cut_into_pieces_is_the_step_written_out(normalise: str, ratio_of: str) -> None:
    batch = step()
    expected = loop_loss(batch, normalise, longest=10, ratio_of=ratio_of)
    responses, tokens = 8 * 3, int(batch["sampled"].sum())
    gradients = []
    for rows in (8, 4, 1):
        batch["logp"] = batch["logp"].detach().requires_grad_(True)
        total, kl = 0.0, 0.0
        for start in range(0, 8, rows):
            piece = cut(batch, slice(start, start + rows))
            weight = token_weights(piece["sampled"], normalise, responses, tokens, longest=10)
            loss, statistics = loss_of(piece, weight, ratio_of=ratio_of)
            loss.backward()
            total, kl = total + loss.item(), kl + statistics["kl"].item()
        assert total == pytest.approx(expected, abs=1e-6)
        gradients.append(batch["logp"].grad)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-8, rtol=0)
    torch.testing.assert_close(gradients[2], gradients[0], atol=1e-8, rtol=0)


def test_the_three_normalisations_differ() -> None:
    losses = {loop_loss(step(), normalise, longest=10) for normalise in NORMALISATIONS}
    assert len({round(loss, 4) for loss in losses}) == 3
    with pytest.raises(ValueError, match="'mean'.*response, token or constant"):
        token_weights(torch.ones(1, 1, 1), "mean", 1, 1, 1)


def test_the_weights_of_a_step_add_up_to_a_mean() -> None:
    sampled = step()["sampled"]
    for normalise in ("response", "token"):
        assert float(token_weights(sampled, normalise, 24, int(sampled.sum()), 6).sum()) == pytest.approx(1, abs=1e-6)
    full = torch.ones(8, 3, 6, dtype=torch.bool)
    assert float(token_weights(full, "constant", 24, 8 * 3 * 6, 6).sum()) == pytest.approx(1, abs=1e-6)
    per_answer = token_weights(sampled, "response", 24, int(sampled.sum()), 6).sum(-1)
    torch.testing.assert_close(per_answer, torch.full((8, 3), 1 / 24))


@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("ratio_of", RATIOS)
def test_padding_changes_nothing(normalise: str, ratio_of: str) -> None:
    batch = step(P=2)
    wide = {name: torch.nn.functional.pad(batch[name], (0, 3)) for name in batch if name != "advantage"}
    for name, garbage in (("logp", -80.0), ("old_logp", 5.0), ("ref_logp", torch.finfo().min)):
        wide[name] = torch.where(wide["sampled"], wide[name], garbage)
    wide["advantage"] = batch["advantage"]
    tight_logp, wide_logp = batch["logp"].requires_grad_(True), wide["logp"].requires_grad_(True)
    tight, tight_statistics = loss_of(batch, weights_of(batch, normalise), ratio_of=ratio_of)
    padded, padded_statistics = loss_of(wide, weights_of(wide, normalise), ratio_of=ratio_of)
    assert padded.item() == pytest.approx(tight.item(), abs=1e-7)
    for name, value in tight_statistics.items():
        assert padded_statistics[name].item() == pytest.approx(value.item(), abs=1e-7), name
    (of_tight,), (of_wide,) = torch.autograd.grad(tight, tight_logp), torch.autograd.grad(padded, wide_logp)
    torch.testing.assert_close(of_wide[..., :6], of_tight)
    assert of_wide[~wide["sampled"]].abs().sum() == 0


@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("ratio_of", RATIOS)
def test_a_piece_without_any_token_costs_nothing_and_can_be_differentiated(normalise: str, ratio_of: str) -> None:
    batch = step(P=1)
    batch["sampled"] = torch.zeros_like(batch["sampled"])
    logp = batch["logp"].requires_grad_(True)
    weight = token_weights(batch["sampled"], normalise, 3, 0, 6)
    loss, statistics = loss_of(batch, weight, ratio_of=ratio_of)
    loss.backward()
    assert loss.item() == 0 and logp.grad.tolist() == torch.zeros(1, 3, 6).tolist()
    assert [value.item() for value in statistics.values()] == [0, 0, 0]


def test_the_end_token_is_trained_although_padding_is_made_of_it() -> None:
    end, T = 2, 4
    tokens = torch.tensor([[[5, 6, end, end], [7, end, end, end]]])
    columns = torch.tensor([[[0, 1, 2, 0], [3, 4, 0, 0]]])
    sampled = prefix_mask([[3, 2]], T)  # by length: each answer's own end token counts, padding does not
    logits = rand(1, 6, 9).requires_grad_(True)
    logp, _ = answer_logps(logits, tokens, columns)
    weight = token_weights(sampled, "response", 2, 5, T)
    policy_loss(logp, logp.detach(), None, torch.tensor([[1.0, -1.0]]), weight, beta=0)[0].backward()
    # Behind the prompt's last column stand 5 6 end | 7 end; an end is predicted in the column of 6 and of 7.
    slope = logits.grad[0, :, end]
    assert slope[2] < 0 < slope[4]
    assert (logits.grad[0].abs().sum(-1) > 0).tolist() == [True, True, True, False, True, False]


def test_permuting_answers_and_prompts_leaves_the_loss() -> None:
    batch = step()
    loss, _ = loss_of(batch, weights_of(batch))
    answers, prompts = torch.tensor([2, 0, 1]), torch.randperm(8, generator=torch.Generator().manual_seed(0))
    shuffled = {name: tensor[prompts][:, answers] for name, tensor in batch.items()}
    again, _ = loss_of(shuffled, weights_of(shuffled))
    assert again.item() == pytest.approx(loss.item(), abs=1e-6)
    shuffled["advantage"] = batch["advantage"]
    wrong, _ = loss_of(shuffled, weights_of(shuffled))
    assert abs(wrong.item() - loss.item()) > 1e-3


@pytest.mark.parametrize(
    "function, arguments",
    [
        (
            group_advantages,
            (
                torch.tensor([[1.0, math.nan, 3.0], [2.0, 2.0, 2.0]]),
                True,
                torch.tensor([[True, False, True], [True] * 3]),
            ),
        ),
        (grpo.zero_spread, (torch.tensor([[1.0, math.nan, 3.0]]), torch.tensor([[True, False, True]]))),
        (answer_logps, (rand(1, 5, 7), *TWO_PAIRS, 0.5, (3,))),
        (token_weights, (torch.ones(2, 3, 2), "response", 6, 12, 2)),
        (kl_to_reference, (rand(4), rand(4, seed=1))),
        (policy_loss, (rand(2, 3, 4), rand(2, 3, 4, seed=1), rand(2, 3, 4, seed=2), rand(2, 3), torch.ones(2, 3, 4))),
    ],
)
def test_arguments_are_left_bit_identical(function: Callable, arguments: tuple) -> None:
    before = [argument.clone() if isinstance(argument, Tensor) else argument for argument in arguments]
    function(*arguments)
    for argument, copy in zip(arguments, before):
        if isinstance(argument, Tensor):
            assert argument.numpy().tobytes() == copy.numpy().tobytes()


def test_padding_that_is_not_scored_changes_nothing() -> None:
    """The same numbers, bit for bit, and the same gradient, in one piece or many; nothing is said of padding."""
    torch.manual_seed(0)
    logits = torch.randn(2, 1 + 9, 7, requires_grad=True)
    tokens, columns = (
        torch.randint(7, (2, 3, 4)),
        torch.tensor([[0, 1, 2, 3], [4, 5, 0, 0], [6, 7, 8, 0]]).expand(2, 3, 4),
    )
    completion_mask = torch.tensor([[True] * 4, [True, True, False, False], [True] * 3 + [False]]).expand(2, 3, 4)
    found = []
    for given, at_once in ((None, grpo.AT_ONCE), (completion_mask, grpo.AT_ONCE), (completion_mask, 3 * 7)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(grpo, "AT_ONCE", at_once)
            logp, entropy = grpo.answer_logps(logits, tokens, columns, 0.7, (3,), completion_mask=given)
        (gradient,) = torch.autograd.grad((logp * torch.arange(24.0).view(2, 3, 4))[completion_mask].sum(), logits)
        found.append((logp[completion_mask], entropy[completion_mask], gradient))
        assert given is None or not logp[~completion_mask].any() and not entropy[~completion_mask].any()
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))
