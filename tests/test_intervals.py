"""intervals.py: the bootstrap over pictures by a naive loop; its ends are values that the number can have."""

import math

import numpy as np
import pytest
from coco_reference import answer, question, random_pairs
from hypothesis import given, settings
from hypothesis import strategies as st

from activeo3.intervals import Metric, bootstrap_interval, bootstrap_total, interval
from activeo3.metrics import detection_metrics, evaluate_detections


def test_interval_of_a_mean_is_the_naive_bootstrap_over_pictures() -> None:
    rng = np.random.default_rng(1)
    pictures = np.repeat(np.arange(60), 3)
    # The pictures differ much, the three questions about one picture little.
    values = rng.normal(0, 1, 60)[pictures] + rng.normal(0, 0.1, 180)
    ours = bootstrap_interval(values, pictures, resamples=2000)
    means = []
    for _ in range(2000):
        drawn = rng.integers(0, 60, 60)
        means.append(np.concatenate([values[pictures == k] for k in drawn]).mean())
    low, high = np.percentile(means, [2.5, 97.5])
    assert ours.value == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.03)
    alone = bootstrap_interval(values, list(range(180)), resamples=2000)
    assert ours.high - ours.low > 1.4 * (alone.high - alone.low)


def test_intervals_are_seeded_hold_their_value_and_stay_in_range() -> None:
    pairs = random_pairs(3, count=60, queries=12)
    rows = evaluate_detections(*pairs, resamples=200, seed=1)
    assert rows == evaluate_detections(*pairs, resamples=200, seed=1)
    assert rows != evaluate_detections(*pairs, resamples=200, seed=2)
    for name, row in rows.items():
        assert 0 <= row.low <= row.value <= row.high <= 1, name
    values = {name: row.value for name, row in rows.items()}
    assert values == pytest.approx(detection_metrics(*pairs))
    assert bootstrap_interval([0.2], [1]) == pytest.approx(Metric(0.2, 0.2, 0.2))
    assert all(map(math.isnan, bootstrap_interval([math.nan], [1])))
    assert all(map(math.isnan, bootstrap_interval([], [])))
    with pytest.raises(ValueError, match="2 values but 1 image ids"):
        bootstrap_interval([1.0, 2.0], [1])


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from([0.0, 0.0, 0.25, 1.0, 3.0]), min_size=1, max_size=6), st.integers(2, 40), st.integers(0, 99),
)  # fmt: skip
def test_no_end_is_impossible(values: list[float], resamples: int, seed: int) -> None:
    """Recalls, IoUs and errors of a handful of pictures: with few of them ends used to be negative, or above 1."""
    found = bootstrap_interval(values, range(len(values)), resamples, seed)
    assert min(values) <= found.low <= found.value <= found.high <= max(values)
    strata = ["a", "b"] * 3
    total = bootstrap_total(values, range(len(values)), strata[: len(values)], resamples, seed)
    parts = [values[::2], values[1::2] or [0.0]]
    # A resample may have nothing of one stratum; if none has all, there is no interval.
    assert (
        math.isnan(total.low)
        or sum(map(min, parts)) - 1e-12 <= total.low <= total.value <= total.high <= sum(map(max, parts)) + 1e-12
    )


def test_no_end_of_an_average_precision_is_impossible() -> None:
    """One query, a few pictures, hits near both ends of the ranking: high numbers with a large bias."""
    box, wrong = [0, 0, 10, 10], [50, 50, 60, 60]
    for answers in ([[box], [wrong, box], [box]], [[wrong] * 9 + [box], [], []], [[box], [], [box, wrong]]):
        examples = [question([box], f"e{k}", image_id=k) for k in range(3)]
        for name, row in evaluate_detections(examples, [answer(boxes) for boxes in answers], resamples=50).items():
            assert math.isnan(row.value) or 0 <= row.low <= row.value <= row.high <= 1, name


def test_a_biased_bootstrap_is_moved_by_its_bias_in_log_odds() -> None:
    """Resamples that read too high by a factor of the odds give the interval of those that do not."""
    odds = np.exp(np.random.default_rng(0).normal(0, 0.3, 4000))
    fair, high = odds / (1 + odds), 2 * odds / (1 + 2 * odds)
    value = fair.mean()
    right = interval(np.concatenate([[value], fair]), 0, 1)
    ours = interval(np.concatenate([[value], high]), 0, 1)
    assert (right.low, right.high) == pytest.approx(tuple(np.percentile(fair, [2.5, 97.5])), abs=1e-6)
    assert (ours.low, ours.high) == pytest.approx((right.low, right.high), abs=0.01)
    assert np.percentile(high, 2.5) > value  # the plain interval would miss the very number


@pytest.mark.parametrize("lowest, highest", [(0, 1), (-1, 1), (2, 2800)])
def test_the_interval_of_a_range_is_that_of_another_one_stretched(lowest: float, highest: float) -> None:
    shares = np.random.default_rng(0).uniform(0.2, 0.9, 100)
    one, other = interval(shares, 0, 1), interval(lowest + (highest - lowest) * shares, lowest, highest)
    assert other == pytest.approx(tuple(lowest + (highest - lowest) * end for end in one))


def test_about_95_of_100_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        found = bootstrap_interval((rng.random(60) < 0.7).astype(float), range(60), 200, seed=trial)
        held += found.low <= 0.7 <= found.high
    assert 180 <= held <= 199
