"""Which questions of LVIS the paper asks: tiny instances, crowded pictures (ACTIVE-O3, section 5 and E.3).

    lvis_small    categories with an instance smaller than 100 square pixels in the picture
    lvis_dense    every category of a picture with more than 15 instances

Together 10,000 questions to train on (LVIS train) and 1,200 to evaluate on (LVIS val), in which no
category occurs more than 3 times. The paper's own lists are not public, so ours are drawn: from a seed,
and written beside the annotations, so that everyone who shares that file has the same questions.

What the paper leaves open, and how it is read here:

1. Small and dense get half of the questions each; what one cannot fill goes to the other.
2. The limit of 3 per category holds for both evaluation sets together.
3. The truth of a small question is all instances of its category, larger ones included: the policy is
   asked for the category, and AP by size tells the small ones apart.
4. A question is a category that has boxes in the picture. LVIS checked every picture for some categories
   only; what was not checked has no boxes and is never asked. What was checked and is not there may be asked beside
   them (data_coco.py).
"""

import json
import os
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np

from activeo3.data_annotations import Index, Question, read_coco
from activeo3.data_coco import box_questions
from activeo3.data_files import PICTURES, files_of, parent_of
from activeo3.data_io import DataError, read_json
from activeo3.data_set import Dataset, Source, register
from activeo3.metric_rules import LVIS

SMALL_PX = 100.0
"""An instance is small below this area in square pixels."""
CROWDED = 15
"""A picture is dense with more instances than this."""
TOTAL = {"train": 10_000, "val": 1_200}
"""Questions of both sets together."""
PER_CATEGORY = {"train": 0, "val": 3}
"""How often a category may occur in both sets together; 0: as often as it is drawn."""
NAMES = ("lvis_v1_{split}.json", "lvis_v0.5_{split}.json", "lvis_{split}_100.json")
"""Annotation files by preference: the two releases, and the sample that the LVIS API publishes."""
FILES = tuple(
    f"{folder}/{name}"
    for name in NAMES
    for folder in ("lvis", "lvis/annotations", "lvis_v1/annotations", "coco/annotations")
)
"""Where they lie: detectron2's layout, that of the archives' own folders, mmdetection's, and beside COCO's own."""
FOLDERS = (*PICTURES, "lvis/{part}", "lvis/images/{part}", "lvis_v1/{part}")
FLAT = "lvis/images"
"""The folder of all pictures without COCO's folders."""

ORIGIN = "https://www.lvisdataset.org, pictures https://cocodataset.org"
RULES = ("lvis_small", "lvis_dense")
Key = tuple[int, int]
"""(image id, category id)"""


@register("lvis_small", {"train": 100_170, "val": 19_809}, ORIGIN)
@register("lvis_dense", {"train": 100_170, "val": 19_809}, ORIGIN)
def open_lvis(source: Source) -> Dataset:
    """The selected questions of the first of FILES that is there; pictures lie in one of FOLDERS, or FLAT."""
    root, split = source.folder(), source.split
    path = files_of(root, FILES, split=split).path
    # LVIS splits COCO's pictures anew, so that only the url says which of COCO's folders a picture is in.
    parent = parent_of(root, FOLDERS, ("train2017", "val2017"))
    flat = parent is None and (root / FLAT).is_dir()
    images, url_parts = (root / FLAT, 1) if flat else (parent or root / "coco", 2)
    index = _index(path, images, url_parts, (path.stat().st_mtime_ns, path.stat().st_size))
    chosen = selection(path, index.questions, split, source.seed, source.keep)[source.name]
    by_key = {(question.image_id, question.category_id): question for question in index.questions}
    if not chosen:
        raise DataError(f"{path}: no question of split '{split}' fits the rule of {source.name}")
    return box_questions(source, index._replace(questions=tuple(by_key[key] for key in chosen)), LVIS)


@lru_cache(maxsize=2)  # a gigabyte of json, read once for both rules; two splits
def _index(path: Path, images: Path, url_parts: int, version: tuple[int, int]) -> Index:
    """The checked annotations of a file, read again when its ``version`` is another one."""
    return read_coco(path, images, url_parts=url_parts)


