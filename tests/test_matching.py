"""matching.py: every term against a naive loop over all assignments, and against the reference's formulas."""

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from activeo3 import matching
from activeo3.geometry import as_boxes
from activeo3.matching import box_iou, counting_terms, pairs, place_affinity

SIZE = (200, 100)
REWARDS = ("f1", "paper")


def place_match(
    places: np.ndarray, truth: np.ndarray, by: str = "distance", matched: bool = True, reward: str = "paper"
) -> float:
    """The match term of counting in a picture of SIZE."""
    return counting_terms(place_affinity(places, truth, SIZE, by), True, matched, reward)["match"]


def detection_terms(found, labels, truth, names, crowd=None, reward: str = "paper", **kwargs) -> dict[str, float]:
    """As the paper pays, unless the test says otherwise."""
    return matching.detection_terms(found, labels, matching.Truth(truth, names, crowd), reward=reward, **kwargs)


# ---------------------------------------------------------------------- naive implementations


def naive_iou(a: tuple, b: tuple) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, width) * max(0, height)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union else 0.0


def naive_best(affinity: list[list[float]]) -> list[tuple[int, int]]:
    """The assignment with the highest sum, by trying all of them."""
    rows, columns = len(affinity), len(affinity[0]) if affinity else 0
    few = min(rows, columns)
    if not few:
        return []
    if rows <= columns:
        options = [list(zip(range(rows), chosen)) for chosen in permutations(range(columns), few)]
    else:
        options = [list(zip(chosen, range(columns))) for chosen in permutations(range(rows), few)]
    return max(options, key=lambda option: sum(affinity[a][b] for a, b in option))


def naive_affinity(place: tuple, true: tuple, by: str) -> float:
    dx = (place[0] + place[2]) / 2 - (true[0] + true[2]) / 2
    dy = (place[1] + place[3]) / 2 - (true[1] + true[3]) / 2
    if by == "distance":
        return 1 - math.hypot(dx / SIZE[0], dy / SIZE[1]) / math.sqrt(2)
    return max(0.0, 1 - math.hypot(dx, dy) / max(true[2] - true[0], true[3] - true[1]))


def naive_match(places: list, truth: list, matched: bool, by: str, reward: str) -> float:
    if not places and not truth:
        return 1.0
    affinity = [[naive_affinity(place, true, by) for true in truth] for place in places]
    chosen = naive_best(affinity) if matched else [(k, k) for k in range(min(len(places), len(truth)))]
    fit = sum(affinity[a][b] for a, b in chosen)
    if reward == "paper":
        return fit / max(len(places), len(truth))
    precision, recall = fit / len(places) if places else 0.0, fit / len(truth) if truth else 0.0
    return 2 * precision * recall / (precision + recall) if fit else 0.0


def naive_detection(
    boxes: list, labels: list, truth: list, names: list, matched: bool, reward: str
) -> dict[str, float]:
    if not truth:
        silent = float(not boxes)
        return {"location": silent, "class": silent, "number": silent, "missing": 0.0}
    overlap = [[naive_iou(box, true) for true in truth] for box in boxes]
    named = 2 if reward == "paper" else 1 + 1e-6
    affinity = [
        [overlap[a][b] * (named if labels[a] == names[b] else 1) for b in range(len(truth))] for a in range(len(boxes))
    ]
    chosen = naive_best(affinity) if matched else [(k, k) for k in range(min(len(boxes), len(truth)))]
    chosen = [(a, b) for a, b in chosen if overlap[a][b] > 0]
    hits = sum(labels[a] == names[b] and overlap[a][b] >= 0.5 for a, b in chosen)

    def f1(right: float) -> float:
        precision, recall = right / len(boxes) if boxes else 0.0, right / len(truth)
        return 2 * precision * recall / (precision + recall) if right else 0.0

    if reward == "f1":
        named_well = sum(overlap[a][b] for a, b in chosen if labels[a] == names[b])
        location = f1(sum(overlap[a][b] for a, b in chosen))
        return {
            "location": location,
            "class": f1(named_well),
            "number": f1(hits),
            "missing": -(len(truth) - hits) / len(truth),
        }
    return {
        "location": sum(overlap[a][b] for a, b in chosen) / len(chosen) if chosen else 0.0,
        "class": sum(labels[a] == names[b] for a, b in chosen) / len(chosen) if chosen else 0.0,
        "number": f1(hits),
        "missing": -sum(all(b != column for _, column in chosen) for b in range(len(truth))) / len(truth),
    }


