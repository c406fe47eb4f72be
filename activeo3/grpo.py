"""Group Relative Policy Optimization: tensors in, tensors out. Steps 5 and 6 of train.py: compare, learn.

    A_i   = (r_i - mean(r)) / std(r)                              r: the G rewards of one prompt
    w_t   = pi(o_t) / pi_old(o_t)
    J     = mean_i 1/|o_i| sum_t  min(w_t A_i, clip(w_t, 1 - eps, 1 + eps) A_i) - beta KL_t
    KL_t  = pi_ref/pi - log(pi_ref/pi) - 1                         >= 0, the "k3" estimator

Sources: GRPO, DeepSeekMath (arXiv 2402.03300, eq. 3-4); ACTIVE-O3 (arXiv 2505.21457v2, section 4.3).
Relatives that differ in one line (ACTIVE-O3's Table 5 has some) are arguments: another A_i in ``advantages``,
another w_t in ``policy_loss``, another mean in ``token_weights``. config.PRESETS puts them together.

Deviations, and readings of what the papers leave open:
  1. A group whose rewards are all equal has no spread to divide by: its advantages are 0.
  2. std is that of the group itself (divided by G, not by G - 1).
  3. The log-ratio of the KL is clamped to +-10 before the exponential, that of w to +-20: a single token
     that drifted far makes the exponential infinite in backward although the loss looked finite.
  4. ACTIVE-O3 writes the ratio for whole answers. The default is per token, as in GRPO; ``"sequence"`` is
     the length-normalised answer ratio of GSPO (arXiv 2507.18071, eq. 7).
  5. k3 is an unbiased estimate of the reverse KL's *value*; the gradient of its sample mean is that of
     the forward KL's (Schulman, "Approximating KL divergence"). GRPO uses it so, and so do we.
  6. The relatives keep the KL where GRPO has it, in the loss. REINFORCE++ and RLOO subtract it from the
     reward; without that, REINFORCE++'s advantage is one number per answer, and its mean and spread are
     those of answers, not of tokens.
  7. Left out, since it is more than a line: DAPO samples groups without spread again, and GPG waits until
     enough groups have one (both cost further rollouts); DAPO also softens the length limit.

Every function leaves its inputs as they were. Shapes: see the glossary in types.py.
"""

from functools import partial
from typing import Callable, Literal, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Advantage = Literal["group", "leave_one_out", "batch", "group_batch", "rescaled", "one"]
Normalisation = Literal["response", "token", "constant"]
Ratio = Literal["token", "sequence", "geometric", "none"]
Totals = Callable[[dict[str, float]], dict[str, float]]  # sums over all ranks

AT_ONCE = 2**24
"""Most logits that are scored at a time: 64 MB in float32, and some six times as much with softmax and gradients."""


def advantages(
    rewards: Tensor,
    kind: Advantage = "group",
    divide_by_std: bool = True,
    totals: Totals = dict,
    scored: Tensor | None = None,
    costs: Tensor | None = None,
) -> Tensor:
    """How good each answer is, by a baseline that needs no critic: (P, G) rewards -> (P, G) advantages.

    With group mean m and R = all rewards of the step, those of all ranks:

        group          (r - m) / std(group)       GRPO, or r - m without ``divide_by_std``: Dr. GRPO
        leave_one_out  r - mean of the siblings    RLOO (arXiv 2402.14740)
        batch          (r - mean(R)) / std(R)      REINFORCE++ (arXiv 2501.03262)
        group_batch    (r - m) / std(R - m)        REINFORCE++ with baseline (the same paper)
        rescaled       (r - m) B / (B - M)         GPG (arXiv 2504.02546), F_norm = 1: M of the B groups have
                                                  no spread, and the others make up for them
        one            1                           supervised learning: the answers are known to be right

    An answer that is not ``scored`` gets advantage 0 and is left out of every mean and spread; its reward may be any
    number.

    Args:
        rewards: (P, G), one row per prompt.
        totals: sums named numbers over ranks; every rank calls it equally often.
        scored: (P, G), True where the reward counts; None: everywhere.
        costs: (P, G), negative, a part of the reward that ``rewards`` does not hold. It is compared with the siblings'
            and never divided: divided by its own spread, the smallest cost would weigh as much as a right answer
            wherever all answers are wrong.

    Raises:
        ValueError: if G < 2 (but for ``one``), or a reward that counts is NaN or infinite.

    >>> advantages(torch.tensor([[1.0, 3.0], [2.0, 2.0]]), "rescaled").tolist()
    [[-2.0, 2.0], [0.0, 0.0]]
    >>> advantages(torch.zeros(1, 2), costs=torch.tensor([[-0.5, 0.0]])).tolist()
    [[-0.25, 0.25]]
    """
    scored = everywhere(rewards) if scored is None else scored  # (P, G)
    if kind == "one":
        return torch.where(scored, 1.0, 0.0)
    if costs is not None:
        return advantages(rewards, kind, divide_by_std, totals, scored) + group_advantages(costs, False, scored)
    if kind == "group":
        return group_advantages(rewards, divide_by_std, scored)
    centred = group_advantages(rewards, False, scored)  # (P, G)
    match kind:
        case "leave_one_out":
            count = scored.sum(dim=1, keepdim=True)  # (P, 1)
            return centred * (count / (count - 1).clamp(min=1))  # r - m counts r itself among its siblings
        case "batch":
            return _normalised(rewards, scored, totals)
        case "group_batch":
            return _normalised(centred, scored, totals)
        case "rescaled":
            seen = totals({"groups": len(rewards), "flat": int(zero_spread(rewards, scored).sum())})
            return centred * (seen["groups"] / max(1, seen["groups"] - seen["flat"]))
    raise ValueError(f"unknown advantage {kind!r}: use group, leave_one_out, batch, group_batch, rescaled or one")


