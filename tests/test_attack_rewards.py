"""tests/attack/rewards.py at small size: no blind answer earns what honest ones do, and the search finds what is there
to find."""

from random import Random

import pytest
from attack.reward_search import Attack, Item, climb, fault, shifted
from attack.rewards import ATTACKS, HACKED

from activeo3.geometry import as_boxes, iou


@pytest.mark.parametrize("name", ATTACKS)
def test_honest_answers_earn_more_than_blind_ones(name: str) -> None:
    attack = ATTACKS[name]()
    assert fault(attack, climb(attack, 20, 0)) is None


@pytest.mark.parametrize("name", HACKED)
def test_the_hacks_of_the_papers_formulas_are_found(name: str) -> None:
    """So the search can find something, and the formulas can still be chosen."""
    attack = HACKED[name]()
    found = climb(attack, 20, 0)
    assert fault(attack, found), f"{found.reward} {attack.honest}"


def test_the_search_climbs() -> None:
    """A hill of one answer in ten thousand is found from afar."""
    change = lambda place, random: (place[0] + random.randint(-3, 3), place[1] + random.randint(-3, 3))  # noqa: E731
    attack = Attack(
        "hill", [(0, 0), (90, 0)], change, lambda place: -abs(place[0] - 63) - abs(place[1] - 41), {"the top": 0.0}
    )
    found = climb(attack, 400, 0)
    assert found == ((63, 41), 0, 402) and found == climb(attack, 400, 0) and fault(attack, found)


def test_an_honest_box_has_the_stated_iou() -> None:
    random = Random(0)
    for _ in range(50):
        x, y = random.randint(0, 700), random.randint(0, 700)
        box = (x, y, x + random.randint(60, 300), y + random.randint(60, 300))
        moved = shifted(Item(box)).box
        assert iou(as_boxes([box]), as_boxes([moved]))[0, 0] == pytest.approx(0.7, abs=0.02)
        assert min(moved) >= 0 and max(moved) <= 1000