# Odd sizes and places, so that no two assignments tie.
corner = st.floats(0, 80, allow_nan=False).map(lambda v: round(v, 3))
side = st.floats(5, 60, allow_nan=False).map(lambda v: round(v, 3))
box = st.tuples(corner, corner, side, side).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
boxes = st.lists(box, max_size=4, unique=True)


@given(boxes, boxes, st.booleans(), st.sampled_from(("near", "distance")), st.sampled_from(REWARDS))
def test_places_against_all_assignments(places: list, truth: list, matched: bool, by: str, reward: str) -> None:
    ours = place_match(as_boxes(places), as_boxes(truth), by, matched, reward)
    assert ours == pytest.approx(naive_match(places, truth, matched, by, reward), abs=1e-9)


def random_picture(seed: int) -> tuple[list, list, list, list]:
    """Up to five true things with names, and as many predictions, most of them near a true thing."""
    rng = np.random.default_rng(seed)

    def near(thing: tuple) -> tuple:
        x1, y1, x2, y2 = np.array(thing) + rng.normal(0, 4, 4)
        return (min(x1, x2 - 1), min(y1, y2 - 1), x2, y2)

    corners, sides = rng.uniform(0, 80, (rng.integers(0, 6), 2)), rng.uniform(8, 40, (5, 2))
    truth = [(x, y, x + w, y + h) for (x, y), (w, h) in zip(corners.tolist(), sides.tolist())]
    names = rng.choice(["cup", "dog"], len(truth)).tolist()
    spare = [(x, y, x + 20, y + 20) for x, y in rng.uniform(0, 100, (3, 2)).tolist()]
    found = [near(thing) for thing in truth + truth + spare]
    found = [found[k] for k in rng.permutation(len(found))[: rng.integers(0, 6)]]
    return found, rng.choice(["cup", "dog"], len(found)).tolist(), truth, names


@pytest.mark.parametrize("reward", REWARDS)
@pytest.mark.parametrize("matched", [True, False])
def test_detection_against_all_assignments(matched: bool, reward: str) -> None:
    seen = set()
    for seed in range(300):
        found, labels, truth, names = random_picture(seed)
        ours = detection_terms(as_boxes(found), labels, as_boxes(truth), names, matched=matched, reward=reward)
        naive = naive_detection(found, labels, truth, names, matched, reward)
        assert ours == pytest.approx(naive, abs=1e-9), seed
        seen.add(round(ours["number"], 2))
    assert len(seen) > 5  # a test on pictures that all score alike would show nothing


# ---------------------------------------------------------------------- grounding


@given(box, box)
def test_iou_and_its_square(found: tuple, truth: tuple) -> None:
    iou = naive_iou(found, truth)
    assert box_iou(as_boxes([found]), as_boxes([truth])) == pytest.approx(iou)
    assert box_iou(as_boxes([found]), as_boxes([truth]), power=2) == pytest.approx(iou * iou)


def test_a_box_without_area_divides_by_nothing() -> None:
    """The released reward has no guard: the IoU of two empty boxes is 0 / 0 there."""
    empty = as_boxes([[5, 5, 5, 5]])
    assert box_iou(empty, empty, power=2) == box_iou(empty, as_boxes([[0, 0, 9, 9]])) == 0.0
    assert box_iou(as_boxes([]), as_boxes([[0, 0, 9, 9]])) == 0.0


# ---------------------------------------------------------------------- counting


def test_a_pair_scores_as_in_the_released_predecessor() -> None:
    """1 - d / (1000 sqrt 2) of points on its 0-1000 grid, worked by hand: (0, 0) to (300, 400) is 500 apart."""
    affinity = place_affinity(as_boxes([[0, 0, 0, 0]]), as_boxes([[60, 40, 60, 40]]), SIZE, "distance")
    assert affinity[0, 0] == pytest.approx(1 - 500 / (1000 * math.sqrt(2)))
    corners = place_affinity(as_boxes([[0, 0, 0, 0]]), as_boxes([[200, 100, 200, 100]]), SIZE, "distance")
    assert corners[0, 0] == pytest.approx(0.0)


