"""prompts.py: every prompt names what is looked for and asks for all that is scored."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activeo3 import prompts
from activeo3.answer_parsing import read_regions
from activeo3.prompts import episode_prompt, segmentation_prompt, sensing_prompt, task_prompt, zooms_turn
from activeo3.types import ParsedAnswer
from activeo3.zoom_calls import Call, ParsedTurn, read_turn

BOX = '{"bbox_2d": [1, 2, 30, 40]}'
ONE = ((1.0, 2.0, 30.0, 40.0),)


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
    assert read_regions(shown) == ParsedAnswer(ONE, ("",))


@pytest.mark.parametrize("wording", prompts.WORDINGS)
def test_errors_of_a_mask_are_asked_for_in_an_exact_number(wording: str) -> None:
    assert "3 regions" in segmentation_prompt("boat", wording) and "up to" not in segmentation_prompt("boat", wording)
    assert "one region" in segmentation_prompt("boat", wording, regions=1)
    text = segmentation_prompt("boat", "paper")
    for wanted in (
        "exactly 3 regions",
        "translucent green mask",
        '{"bbox_2d": [x1, y1, x2, y2], "label": "boat segmentation error"}',
    ):
        assert wanted in text


def test_the_other_systems_call_is_asked_for_and_read() -> None:
    """What the prompt shows is its form, in which every call is read; but nobody zooms by copying the prompt."""
    for at_once in (1, 3):
        text = episode_prompt("What is it?", "zoom_roi", 3, at_once=at_once, least=1, notes=True)
        assert "What is it?" in text and "bbox_2d" not in text and "at least once" in text and "write down what" in text
        shown = text[text.index("<zoom_roi") : text.index("/>") + 2]
        assert read_turn(shown) == ParsedTurn((None,))
        for edge, value in zip(("left", "top", "right", "bottom"), ("0.1", "0.25", "0.5", "1")):
            shown = shown.replace(f'"{edge}"', f'"{value}"')
        assert shown == prompts.zoom_roi_call([0.1, 0.25, 0.5, 1.0]) and read_turn(
            f"<think>so {shown}</think>"
        ).call == Call((0.1, 0.25, 0.5, 1.0), True)
    assert episode_prompt("Why?", "zoom_roi", 0) == episode_prompt("Why?", "paper", 0)


edges = st.floats(0, 1)


@given(
    st.lists(st.tuples(edges, edges, edges, edges), min_size=1, max_size=3), st.sampled_from(prompts.EPISODE_WORDINGS)
)
def test_a_well_formed_turn_is_read_back_in_every_notation(boxes: list[tuple[float, ...]], wording: str) -> None:
    rounded = [[round(1000 * edge) for edge in box] for box in boxes]
    said = read_turn(zooms_turn(" there", rounded, wording, listed=True))
    scale = 1000 if wording == "zoom_roi" else 1
    assert [call.box for call in said.calls] == [
        tuple(edge / scale for edge in box) for box in rounded
    ] and said.answer is None


def test_an_unknown_wording_is_an_error() -> None:
    for ask in (sensing_prompt, task_prompt, segmentation_prompt):
        with pytest.raises(KeyError):
            ask("boat", "long")
