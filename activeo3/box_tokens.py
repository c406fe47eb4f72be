"""How Qwen2-VL writes boxes: in special tokens, in thousandths of the view, each thing's name before its boxes.

    <|object_ref_start|>red cup<|object_ref_end|><|box_start|>(120,310),(245,470)<|box_end|>

(Qwen2-VL, arXiv 2409.12191.) Its later siblings write JSON, and so every reader here reads JSON: an answer in this form
is turned into a list of the same boxes first. A name holds until the next one; a box that is cut short is left as it
is.
"""

import json
import re
from typing import Iterator, Sequence

from activeo3.answer_text import limited

BEGIN = "<|box_start|>"
_NAME = r"<\|object_ref_start\|>((?:[^<]++|<(?!\|))*+)<\|object_ref_end\|>"
_NUMBER = r"\s*+(-?\d++(?:\.\d++)?)\s*+"
_BOX = rf"<\|box_start\|>\s*+\({_NUMBER},{_NUMBER}\)\s*+(?:,\s*+)?\({_NUMBER},{_NUMBER}\)\s*+<\|box_end\|>"
_PART = re.compile(rf"{_NAME}|{_BOX}")
_RUN = re.compile(rf"(?:{_NAME}\s*+)?{_BOX}(?:[\s,;]*+(?:{_NAME}\s*+)?{_BOX})*+")


def as_json(text: str) -> str:
    """A text with each run of boxes in special tokens as a JSON list of ``bbox_2d``; other text stays as it is.

    >>> as_json("<|object_ref_start|>cup<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|> 1")
    '[{"bbox_2d":[1.0,2.0,3.0,4.0],"label":"cup"}] 1'
    """
    text = limited(text)
    if BEGIN not in text:
        return text
    return _RUN.sub(lambda run: json.dumps(list(_boxes_of(run.group())), separators=(",", ":")), text)


def _boxes_of(run: str) -> Iterator[dict[str, list[float] | str]]:
    """The boxes of a run, each with the name before it, if there was one."""
    name: str | None = None
    for part in _PART.finditer(run):
        if part[1] is not None:
            name = part[1].strip()
            continue
        box = {"bbox_2d": [float(number) for number in part.groups()[1:]]}
        yield box if name is None else box | {"label": name}


def marked(boxes_text: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """Boxes as Qwen2-VL writes them, each behind its name.

    >>> marked([(1, 2, 3, 4)], ["cup"])
    '<|object_ref_start|>cup<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>'
    """
    return "".join(
        f"<|object_ref_start|>{name}<|object_ref_end|>{BEGIN}({x1},{y1}),({x2},{y2})<|box_end|>"
        for (x1, y1, x2, y2), name in zip(boxes_text, names, strict=True)
    )
