"""zoom_calls.py: what counts as a request to look closer, near misses included, and where nested looks end up."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import painted

from activeo3.geometry import Frame, as_boxes, crop
from activeo3.prompts import boxes_answer
from activeo3.zoom_calls import STATUSES, Call, Limits, ParsedTurn, check_zoom, read_turn

BOX = (0.2, 0.1, 0.5, 0.4)
SHARES, PIXELS = Call(BOX, True), Call((20.0, 10.0, 50.0, 40.0), False)
TAG = '<zoom_roi x0="0.2" y0="0.1" x1="0.5" y1="0.4" />'


CALLS: dict[str, Call | None] = {
    # what is said: the call, or None for a zoom that cannot be read
    TAG: SHARES,
    "<think>there</think>" + TAG: SHARES,
    "<think>there " + TAG + "</think>": SHARES,
    "<ZOOM_ROI X0='0.2' Y0='0.1' X1='0.5' Y1='0.4'>": SHARES,
    '<zoom_roi  y1 = " .4" x1="0.50" y0="1e-1" x0="+0.2"/>': SHARES,
    '<zoom_roi x0="0.2" y0="0.1" x1="0.5" y1="0.4" label="plate"/ >': SHARES,
    '<zoom_roi\nx0="20"\ny0="10"\nx1="50"\ny1="40"/>': PIXELS,
    '<zoom_roi x="20" y="10" w="30" h="30"/>': PIXELS,
    '<zoom_roi x="0.25" y="0.125" w="0.5" h="0.25"/>': Call((0.25, 0.125, 0.75, 0.375), True),
    '<zoom_roi x0="1" y0="0" x1="2" y1="1" normalized="false"/>': Call((1.0, 0.0, 2.0, 1.0), False),
    '<zoom_roi x0="20" y0="10" x1="50" y1="40" normalized="true"/>': Call(PIXELS.box, True),
    '<zoom_roi x0="0.2" y0="0.1" x1="1.2" y1="0.4"/>': Call((0.2, 0.1, 1.2, 0.4), True),  # outside, not tiny
    '{"bbox_2d": [20, 10, 50, 40]}': PIXELS,
    'I look there: {"bbox_2d": [0.2, 0.1, 0.5, 0.4], "label": "plate"} now.': SHARES,
    '```json\n[{"bbox_2d": [20, 10, 50, 40]}, {"bbox_2d": [1, 2, 3, 4]}]\n```': PIXELS,
    '<tool_call>{"name": "zoom", "arguments": {"bbox_2d": [20, 10, 50, 40]}}</tool_call>': PIXELS,
    'set {a, b} {"x": [1]} {"y": {"bbox_2d": [20, 10, 50, 40]}}': PIXELS,
    '{"bbox_2d": [20, 10, 50, 40]}' + TAG: PIXELS,  # the first of both
    TAG + '{"bbox_2d": [20, 10, 50, 40]}': SHARES,
    # near misses
    '<zoom_roi x0="0.2" y0="0.1" x1="0.5" />': None,
    "<zoom_roi x0=0.2 y0=0.1 x1=0.5 y1=0.4 />": None,
    '<zoom_roi x0="0.2" y0="0.1" x1="0.5" y1="0.4"': None,
    '<zoom_roi x0="0.2"y0="0.1" x1="0.5" y1="0.4"/>': None,
    '<zoom_roi x0="left" y0="0.1" x1="0.5" y1="0.4"/>': None,
    '<zoom_roi x0="nan" y0="0.1" x1="0.5" y1="0.4"/>': None,
    '<zoom_roi x0="0.2" y0="0.1" x1="1e309" y1="0.4"/>': None,
    '<zoom_roi x0="0,2" y0="0,1" x1="0,5" y1="0,4"/>': None,
    '<zoom_roi x0="0.2" y0="0.1" w="0.5" h="0.4"/>': None,
    "<zoom_roi/>": None,
    "<zoom_roi": None,
    '{"bbox_2d": [20, 10, 50]}': None,
    '{"bbox_2d": [20, 10, 50, "40"]}': None,
    '{"bbox_2d": [20, 10, 50, NaN]}': None,
    '{"bbox_2d": [true, 0, 1, 1]}': None,
    '{"bbox_2d": [20, 10, 50, 40]': None,
    '{"bbox_2d": (20, 10, 50, 40)}': None,
    '{"bbox_2d": "20, 10, 50, 40"}': None,
    "[" * 3000 + '{"bbox_2d": [20, 10, 50, 40]': None,
}


@pytest.mark.parametrize("text", CALLS, ids=range(len(CALLS)))
def test_zooms_and_near_misses(text: str) -> None:
    said = read_turn(text)
    assert said.zooms and said.call == CALLS[text] and said.malformed == (CALLS[text] is None) and said.answer is None


OTHER = Call((1.0, 2.0, 3.0, 4.0), False)
ALL_CALLS: dict[str, tuple[Call | None, ...]] = {
    # what is said: all of its calls, None for one that cannot be read
    boxes_answer([(20, 10, 50, 40), (1, 2, 3, 4)]): (PIXELS, OTHER),
    TAG + " and " + TAG: (SHARES, SHARES),
    '{"bbox_2d": [20, 10, 50, 40]} {"bbox_2d": [1, 2, 3, 4]}' + TAG + '[{"bbox_2d": [1, 2, 3, 4]}]': (
        PIXELS,
        OTHER,
        SHARES,
        OTHER,
    ),
    "<think>" + TAG + '{"bbox_2d": [1, 2, 3, 4]}</think>{"bbox_2d": [20, 10, 50, 40]}': (SHARES, PIXELS),
    '{"arguments": {"first": {"bbox_2d": [20, 10, 50, 40]}, "rest": [{"bbox_2d": [1, 2, 3, 4]}]}}': (PIXELS, OTHER),
    '[{"bbox_2d": [20, 10, 50, 40]}, {"bbox_2d": [1, 2, 3]}, {"bbox_2d": [1, 2, 3, 4]}]': (PIXELS, None, OTHER),
    '[{"bbox_2d": [20, 10, 50, 40]}, {"bbox_2d": [1, 2, 3, 4]}, {"bbox_2d": [1, 2': (PIXELS, OTHER, None),
    '[{"bbox_2d": [20, 10, 50, 40}, {"bbox_2d": [1, 2, 3, 4]}]': (None, OTHER),
    "<zoom_roi/>" + TAG + "<zoom_roi": (None, SHARES, None),
    TAG + "<answer>" + TAG + "</answer>" + '{"bbox_2d": [1, 2, 3, 4]}': (SHARES, OTHER),
    "nothing": (),
}


@pytest.mark.parametrize("text", ALL_CALLS, ids=range(len(ALL_CALLS)))
def test_a_turn_is_read_into_all_of_its_calls_in_order(text: str) -> None:
    said = read_turn(text)
    assert said.calls == ALL_CALLS[text] and said.zooms == bool(said.calls)
    assert said.call == (said.calls or (None,))[0] and said.malformed == (said.zooms and said.calls[0] is None)


REJECTED = '{"bbox_2d": [1, 2, 3, 4]}'


@pytest.mark.parametrize(
    "thought",
    [f"{REJECTED} no.</think>", f"<think>{REJECTED} no.</think>", f"<think>a</think><think>{REJECTED}</think>"],
)
def test_a_box_that_a_thought_rejects_is_no_zoom(thought: str) -> None:
    """Also where the chat template has begun the thought, and its words are not in front of what was sampled."""
    assert read_turn(thought + '{"bbox_2d": [20, 10, 50, 40]}') == ParsedTurn((PIXELS,))
    assert read_turn(thought + "<answer>42</answer>") == ParsedTurn(answer="42")
    assert read_turn(thought) == ParsedTurn()


def test_a_tag_in_a_thought_is_a_zoom_whoever_began_it() -> None:
    assert read_turn(TAG + "</think>") == read_turn("<think>" + TAG + "</think>") == ParsedTurn((SHARES,))


NO_ZOOM: dict[str, str | None] = {
    # what is said: the answer
    "": None,
    "I would zoom in.": None,
    "zoom_roi x0=0.1": None,
    "< zoom_roi x0='0.1'>": None,
    "<zoom_rois x0='0.2' y0='0.1' x1='0.5' y1='0.4'/>": None,
    '<think>{"bbox_2d": [20, 10, 50, 40]}</think>': None,  # thought about, not asked for
    '<think>{"bbox_2d": [20, 10, 50, 40]}': None,
    "bbox_2d [20, 10, 50, 40]": None,
    "<answer>42": None,
    "<answer>42</answer": None,
    "<answer>42</answer>": "42",
    "<ANSWER>\n 42 \n</ANSWER> done": "42",
    "<answer>1</answer><answer>2</answer>": "2",
    "<answer><answer>1</answer>": "1",
    "<think>is it <answer>1</answer>?</think>": None,  # merely thought about
    "<think>is it <answer>1</answer>?</think><answer>2</answer>": "2",
    "is it <answer>1</answer>?</think><answer>2</answer>": "2",
    "<think>so<answer>1</answer>": "1",
    "<think>so</think><answer></answer>": "",
    f"<answer>{TAG}</answer>": TAG,  # the answer is words
    '<answer>{"bbox_2d": [20, 10, 50, 40]}</answer>': '{"bbox_2d": [20, 10, 50, 40]}',
}


@pytest.mark.parametrize("text", NO_ZOOM, ids=range(len(NO_ZOOM)))
def test_what_is_no_zoom(text: str) -> None:
    assert read_turn(text) == ParsedTurn(answer=NO_ZOOM[text])


def test_a_turn_may_hold_both() -> None:
    assert read_turn(TAG + "<answer>42</answer>") == ParsedTurn((SHARES,), "42")


numbers = st.floats(-2000, 2000, allow_nan=False).map(lambda v: round(v, 4))


@given(st.tuples(numbers, numbers, numbers, numbers), st.booleans())
def test_both_notations_say_the_same(box: tuple[float, ...], quotes: bool) -> None:
    quote = '"' if quotes else "'"
    tag = (
        "<zoom_roi "
        + " ".join(f"{name}={quote}{value!r}{quote}" for name, value in zip(("x0", "y0", "x1", "y1"), box))
        + "/>"
    )
    assert read_turn(tag) == read_turn(json.dumps({"bbox_2d": box})) == ParsedTurn((Call(box, max(box) <= 2),))


pieces = st.sampled_from(
    ["<zoom_roi", "<zoom_roi ", 'x0="0.1"', 'x1="9"', "/>", ">", "<think>", "</think>", "<answer>", "</answer>", '{"bbox_2d"',
     ": [", "1, 2, 3, 4", "]", "}", "[", "{", '"', " ", "\n", "42", "\\", "é"]
)  # fmt: skip


@given(st.lists(pieces, max_size=25).map("".join) | st.text(max_size=60))
def test_no_text_is_an_exception(text: str) -> None:
    said = read_turn(text)
    assert not (said.malformed and said.call)
    for call in filter(None, said.calls):
        assert check_zoom(call, Frame((0, 0, 640, 480), (640, 480))).status in STATUSES
    if "zoom_roi" not in text.lower() and "bbox_2d" not in text:
        assert not said.zooms


# ---------------------------------------------------------------------- which regions are shown

FRAME = Frame((0, 0, 640, 480), (1000, 1000))
JUDGED = {
    (0.2, 0.1, 0.5, 0.4): "zoom_executed",
    (0.0, 0.0, 1.0, 0.65): "zoom_executed",  # both limits, and the edges of the view, are allowed
    (0.9, 0.9, 1.0, 1.0): "too_small",
    (0.8, 0.9, 1.0, 1.0): "zoom_executed",
    (0.0, 0.0, 1.0, 1.0): "too_large",
    (0.0, 0.0, 1.0, 0.66): "too_large",
    (0.5, 0.4, 0.2, 0.1): "invalid_zoom",
    (0.2, 0.1, 0.2, 0.4): "invalid_zoom",
    (-0.1, 0.1, 0.5, 0.4): "invalid_zoom",
    (0.2, 0.1, 1.01, 0.4): "invalid_zoom",
}


@pytest.mark.parametrize("box", JUDGED)
def test_a_region_is_judged_alike_in_shares_and_in_coordinates(box: tuple[float, ...]) -> None:
    zoom = check_zoom(Call(box, True), FRAME)
    other = check_zoom(Call(tuple(1000 * value for value in box), False), FRAME)
    assert zoom.status == other.status == JUDGED[box] and zoom.status in STATUSES
    assert zoom.share == pytest.approx(other.share)
    if zoom.status != "invalid_zoom":
        assert zoom.window_px == pytest.approx(np.array(box) * [640, 480, 640, 480])
        assert other.window_px == pytest.approx(zoom.window_px)
        assert zoom.share == pytest.approx((box[2] - box[0]) * (box[3] - box[1]))
    else:
        assert zoom.window_px is None


def test_the_limits_are_those_that_are_asked_for() -> None:
    assert check_zoom(Call((0.9, 0.9, 1.0, 1.0), True), FRAME, Limits(least=0.01)).status == "zoom_executed"
    assert check_zoom(Call((0.0, 0.0, 1.0, 1.0), True), FRAME, Limits(most=1.0)).status == "zoom_executed"


# ---------------------------------------------------------------------- nested views

share = st.floats(0, 1, allow_nan=False)
part = st.tuples(share, share, share, share).map(
    lambda b: (min(b[0], b[2]) * 0.8, min(b[1], b[3]) * 0.8, 0.1 + max(b[0], b[2]) * 0.9, 0.1 + max(b[1], b[3]) * 0.9)
)


@given(st.lists(part, min_size=3, max_size=3), st.sampled_from([(1000, 1000), (252, 168)]), st.booleans())
def test_three_nested_looks_are_where_direct_arithmetic_says(parts: list, scale: tuple[int, int], shares: bool) -> None:
    """Against one corner at a time: origin and side of each view inside the one before it."""
    frame, limits = Frame((0, 0, 1344, 896), scale), Limits(0.0, 1.0)
    x, y, width, height = 0.0, 0.0, 1344.0, 896.0
    for x1, y1, x2, y2 in parts:
        box = (x1, y1, x2, y2) if shares else (x1 * scale[0], y1 * scale[1], x2 * scale[0], y2 * scale[1])
        zoom = check_zoom(Call(box, shares), frame, limits)
        assert zoom.status == "zoom_executed"
        x, y, width, height = x + x1 * width, y + y1 * height, (x2 - x1) * width, (y2 - y1) * height
        assert zoom.window_px == pytest.approx((x, y, x + width, y + height), abs=1e-6)
        frame = Frame(tuple(zoom.window_px), scale)
    inverse = frame.to_text(as_boxes([(x, y, x + width, y + height)]))
    assert inverse[0] == pytest.approx([0, 0, *scale], abs=1e-5)


def test_a_nested_crop_is_cut_from_the_original_pixels() -> None:
    """A one-pixel line is lost in the small first view, and there again in the second look."""
    image = painted((800, 800), [("red", (420, 400, 421, 440))])
    first = check_zoom(Call((0.25, 0.25, 0.75, 0.75), True), Frame((0, 0, 800, 800), (1000, 1000)))
    second = check_zoom(Call((500, 500, 700, 700), False), Frame(tuple(first.window_px), (1000, 1000)))
    assert second.window_px == pytest.approx((400, 400, 480, 480))
    direct = np.asarray(crop(image, second.window_px, (80, 80)))
    assert direct[20, 20].tolist() == [220, 30, 30]  # the line itself, one pixel wide
    blurred = crop(crop(image, first.window_px, (50, 50)), (25, 25, 35, 35), (80, 80))
    assert np.asarray(blurred)[20, 20, 0] < 60