def test_missing_and_surplus_places_cost_alike() -> None:
    two, four = as_boxes([[10, 10, 20, 20], [50, 50, 60, 60]]), as_boxes([[10, 10, 20, 20], [50, 50, 60, 60]] * 2)
    for reward, half in (("paper", 1 / 2), ("f1", 2 / 3)):
        assert place_match(two, two, reward=reward) == 1.0
        assert place_match(two, four, reward=reward) == place_match(four, two, reward=reward) == pytest.approx(half)
        assert place_match(two[:0], two, reward=reward) == place_match(two, two[:0], reward=reward) == 0.0


def test_the_order_matters_only_without_matching() -> None:
    truth = as_boxes([[10, 10, 20, 20], [150, 60, 160, 70], [50, 80, 60, 90]])
    turned = truth[[2, 0, 1]]
    assert place_match(turned, truth) == 1.0 > place_match(turned, truth, matched=False)
    names = ["cup", "dog", "cup"]
    assert detection_terms(turned, ["cup", "cup", "dog"], truth, names)["number"] == 1.0
    assert detection_terms(turned, ["cup", "cup", "dog"], truth, names, matched=False)["number"] == 0.0


def test_inside_in_both_directions() -> None:
    things, point_in, point_out = (
        as_boxes([[10, 10, 20, 20]]),
        as_boxes([[20, 10, 20, 10]]),
        as_boxes([[21, 10, 21, 10]]),
    )
    assert place_match(point_in, things, by="inside") == 1.0  # a point in a true box, border included
    assert place_match(point_out, things, by="inside") == 0.0
    assert place_match(things, point_in, by="inside") == 1.0  # a true point in a box
    assert place_match(things, point_out, by="inside") == 0.0
    whole = as_boxes([[0, 0, 200, 100]])
    assert place_match(whole, things, by="inside") == 0.0  # its centre is elsewhere
    with pytest.raises(ValueError, match="'far'"):
        place_match(things, things, by="far")


def test_a_place_is_near_a_thing_within_its_size() -> None:
    """A box of 30 x 10: its reach is 30. A point: a tenth of the diagonal of a picture of 300 x 400, 50."""
    box, point = as_boxes([[10, 10, 40, 20]]), as_boxes([[100, 100, 100, 100]])
    for away, fit in ((0, 1.0), (15, 0.5), (30, 0.0), (60, 0.0)):
        assert place_affinity(as_boxes([[25 + away, 15, 25 + away, 15]]), box, SIZE)[0, 0] == pytest.approx(fit)
    for away, fit in ((0, 1.0), (25, 0.5), (50, 0.0)):
        assert place_affinity(as_boxes([[100, 100 + away, 100, 100 + away]]), point, (300, 400))[0, 0] == pytest.approx(
            fit
        )


def test_a_right_number_is_paid_as_far_as_the_places_are_right() -> None:
    half = np.array([[1.0, 0.0], [0.0, 0.0]])
    assert counting_terms(half, True) == {"match": 0.5, "count": 0.5} and counting_terms(half, False) == {
        "match": 0.5,
        "count": 0,
    }
    assert counting_terms(half, True, reward="paper") == {"match": 0.5, "count": 1.0}
    assert (
        counting_terms(np.ones((3, 1)), False) == {"match": 0.5, "count": 0}
        and counting_terms(np.ones((0, 0)), True)["count"] == 1
    )
    blind = counting_terms(np.zeros((2, 2)), True)
    assert sum(blind.values()) <= 2 * blind["match"]  # by construction


# ---------------------------------------------------------------------- detection

