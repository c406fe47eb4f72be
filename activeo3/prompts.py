"""Every word that is shown to a model, and well-formed answers (answer_parsing.py reads what it writes).

Two wordings exist. ``paper`` has the structure of the paper's prompts (ACTIVE-O3, arXiv 2505.21457v2, Fig. 5 to 7):
seven sentences for the sensing role, as many where it looks for errors of a mask, one for the task role. ``short`` asks
the same questions in a few words, for the tiny policy, whose prompts should cost less than its images. Episodes have a
third, ``zoom_roi``. Questions that are answered in words have one wording, that of their files.

Where a sentence asks for JSON, a family that writes boxes in special tokens (``Family.boxes``) is asked for those.

``TEMPLATES`` has every template by name; a ``Wording`` may carry some of the user's in their place (prompt_file.py).

Deviation from the paper: the sentences are our own; the structure, the tags and the JSON keys are the paper's.
"""

import json
import re
from typing import Mapping, Self, Sequence

WORDINGS = ("paper", "short")
EPISODE_WORDINGS = (*WORDINGS, "zoom_roi")
"""Of episodes. ``zoom_roi`` asks for Active-Perception-R1's own call, a tag inside the thought with shares of the view
(commit 14f2841); its other sentences are ``paper``'s."""


class Wording(str):
    """The name of a wording, as a string, with templates by name that take the place of its own."""

    own: Mapping[str, str]

    def __new__(cls, name: str, own: Mapping[str, str] = {}) -> Self:
        self = super().__new__(cls, name)
        self.own = own
        return self


def _regions(task: str, label: str) -> str:
    """The paper's sentences: what to select, as a JSON list with this label, and the tags."""
    return (
        task + " Give the regions as a JSON list of objects of the form "
        f'{{{{"bbox_2d": [x1, y1, x2, y2], "label": "{label}"}}}}. '
        "First reason inside <think> </think> tags, then put the JSON list inside <answer> </answer> tags. "
        "The layout is: <think> your reasoning </think> <answer> the JSON list </answer>"
    )


