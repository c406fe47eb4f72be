"""prompts.py: every prompt names what is looked for and asks for all that is scored."""

import doctest

import pytest

from activeo3 import prompts
from activeo3.answer_parsing import read_regions
from activeo3.prompts import segmentation_prompt, sensing_prompt, task_prompt
from activeo3.schema import Action

BOX = '{"bbox_2d": [1, 2, 30, 40]}'
ONE = ((1.0, 2.0, 30.0, 40.0),)


def test_the_examples_in_the_docstrings_hold() -> None:
    results = doctest.testmod(prompts)
    assert results.attempted > 0 and results.failed == 0


# ---------------------------------------------------------------------- what is shown


@pytest.mark.parametrize("wording", prompts.WORDINGS)
@pytest.mark.parametrize("query", ["red star", "person's {hat}", 'the "big" one', "Größe 漢字"])
def test_a_prompt_names_what_is_looked_for(wording: str, query: str) -> None:
    assert query in sensing_prompt(query, wording)
    assert query in task_prompt(query, wording)
    assert query in segmentation_prompt(query, wording)
    assert len({ask(query, wording) for ask in (sensing_prompt, task_prompt, segmentation_prompt)}) == 3


def test_the_paper_wording_asks_for_everything_that_is_scored() -> None:
    text = sensing_prompt("boat", "paper", regions=5)
    for wanted in ("up to 5 regions", '{"bbox_2d": [x1, y1, x2, y2], "label"', "JSON", "overlap"):
        assert wanted in text
    layout = text[text.rindex("<think>") :]  # the layout it shows has the tags of an answer that is accepted
    shown = layout.replace("the JSON list", f"[{BOX}]")
    assert read_regions(shown) == Action(ONE, ("",))


@pytest.mark.parametrize("wording", prompts.WORDINGS)
def test_errors_of_a_mask_are_asked_for_in_an_exact_number(wording: str) -> None:
    assert "3 regions" in segmentation_prompt("boat", wording) and "up to" not in segmentation_prompt("boat", wording)
    assert "one region" in segmentation_prompt("boat", wording, regions=1)
    text = segmentation_prompt("boat", "paper")
    for wanted in ("exactly 3 regions", "translucent green mask", '{"bbox_2d": [x1, y1, x2, y2], "label": "boat segmentation error"}'):
        assert wanted in text


def test_an_unknown_wording_is_an_error() -> None:
    for ask in (sensing_prompt, task_prompt, segmentation_prompt):
        with pytest.raises(KeyError):
            ask("boat", "long")