CUP, DOG, CAR = [0, 0, 40, 40], [50, 0, 90, 40], [0, 50, 40, 90]
TRUE, NAMES = as_boxes([CUP, DOG, CAR]), ["cup", "dog", "car"]
TABLE = {
    # what is said: (boxes, labels), (location, class, number, missing) of the paper, and of ours
    "all": (([CUP, DOG, CAR], ["cup", "dog", "car"]), (1, 1, 1, 0), (1, 1, 1, 0)),
    "in another order": (([CAR, CUP, DOG], ["car", "cup", "dog"]), (1, 1, 1, 0), (1, 1, 1, 0)),
    "names as they are written": (([CUP, DOG, CAR], [" Cup", "DOG", "car "]), (1, 1, 1, 0), (1, 1, 1, 0)),
    "one of three": (([CUP], ["cup"]), (1, 1, 0.5, -2 / 3), (0.5, 0.5, 0.5, -2 / 3)),
    "two of three": (([CUP, DOG], ["cup", "dog"]), (1, 1, 0.8, -1 / 3), (0.8, 0.8, 0.8, -1 / 3)),
    "a wrong name": (([CUP, DOG, CAR], ["cup", "dog", "bus"]), (1, 2 / 3, 2 / 3, 0), (1, 2 / 3, 2 / 3, -1 / 3)),
    "one thing three times": (([CUP] * 3, ["cup"] * 3), (1, 1, 1 / 3, -2 / 3), (1 / 3, 1 / 3, 1 / 3, -2 / 3)),
    "one thing, three names": (
        ([CUP] * 3, ["dog", "car", "cup"]),
        (1, 1, 1 / 3, -2 / 3),
        (1 / 3, 1 / 3, 1 / 3, -2 / 3),
    ),
    "half a box": (([[0, 0, 40, 20]], ["cup"]), (0.5, 1, 0.5, -2 / 3), (0.25, 0.25, 0.5, -2 / 3)),
    "less than half a box": (([[0, 0, 40, 19]], ["cup"]), (0.475, 1, 0, -2 / 3), (0.2375, 0.2375, 0, -1)),
    "beside everything": (([[100, 0, 120, 20]], ["cup"]), (0, 0, 0, -1), (0, 0, 0, -1)),
    "nothing": (([], []), (0, 0, 0, -1), (0, 0, 0, -1)),
}


@pytest.mark.parametrize("said, paper, ours", TABLE.values(), ids=TABLE.keys())
def test_the_terms_of_detection(said: tuple, paper: tuple, ours: tuple) -> None:
    for reward, wanted in (("paper", paper), ("f1", ours)):
        terms = detection_terms(as_boxes(said[0]), said[1], TRUE, NAMES, reward=reward)
        assert list(terms.values()) == pytest.approx(list(wanted))
        assert tuple(terms) == ("location", "class", "number", "missing")


def test_every_name_for_every_box_is_worth_little() -> None:
    """All that is said is paid for: 36 names are one right thing in 36 said."""
    boxes = as_boxes([box for box in TRUE.tolist() for _ in range(36)])
    names = ["cup", "dog", "car", *(f"thing {k}" for k in range(33))] * 3
    terms, paper = (detection_terms(boxes, names, TRUE, NAMES, reward=reward) for reward in REWARDS)
    assert terms == pytest.approx({"location": 2 / 37, "class": 2 / 37, "number": 2 / 37, "missing": 0})
    assert paper == pytest.approx({"location": 1, "class": 1, "number": 2 / 37, "missing": 0})


def test_place_comes_before_name() -> None:
    """The box that fits best is the thing's, whatever it is called; in the paper's affinity the name counts as much."""
    found = as_boxes([[0, 0, 40, 39], [0, 0, 40, 30]])
    terms = detection_terms(found, ["dog", "cup"], as_boxes([CUP]), ["cup"], reward="f1")
    assert (terms["location"], terms["class"], terms["number"], terms["missing"]) == (
        pytest.approx(2 * 0.975 / 3),
        0,
        0,
        -1,
    )
    for names in (["dog", "cup"], ["cup", "dog"]):  # of boxes that fit alike, the right name decides
        assert detection_terms(as_boxes([CUP, CUP]), names, as_boxes([CUP]), ["cup"], reward="f1")[
            "class"
        ] == pytest.approx(2 / 3)


def test_the_right_name_decides_between_two_boxes_of_one_thing() -> None:
    found = as_boxes([[0, 0, 40, 39], [0, 0, 40, 30]])
    terms = detection_terms(found, ["dog", "cup"], as_boxes([CUP]), ["cup"])
    assert (terms["location"], terms["class"]) == (pytest.approx(0.75), 1.0)  # 1.5 against 0.975
    terms = detection_terms(found, ["dog", "cup"], as_boxes([[0, 0, 40, 100]]), ["dog"])
    assert (terms["location"], terms["class"]) == (pytest.approx(0.39), 1.0)