_SENSING = {
    "paper": _regions(
        "Select {regions} of this image that are likely to contain many instances of "
        "'{object}'. If you do not see any clearly, still guess the places where they are most likely to be. "
        "Every region should cover several objects together with some of their surroundings. "
        "Keep the regions distinct, with little or no overlap between them.",
        "{object}-dense region",
    ),
    "short": "Where could a {object} be?",
}
_SEGMENTATION = {
    "paper": _regions(
        "A translucent green mask is drawn over this image; it is meant to cover '{object}' exactly. "
        "Select exactly {regions} in which the mask is wrong. Look for parts of the object that it leaves out "
        "and for parts of the surroundings that it covers. "
        "Every region should show an error together with some context around it.",
        "{object} segmentation error",
    ),
    "short": "Where are {regions} with errors of the {object} mask?",
}
_TASK = {
    "paper": "Locate every instance of '{object}' in this image and output their bounding boxes as JSON.",
    "short": "Find every {object}.",
}
_DETECTOR = {
    "grounding_dino": "{object}.",
    "owl": "a photo of a {object}",
    "omdet_class": "{object}",
    "omdet_task": "Detect {object}.",
}
"""How each open-vocabulary detector was trained to be asked."""
_QUESTION_REGIONS = {
    "paper": _regions(
        "Select {regions} of this image that are most likely to help to answer the question '{question}'. "
        "If the answer is not clearly visible, still guess the places where it is most likely to be. "
        "Keep the regions distinct.",
        "region relevant to the question",
    ),
    "short": "Where should one look to answer: {question}",
}
_MIN_ZOOMS = {
    "paper": " Look closer at least {least} before you answer; an earlier answer does not count.",
    "short": "",
}
_WITHOUT_ZOOM = {
    "paper": "{question} First reason inside <think> </think> tags, then give the final answer inside <answer> "
    "</answer> tags.",
    "short": "{question}",
}
_EPISODE = {
    "paper": (
        "{question} You may look closer before you answer, up to {zooms} times: to zoom into a region of the view "
        'that you were shown last, write {{"bbox_2d": [x1, y1, x2, y2]}} with its corners in that view, and wait. '
        "First reason inside <think> </think> tags, then either zoom, or give the final answer inside <answer> "
        "</answer> tags."
    ),
    "short": "{question}",
    # The edges have names and no numbers: a zoom that is copied from here cannot be read.
    "zoom_roi": (
        "{question} You may look closer before you answer, up to {zooms} times: to zoom into a region of the view "
        'that you were shown last, end your reasoning with the tag <zoom_roi x0="left" y0="top" x1="right" y1="bottom" '
        "/>, in which every edge is a share of the width or height of that view, from 0 to 1, and wait. "
        "Reason inside <think> </think> tags, the tag of a zoom included; if you do not zoom, give the final answer "
        "behind them inside <answer> </answer> tags."
    ),
}
_EPISODE_AT_ONCE = {
    "paper": (
        "{question} You may look closer before you answer, at up to {zooms} regions in all and at up to {at_once} of "
        "them at once: to look at regions of the view that you were shown last, write a JSON list of up to {at_once} "
        "objects "
        'of the form {{"bbox_2d": [x1, y1, x2, y2]}} with their corners in that view, and wait. You are then shown the '
        "regions one after the other in the order of your list, and the last of them is the view for what follows. "
        "First reason inside <think> </think> tags, then either write such a list, or give the final answer inside "
        "<answer> </answer> tags."
    ),
    "short": "{question} Look at up to {at_once} regions at once.",
    "zoom_roi": (
        "{question} You may look closer before you answer, at up to {zooms} regions in all and at up to {at_once} of "
        "them at once: to look at regions of the view that you were shown last, end your reasoning with a tag for "
        'each, up to {at_once}, of the form <zoom_roi x0="left" y0="top" x1="right" y1="bottom" />, in which every '
        "edge is a share of the width or height of that view, from 0 to 1, and wait. You are then shown the regions "
        "one after the other in the order of your tags, and the last of them is the view for what follows. "
        "Reason inside <think> </think> tags, the tags of zooms included; if you do not zoom, give the final answer "
        "behind them inside <answer> </answer> tags."
    ),
}
_NOTES = {
    "paper": " You see only what you were shown last: before you look closer, write down what you still need of it.",
    "short": "",
}
_OBSERVATIONS = {
    "paper": {
        "zoom_executed": "This is the region, enlarged. Zoom into this view, or give the final answer.",
        "zooms_executed": "These are the regions, enlarged. Zoom into the last of them, or give the final answer.",
        "malformed_zoom": "That region could not be read. Write its corners as four numbers, or give the final answer.",
        "invalid_zoom": "That region does not lie inside the view. Choose one that does, or give the final answer.",
        "too_small": "That region is too small. Choose a larger one, or give the final answer.",
        "too_large": "That region is nearly the whole view. Choose a smaller one, or give the final answer.",
        "zoom_limit": "No zoom is left. Give the final answer inside <answer> </answer> tags.",
    },
    "short": {
        "zoom_executed": "Closer.",
        "zooms_executed": "Closer.",
        "malformed_zoom": "No region.",
        "invalid_zoom": "Not inside.",
        "too_small": "Too small.",
        "too_large": "Too large.",
        "zoom_limit": "Answer.",
    },
}
_OBSERVATIONS["zoom_roi"] = _OBSERVATIONS["paper"] | {
    "malformed_zoom": "That tag could not be read. Write its four edges as numbers in quotes, or give the final answer."
}

for _templates in (_MIN_ZOOMS, _WITHOUT_ZOOM, _NOTES):
    _templates["zoom_roi"] = _templates["paper"]