# ---------------------------------------------------------------------------- the rules


def candidates(questions: Sequence[Question]) -> dict[str, list[Key]]:
    """The questions that fit each rule, in the order of the file. Crowds are no instances."""
    instances: Counter[int] = Counter()
    for question in questions:
        instances[question.image_id] += int((~question.crowd).sum())
    found: dict[str, list[Key]] = {name: [] for name in RULES}
    for question in questions:
        key = (question.image_id, question.category_id)
        if (question.areas[~question.crowd] < SMALL_PX).any():
            found["lvis_small"].append(key)
        if instances[question.image_id] > CROWDED:
            found["lvis_dense"].append(key)
    return found


def draw(found: Mapping[str, Sequence[Key]], total: int, per_category: int, seed: int) -> dict[str, list[Key]]:
    """At most ``total`` of the candidates, the sets taking turns, each in a random order of its own.

    No category is taken more than ``per_category`` times (0: no limit). Returns sorted keys.

    >>> draw({"a": [(1, 1), (2, 1)], "b": [(3, 2)]}, total=9, per_category=1, seed=0)["b"]
    [(3, 2)]
    """
    rng = np.random.default_rng(seed)
    waiting = {name: iter([keys[k] for k in rng.permutation(len(keys))]) for name, keys in found.items()}
    taken: dict[str, list[Key]] = {name: [] for name in found}
    used: Counter[int] = Counter()
    while waiting:
        for name in list(waiting):
            free = (key for key in waiting[name] if not per_category or used[key[1]] < per_category)
            key = next(free, None) if used.total() < total else None
            if key is None:
                del waiting[name]
                continue
            taken[name].append(key)
            used[key[1]] += 1
    return {name: sorted(keys) for name, keys in taken.items()}


# ---------------------------------------------------------------------------- the file


def selection(path: Path, questions: Sequence[Question], split: str, seed: int, keep: bool) -> dict[str, list[Key]]:
    """The selection for an annotation file: the one written beside it, or drawn and then written.

    A folder that cannot be written to is no error: the same seed draws the same questions again.
    Raises DataError if the written one does not belong to these annotations and rules.
    """
    saved = path.with_name(f"queries_{path.stem}_seed{seed}.json")
    rules = {
        "annotations": path.name, "seed": seed, "total": TOTAL[split], "per_category": PER_CATEGORY[split],
        "small_px": SMALL_PX, "crowded": CROWDED,
    }  # fmt: skip
    if saved.is_file():
        return _loaded(saved, rules, {(question.image_id, question.category_id) for question in questions})
    drawn = draw(candidates(questions), TOTAL[split], PER_CATEGORY[split], seed)
    if keep:
        try:
            part = saved.with_suffix(f".part{os.getpid()}")  # ranks may write at once, each its own
            part.write_text(json.dumps(rules | drawn))
            part.replace(saved)
        except OSError:
            pass
    return drawn


def _loaded(saved: Path, rules: Mapping[str, Any], known: set[Key]) -> dict[str, list[Key]]:
    content = read_json(saved)
    redo = "delete it and it is drawn again"
    if not isinstance(content, dict) or any(content.get(name) != value for name, value in rules.items()):
        raise DataError(f"{saved}: this was selected by other rules than {rules}, {redo}")
    found: dict[str, list[Key]] = {}
    for name in RULES:
        pairs = content.get(name)
        if not isinstance(pairs, list) or not all(
            isinstance(pair, list) and [type(one) for one in pair] == [int, int] for pair in pairs
        ):
            raise DataError(f"{saved}: '{name}' is no list of pairs (image id, category id), {redo}")
        found[name] = [(pair[0], pair[1]) for pair in pairs]
        unknown = [key for key in found[name] if key not in known]
        if unknown:
            image_id, category_id = unknown[0]
            raise DataError(f"{saved}: image {image_id} has no box of category {category_id}, {redo}")
    return found