@pytest.mark.parametrize("reward", REWARDS)
def test_a_picture_without_things(reward: str) -> None:
    empty = as_boxes([])
    assert detection_terms(empty, [], empty, [], reward=reward) == {
        "location": 1,
        "class": 1,
        "number": 1,
        "missing": 0,
    }
    assert detection_terms(TRUE, NAMES, empty, [], reward=reward) == {
        "location": 0,
        "class": 0,
        "number": 0,
        "missing": 0,
    }


@pytest.mark.parametrize("reward", REWARDS)
def test_crowds_are_neither_asked_for_nor_punished(reward: str) -> None:
    crowd = np.array([False, False, True])
    for boxes, labels in (([CUP, DOG], ["cup", "dog"]), ([CUP, DOG, CAR], NAMES), ([CUP, DOG, [5, 55, 20, 80]], NAMES)):
        terms = detection_terms(as_boxes(boxes), labels, TRUE, NAMES, crowd, reward=reward)
        assert list(terms.values()) == [1, 1, 1, 0]
    terms = detection_terms(as_boxes([CUP, DOG, [100, 0, 120, 20]]), NAMES, TRUE, NAMES, crowd, reward=reward)
    assert terms["number"] == pytest.approx(4 / 5)  # beside the crowd: a false one


def test_what_is_forgiven_is_right_or_nothing() -> None:
    """LVIS: a detection of a category that was not checked, or was boxed in part, finds things of its own name or
    nothing."""
    boxes, labels = as_boxes([CUP, DOG, CAR, [200, 0, 220, 20]]), [*NAMES, "zebra"]
    full = {"location": 1, "class": 1, "number": 1, "missing": 0}
    assert detection_terms(boxes, labels, TRUE, NAMES)["number"] == pytest.approx(6 / 7)
    assert detection_terms(boxes, labels, TRUE, NAMES, forgiven=np.array([False, False, False, True])) == full
    assert detection_terms(boxes, labels, TRUE, NAMES, forgiven=np.ones(4, dtype=bool)) == full
    # Over a cup, "zebra" is a pair of the wrong name, unless nobody looked for zebras: then the cup is missing.
    over = as_boxes([CUP, DOG, CAR])
    wrong = detection_terms(over, ["zebra", *NAMES[1:]], TRUE, NAMES)
    assert (wrong["class"], wrong["missing"]) == (pytest.approx(2 / 3), 0)
    unknown = detection_terms(over, ["zebra", *NAMES[1:]], TRUE, NAMES, forgiven=np.array([True, False, False]))
    assert (unknown["class"], unknown["missing"], unknown["number"]) == (1, pytest.approx(-1 / 3), pytest.approx(4 / 5))
    assert detection_terms(boxes[3:], ["zebra"], as_boxes([]), [], forgiven=np.array([True])) == full


@given(st.integers(0, 10_000))
def test_nothing_is_said_for_free(seed: int) -> None:
    """Every box beside all things lowers what was earned for others, whatever its name; the paper pays no less for
    it."""
    found, labels, truth, names = random_picture(seed)
    assume(truth)
    for reward in REWARDS:
        earned = []
        for wrong in range(3):
            boxes = [*found, *[(500, 500, 520, 520)] * wrong]
            earned.append(
                detection_terms(as_boxes(boxes), [*labels, *["cup"] * wrong], as_boxes(truth), names, reward=reward)
            )
        for name in ("location", "class", "number"):
            less, *least = (terms[name] for terms in earned)
            falls = less > least[0] > least[1] or less == 0
            assert falls if reward == "f1" or name == "number" else less == least[0] == least[1]


@given(st.integers(0, 10_000), st.randoms())
def test_the_order_of_detections_does_not_matter(seed: int, random) -> None:
    found, labels, truth, names = random_picture(seed)
    order = random.sample(range(len(found)), len(found))
    terms = detection_terms(as_boxes(found), labels, as_boxes(truth), names)
    turned = detection_terms(as_boxes([found[k] for k in order]), [labels[k] for k in order], as_boxes(truth), names)
    assert terms == pytest.approx(turned, abs=1e-9)


def test_pairs_of_unequal_numbers() -> None:
    for shape in ((0, 0), (0, 3), (3, 0), (2, 5), (5, 2)):
        for matched in (True, False):
            rows, columns = pairs(np.random.default_rng(0).random(shape), matched)
            assert len(rows) == len(columns) == min(shape) == len(set(rows.tolist())) == len(set(columns.tolist()))
