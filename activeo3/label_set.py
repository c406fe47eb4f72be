"""Which labels of a closed-set detector a query means.

A query and a label are the same if they are the same words: without regard to case, to anything that is no letter or
digit, and to plural endings; or if their words are in one line of SYNONYMS. Nothing else is guessed: "dog" is not
"animal", and "red car" is not "car", because a detector of cars would then be paid for blue ones.
"""

import re
from functools import lru_cache
from typing import Mapping

from activeo3.cli import did_you_mean

SYNONYMS = """
airplane, aeroplane, plane
bicycle, bike
car, automobile
cell phone, cellphone, mobile phone, mobile, phone, smartphone
couch, sofa
dining table, diningtable
donut, doughnut
fire hydrant, hydrant
hair drier, hair dryer, hairdryer
motorcycle, motorbike
person, human
potted plant, pottedplant
refrigerator, fridge
remote, remote control
sports ball, sportsball
stop sign, stopsign
teddy bear, teddy
tv, television, tvmonitor, tv monitor
wine glass, wineglass
"""
"""Words that name one thing in COCO, Pascal VOC, LVIS and Objects365, a line each."""
_IRREGULAR = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse", "geese": "goose",
    "knives": "knife", "leaves": "leaf", "shelves": "shelf", "loaves": "loaf", "feet": "foot", "teeth": "tooth",
}  # fmt: skip


def plain(name: str) -> str:
    """A name in lower case and single, one space between its words.

    >>> plain("Traffic_Lights"), plain("BUSES"), plain("dining-table")
    ('traffic light', 'bus', 'dining table')
    """
    *before, last = re.findall(r"[^\W_]+", name.casefold()) or [""]
    return " ".join([*before, _singular(last)])


def _singular(word: str) -> str:
    """A word without its plural ending; both sides of a comparison lose it, so "lens" may become "len"."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    if word.endswith(("sses", "xes", "ches", "shes")) or word.endswith("uses") and not word.endswith("ouses"):
        return word[:-2]
    return word if word.endswith(("ss", "us", "is")) else word.removesuffix("s")


@lru_cache(maxsize=None)
def _lines() -> dict[str, int]:
    """The line of SYNONYMS that a plain name stands in."""
    lines = enumerate(SYNONYMS.split("\n"))
    return {plain(name): number for number, line in lines for name in line.split(",") if name.strip()}


def same(query: str, label: str) -> bool:
    """Whether a query and a label are one thing.

    >>> same("Sofas", "couch"), same("red car", "car")
    (True, False)
    """
    one, other = plain(query), plain(label)
    return bool(one) and (one == other or _lines().get(one, -1) == _lines().get(other, -2))


def found(query: str, labels: Mapping[int, str]) -> list[int]:
    """The numbers of the labels that a query means, in their order; none if it means none."""
    return [number for number, label in labels.items() if same(query, label)]


def unknown(query: str, labels: Mapping[int, str]) -> str:
    """What to say of a query that means no label."""
    names = list(labels.values())
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    near = did_you_mean(plain(query), names)
    return (
        f"the detector knows no '{query}'{near}; its {len(names)} labels are {shown}. Ask for one of them, or use a "
        "detector that reads queries, as Grounding DINO."
    )