_CORNERS = "(x1,y1),(x2,y2) in your box tokens"
_JSON = r'\{\{"bbox_2d": \[x1, y1, x2, y2\]'
_TOKENS = (
    (rf' as a JSON list of objects of the form {_JSON}, "label": "([^"]*)"\}}\}}',
     rf", each as '\1' with its corners {_CORNERS}"),
    (rf"a JSON list of objects of the form {_JSON}, \"label\": \"name\"\}}\}}",
     f"each name and its corners {_CORNERS}"),
    (r", or a point, of every (.*?) as a JSON list .*?, and after the list",
     rf" of every \1 as {_CORNERS}, and after them"),
    (rf"a JSON list of up to (\S+) objects of the form {_JSON}\}}\}}", rf"up to \1 boxes {_CORNERS}"),
    (rf"{_JSON}\}}\}}", _CORNERS),
    (r"\[x1, y1, x2, y2\]", _CORNERS),
    (r"put the JSON list", "put the boxes"), (r"<answer> the JSON list </answer>", "<answer> the boxes </answer>"),
    (r"their bounding boxes as JSON", f"their bounding boxes as {_CORNERS}"),
    (r"in the order of your list", "in the order of your boxes"), (r"write such a list", "write such boxes"),
)  # fmt: skip
"""What takes the place of JSON in a template where a model writes boxes in special tokens. The tokens themselves are
not written: in words they would be text (encoding.py)."""


def in_form(template: str, boxes: str) -> str:
    """A template that asks for ``json``, or for boxes in special ``tokens`` in its place.

    >>> in_form("Give it as [x1, y1, x2, y2].", "tokens")
    'Give it as (x1,y1),(x2,y2) in your box tokens.'
    """
    for asked, instead in _TOKENS if boxes == "tokens" else ():
        template = re.sub(asked, instead, template)
    return template


def template(name: str, wording: str, boxes: str = "json") -> str:
    """A template for ``str.format``: the user's, as it is, or that of the wording, in the form that a model writes
    ``boxes``."""
    own = wording.own if isinstance(wording, Wording) else {}
    return own[name] if name in own else in_form(TEMPLATES[name][wording], boxes)


def sensing_prompt(query: str, wording: str, regions: int = 3, boxes: str = "json") -> str:
    """The sensing role's question: which regions are likely to show ``query`` (paper, Fig. 5)?"""
    return template("sensing", wording, boxes).format(object=query, regions=_allowed(regions))


def _allowed(regions: int) -> str:
    return f"up to {regions} regions" if regions > 1 else "one region"


def looking_prompt(question: str, wording: str, regions: int = 3, boxes: str = "json") -> str:
    """The sensing role's question before a question in words: where is the answer (the authors' V* demo)?"""
    return template("looking", wording, boxes).format(question=question, regions=_allowed(regions))


def question_text(question: str, options: Sequence[str] = (), hint: str = "", crops: int = 0) -> str:
    """The lines of a question: what ``crops`` beside the image show, a hint, itself, each option behind its letter.

    >>> question_text("Which animal?", ["cat", "dog"])
    'Which animal?\\nA. cat\\nB. dog'
    """
    parts = f"the other {crops} show parts" if crops > 1 else "the second shows a part"
    beside = [f"The first picture is the whole scene, {parts} of it enlarged."] if crops else []
    hints = [f"Hint: {hint}"] if hint else []
    listed = [f"{chr(ord('A') + i)}. {option}" for i, option in enumerate(options)]
    return "\n".join([*beside, *hints, question, *listed])


def question_prompt(question: str, options: Sequence[str] = (), hint: str = "", crops: int = 0) -> str:
    """A question in words about an image and ``crops`` enlarged parts of it, which come first.

    With options, the prompt asks for the letter (MMBench's and V*Bench's protocol); without, the question itself says
    how to answer (MME, RealWorldQA).
    """
    text = question_text(question, options, hint, crops)
    return text + ("\nAnswer with the letter of the right option only." if options else "")


def segmentation_prompt(query: str, wording: str, regions: int = 3, boxes: str = "json") -> str:
    """The sensing role's question about a mask drawn over an image: where is it wrong (paper, Fig. 6)?"""
    asked = f"{regions} regions" if regions > 1 else "one region"
    return template("segmentation", wording, boxes).format(object=query, regions=asked)


def task_prompt(query: str, wording: str, boxes: str = "json") -> str:
    """The task role's question about one crop: find every ``query`` (paper, Fig. 7)."""
    return template("task", wording, boxes).format(object=query)