def _normalised(values: Tensor, scored: Tensor, totals: Totals) -> Tensor:
    """Values (P, G) with mean 0 and standard deviation 1 over the scored ones of all ranks; 0 if all are equal."""
    exact = torch.where(scored, values.double(), 0.0)  # (P, G)
    seen = totals({"count": int(scored.sum()), "sum": float(exact.sum())})
    mean = seen["sum"] / max(1, seen["count"])
    centred = torch.where(scored, exact - mean, 0.0)  # (P, G)
    std = (totals({"squares": float(centred.square().sum())})["squares"] / max(1, seen["count"])) ** 0.5
    # Equal values leave a spread of rounding errors, which is none.
    return (centred / std if std > 1e-9 * max(1.0, abs(mean)) else torch.zeros_like(centred)).to(values.dtype)


def group_advantages(rewards: Tensor, divide_by_std: bool = True, scored: Tensor | None = None) -> Tensor:
    """How much better each answer is than its siblings: (P, G) rewards -> (P, G) advantages.

    An answer that is not ``scored`` gets advantage 0 and is left out of its group's mean and spread. A group
    without spread gets 0 throughout: it teaches nothing. So does a group of which fewer than two answers are scored.

    Args:
        rewards: (P, G), one row per prompt.
        divide_by_std: False for Dr. GRPO (arXiv 2503.20783), which only subtracts the mean.
        scored: (P, G), True where the reward counts; None: everywhere.

    Raises:
        ValueError: if G < 2, since one answer has nothing to be compared with; or if a reward that counts is not
        finite.

    >>> group_advantages(torch.tensor([[1.0, 3.0], [2.0, 2.0]])).tolist()
    [[-1.0, 1.0], [0.0, 0.0]]
    """
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise ValueError(f"advantages compare at least 2 answers per prompt, got rewards {tuple(rewards.shape)}")
    scored = everywhere(rewards) if scored is None else scored  # (P, G)
    if not rewards[scored].isfinite().all():
        raise ValueError(f"a reward that counts must be a finite number, got {rewards.tolist()}")
    count = scored.sum(dim=1, keepdim=True).clamp(min=1)  # (P, 1)
    exact = torch.where(scored, rewards.double(), 0.0)  # squares of small differences would vanish in single precision
    mean = exact.sum(dim=1, keepdim=True) / count  # (P, 1)
    centred = torch.where(scored, exact - mean, 0.0)  # (P, G)
    flat = zero_spread(rewards, scored)[:, None]  # (P, 1)
    if divide_by_std:
        std = (centred.square().sum(dim=1, keepdim=True) / count).sqrt()  # (P, 1)
        centred = centred / torch.where(flat, 1.0, std)
    return torch.where(flat, 0.0, centred).to(rewards.dtype)  # (P, G)