def episode_prompt(
    question: str,
    wording: str,
    zooms: int,
    *,
    at_once: int = 1,
    notes: bool = False,
    least: int = 0,
    boxes: str = "json",
) -> str:
    """A question (``question_text``) that a policy may answer after ``least`` to ``zooms`` zooms.

    Without zooms it has to answer at once. With ``at_once`` above 1 a turn may ask for as many regions; the next turn
    refers to the last of them. With ``notes`` only the last views stay visible, and the policy has to write down what
    it still needs of earlier ones.

    >>> episode_prompt("Which is it?", "short", 3)
    'Which is it?'
    """
    if not zooms:
        return template("without_zoom", wording).format(question=question)
    must = template("min_zooms", wording).format(least="once" if least == 1 else f"{least} times") if least else ""
    words = template("episode" if at_once == 1 else "episode_at_once", wording, boxes)
    words = words.format(question=question, zooms=zooms, at_once=at_once)
    return words + (template("notes", wording).format() if notes else "") + must


def shown(status: str, wording: str) -> str:
    """The text beside the next view, by the status of a zoom (zoom_calls.STATUSES).

    It follows from the policy's own action and from nothing else: Active-Perception-R1 adds here which true region was
    hit and how much of it, and so gives away what is to be found.
    """
    return template(status, wording).format()


def shown_together(statuses: Sequence[str], wording: str) -> str:
    """The text beside the next views, by the status of each zoom of a turn.

    The regions that are shown come first, then why the others are not, each by its number in the turn. If none is
    shown, the reason is that of the first.

    >>> shown_together(["zoom_executed", "too_small"], "short")
    'Closer. Region 2: Too small.'
    """
    executed = statuses.count("zoom_executed")
    if not executed:
        return shown(statuses[0], wording)
    refused = [(place, status) for place, status in enumerate(statuses, start=1) if status != "zoom_executed"]
    without_advice = lambda status: shown(status, wording).partition(".")[0]  # noqa: E731
    reasons = [f"Region {place}: {without_advice(status)}." for place, status in refused]
    return " ".join([shown("zooms_executed" if executed > 1 else "zoom_executed", wording), *reasons])


def zoom_call(box_text: Sequence[float]) -> str:
    """A well-formed zoom, in the notation that the prompt asks for.

    >>> zoom_call([10, 20, 300, 400])
    '{"bbox_2d":[10,20,300,400]}'
    """
    return json.dumps({"bbox_2d": list(box_text)}, separators=(",", ":"))


def zoom_roi_call(edges: Sequence[float]) -> str:
    """A well-formed zoom in Active-Perception-R1's notation; left, top, right and bottom are shares of the view.

    >>> zoom_roi_call([0.1, 0.25, 0.5, 0.999])
    '<zoom_roi x0="0.1" y0="0.25" x1="0.5" y1="0.999" />'
    """
    names = ("x0", "y0", "x1", "y1")
    written = [f"{edge:.3f}".rstrip("0").rstrip(".") for edge in edges]
    return f"<zoom_roi {' '.join(f'{name}={edge!r}' for name, edge in zip(names, written, strict=True))} />".replace(
        "'", '"'
    )


def zooms_turn(
    thought: str, boxes_text: Sequence[Sequence[float]], wording: str, scale: float = 1000.0, listed: bool = False
) -> str:
    """A well-formed turn that zooms, in the notation that a wording asks for.

    The boxes are in a model's own numbers, of which ``scale`` are the whole width or height; ``listed``: as a list,
    even of one.

    >>> print(zooms_turn(" red", [[10, 20, 300, 400]], "paper"))
    <think> red</think>{"bbox_2d":[10,20,300,400]}
    >>> print(zooms_turn(" red", [[10, 20, 300, 400]], "zoom_roi"))
    <think> red <zoom_roi x0="0.01" y0="0.02" x1="0.3" y1="0.4" /></think>
    """
    if wording == "zoom_roi":
        calls = [zoom_roi_call([edge / scale for edge in box]) for box in boxes_text]
        return f"<think>{' '.join([thought, *calls])}</think>"
    return f"<think>{thought}</think>{boxes_answer(boxes_text) if listed else zoom_call(boxes_text[0])}"


def final_answer(words: str, thought: str = "") -> str:
    """A well-formed final answer in words."""
    return f"<think>{thought}</think><answer>{words}</answer>"


def pointing_prompt(colour: str) -> str:
    """A question of the tiny policy's lessons only: regions around everything of a colour."""
    return f"Look at {colour}."


def detector_prompt(query: str, kind: str = "grounding_dino", wording: str = "paper") -> str:
    """The text for an open-vocabulary detector of a kind in _DETECTOR: the query as its one category.

    Grounding DINO reads lower case, and a full stop as the end of a category.

    >>> detector_prompt("St. Bernard"), detector_prompt("St. Bernard", "owl")
    ('st bernard.', 'a photo of a St. Bernard')
    """
    words = query.lower().replace(".", " ") if kind == "grounding_dino" else query
    return template(kind, wording).format(object=" ".join(words.split()))


def sensing_answer(boxes_text: Sequence[Sequence[int]], thought: str) -> str:
    """A well-formed answer of the sensing role."""
    return f"<think>{thought}</think><answer>{boxes_answer(boxes_text)}</answer>"


def boxes_answer(boxes_text: Sequence[Sequence[int]]) -> str:
    """A well-formed answer of the task role: compact JSON, ``[]`` when there is nothing.

    >>> boxes_answer([(10, 20, 30, 40)])
    '[{"bbox_2d":[10,20,30,40]}]'
    """
    return json.dumps([{"bbox_2d": list(box)} for box in boxes_text], separators=(",", ":"))


# ---------------------------------------------------------------------- perception in one step

PERCEPTION: dict[str, dict[str, str]] = {
    "grounding": {
        "paper": "Give the bounding box of {object} in this image as [x1, y1, x2, y2].",
        "short": "Find the {object}.",
    },
    "counting": {
        "paper": (
            "Give the bounding box, or a point, of every {object} in this image as a JSON list of objects of the form "
            '{{"bbox_2d": [x1, y1, x2, y2]}} or {{"point_2d": [x, y]}}, and after the list how many there are.'
        ),
        "short": "Count every {object}.",
    },
    "ocr": {"paper": "Do OCR on this image.", "short": "Read."},
    "detection": {
        "paper": (
            "Give the bounding boxes and the names of all things in this image that are one of: {object}. Answer with "
            'a JSON list of objects of the form {{"bbox_2d": [x1, y1, x2, y2], "label": "name"}}.'
        ),
        "short": "Find and name everything.",
    },
}
_THINK_FIRST = {
    "paper": (
        " First reason inside <think> </think> tags, then put the answer inside <answer> </answer> tags. "
        "The layout is: <think> your reasoning </think> <answer> the answer </answer>"
    ),
    "short": " Think first.",
}


def perception_prompt(
    task: str, asked: str | Sequence[str], wording: str, thinking: bool = False, boxes: str = "json"
) -> str:
    """What a model is asked in one of TASKS; ``asked`` is a phrase or, for detection, all category names.

    >>> perception_prompt("grounding", "red cup", "short")
    'Find the red cup.'
    """
    words = asked if isinstance(asked, str) else ", ".join(asked)
    think = template("think_first", wording).format() if thinking else ""
    return template(task, wording, boxes).format(object=words) + think


# ---------------------------------------------------------------------- all templates

TEMPLATES: dict[str, dict[str, str]] = {
    "sensing": _SENSING,
    "looking": _QUESTION_REGIONS,
    "segmentation": _SEGMENTATION,
    "task": _TASK,
    "episode": _EPISODE,
    "episode_at_once": _EPISODE_AT_ONCE,
    "without_zoom": _WITHOUT_ZOOM,
    "min_zooms": _MIN_ZOOMS,
    "notes": _NOTES,
    **{status: {name: texts[status] for name, texts in _OBSERVATIONS.items()} for status in _OBSERVATIONS["paper"]},
    **PERCEPTION,
    "think_first": _THINK_FIRST,
    **{kind: dict.fromkeys(EPISODE_WORDINGS, text) for kind, text in _DETECTOR.items()},
}
"""Every template by its name, and its text in each wording; placeholders stand in braces, as ``str.format`` takes
them."""