def zero_spread(rewards: Tensor, scored: Tensor | None = None) -> Tensor:
    """(P,) True where all scored answers of a prompt, if any, have the same reward (exactly, so that rounding of
    the mean cannot turn equal rewards into advantages). ``scored`` as in ``advantages``."""
    scored = everywhere(rewards) if scored is None else scored  # (P, G)
    low = torch.where(scored, rewards, torch.inf).amin(dim=1)  # (P,)
    high = torch.where(scored, rewards, -torch.inf).amax(dim=1)  # (P,)
    return high <= low


def everywhere(rewards: Tensor) -> Tensor:
    """(P, G) True: every reward counts."""
    return torch.ones_like(rewards, dtype=torch.bool)


def answer_logps(
    logits: Tensor,
    tokens: Tensor,
    columns: Tensor,
    temperature: float = 1.0,
    suppressed_ids: Sequence[int] = (),
    logit_columns: Tensor | None = None,
    completion_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of every answer token under the distribution that was sampled, and its entropy.

    The one-token shift between logits and ids lives here and nowhere else: the prompt's last column
    predicts the first token of all G answers, the column before any other token predicts that token (it
    holds the token before it or, in an episode, the end of what was shown in between).

    Args:
        logits: (P, 1 + W, V), of the prompt's last column and of the W columns that hold answers; or (P G, 1 + W, V),
            if every answer has such a row of its own.
        tokens: (P, G, T) sampled ids; padding may hold any id.
        columns: (P, G, T) which of the W columns holds a token.
        temperature: the one they were sampled at; 0 (greedy) is scored at 1.
        suppressed_ids: ids that the sampler could never draw.
        logit_columns: (K,) if ``logits`` (P, K, V) are of these columns only, ascending, 0 being the prompt's last.
        completion_mask: (P, G, T), False on padding, which need not be scored then: one long answer makes a lot of it.

    Returns:
        logp (P, G, T) with gradient, entropy (P, G, T) in nats without; both meaningless on padding.
    """
    completion_mask = torch.ones_like(tokens, dtype=torch.bool) if completion_mask is None else completion_mask
    predictor = torch.cat([torch.zeros_like(columns[..., :1]), columns[..., 1:]], dim=-1)  # (P, G, T)
    if logit_columns is not None:
        predictor = torch.searchsorted(logit_columns, predictor)  # (P, G, T)
    row = torch.arange(len(logits), device=logits.device).view(len(tokens), -1, 1).expand_as(tokens)  # (P, G, T)
    banned = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)  # (V,)
    banned[list(suppressed_ids)] = True
    # In float32 a long answer's logits, their log-softmax and the gradients of both would be the largest
    # tensors of a step. So they are made a few positions at a time, and made again for the backward pass.
    every = max(1, AT_ONCE // logits.shape[-1])
    pieces = list(
        zip(logits[row[completion_mask], predictor[completion_mask]].split(every), tokens[completion_mask].split(every))
    )
    score = partial(_scored, banned=banned, temperature=temperature or 1.0)
    if len(pieces) > 1:
        score = partial(checkpoint, score, use_reentrant=False)
    logp, entropy = zip(*(score(*piece) for piece in pieces))  # of each piece (positions,)
    nothing = torch.zeros(tokens.shape, device=logits.device)
    return nothing.masked_scatter(completion_mask, torch.cat(logp)), nothing.masked_scatter(
        completion_mask, torch.cat(entropy)
    )


def _scored(logits: Tensor, tokens: Tensor, banned: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability of the tokens (N,) under their logits (N, V), and the entropy, without gradient."""
    logits = (logits.float() / temperature).masked_fill(banned, torch.finfo(torch.float32).min)
    logp_all = logits.log_softmax(dim=-1)  # (N, V)
    logp = logp_all.gather(-1, tokens[:, None])[:, 0]  # (N,)
    with torch.no_grad():
        entropy = -(logp_all.exp() * logp_all).sum(dim=-1)  # (N,)
    return logp, entropy


def token_weights(sampled: Tensor, normalise: Normalisation, responses: int, tokens: int, longest: int) -> Tensor:
    """The share (P, G, T) of every sampled token in the loss; over a whole step the shares are a mean.

    Args:
        sampled: (P, G, T), True where the policy chose the token.
        normalise: ``"response"``: mean over an answer's tokens, then over answers (GRPO);
            ``"token"``: mean over all tokens (DAPO, arXiv 2503.14476);
            ``"constant"``: sum over tokens by a constant length, then mean over answers (Dr. GRPO).
        responses, tokens: how many there are in the whole step, all micro-batches and ranks together,
            so that a step cut into pieces gives the sum that the whole gives.
        longest: the length limit of an answer, the constant of ``"constant"``.
    """
    sampled = sampled.float()
    match normalise:
        case "response":
            return sampled / sampled.sum(dim=-1, keepdim=True).clamp(min=1) / responses
        case "token":
            return sampled / max(1, tokens)
        case "constant":
            return sampled / (longest * responses)
    raise ValueError(f"unknown normalisation {normalise!r}: use response, token or constant")


def kl_to_reference(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """k3 estimate (>= 0, same shape) of KL(pi || pi_ref) at each sampled token."""
    log_ratio = (ref_logp - logp).clamp(-10, 10)
    return torch.expm1(log_ratio) - log_ratio


def _answer_mean(values: Tensor, sampled: Tensor) -> Tensor:
    """(P, G, T) values, 0 where not ``sampled``, as the mean of their answer at each of its tokens."""
    lengths = sampled.sum(dim=-1, keepdim=True).clamp(min=1)  # (P, G, 1)
    return (values.sum(dim=-1, keepdim=True) / lengths).expand_as(values)


def policy_loss(
    logp: Tensor,
    old_logp: Tensor,
    ref_logp: Tensor | None,
    advantage: Tensor,
    weight: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    beta: float = 0.04,
    ratio_of: Ratio = "token",
) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped surrogate with a KL penalty, as a sum over tokens with given weights.

    Args:
        logp, old_logp: (P, G, T) under the current policy and under the one that sampled.
        ref_logp: (P, G, T) under the frozen reference, or None with ``beta`` 0.
        advantage: (P, G).
        weight: (P, G, T) from ``token_weights``; 0 wherever a token was not sampled.
        clip_low, clip_high: w_t is clipped to [1 - clip_low, 1 + clip_high].
        beta: weight of the KL penalty.
        ratio_of: what w_t is: ``"token"``; ``"sequence"``, the answer's (deviation 4); ``"geometric"``, the
            answer's after each token's was clipped (GMPO, arXiv 2507.20673); ``"none"``: there is no ratio and
            no clip, the surrogate is log pi A (REINFORCE, RLOO, GPG).

    Returns:
        loss: scalar to minimise.
        statistics: scalar sums with the same weights: ``kl``, ``clip_fraction``; and ``ratio_max``.
    """
    sampled = weight > 0  # (P, G, T)
    log_ratio = torch.where(sampled, logp - old_logp, 0.0)  # (P, G, T)
    if ratio_of == "sequence":
        log_ratio = _answer_mean(log_ratio, sampled)  # (P, G, T)
    ratio = log_ratio.clamp(-20, 20).exp()  # (P, G, T)
    advantage = advantage[..., None]  # (P, G, 1)
    unclipped = ratio * advantage  # (P, G, T)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high) * advantage  # (P, G, T)
    surrogate = torch.minimum(unclipped, clipped)  # (P, G, T)
    if ratio_of == "geometric":
        # The minimum keeps a token's ratio or its clipped one; the product of an answer's, to the power 1/|o|.
        logit_columns = torch.where(clipped < unclipped, ratio.clamp(1 - clip_low, 1 + clip_high), ratio)  # (P, G, T)
        surrogate = _answer_mean(logit_columns.log(), sampled).exp() * advantage  # (P, G, T)
    elif ratio_of == "none":
        clipped, surrogate = unclipped, torch.where(sampled, logp, 0.0) * advantage  # (P, G, T)
    loss = -surrogate
    kl = torch.zeros_like(loss)
    if beta:
        kl = torch.where(sampled, kl_to_reference(logp, ref_logp), 0.0)  # (P, G, T)
        loss = loss + beta * kl
    with torch.no_grad():
        statistics = {
            "kl": (weight * kl).sum(),
            "clip_fraction": (weight * (clipped < unclipped)).sum(),
            "ratio_max": torch.where(sampled, ratio, 0.0).max(),
        }
    return (weight * loss).sum(), statistics
