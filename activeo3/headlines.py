"""Numbers that single data sets ask for beside COCO's: AP by category frequency, at a low overlap, on whole pictures.

    AP_r, AP_c, AP_f   LVIS: the mean over rare, common and frequent categories alone (ACTIVE-O3, Table 11)
    AP10, AR10, ...    SODA: AP and AR at an IoU of 0.1 (ACTIVE-O3, E.3)
    AP_s_whole, ...    SODA: tiles merged back into whole pictures (eval_tiles.py)

Readings of what the paper leaves open:
  1. "The IoU threshold is lowered to 0.1" is read as the one threshold 0.1, which is the table's headline.
     The other reading, COCO's mean with 0.1 as its first threshold (0.1, 0.15 ... 0.95), is AP10_95 and
     AR10_95 in results.json. COCO's own AP and AR are there too.
  2. The reward stays at an IoU of 0.5 on every data set, as the paper writes R_detect (4.4).
"""

from typing import Sequence

import numpy as np

from activeo3.eval_tiles import on_whole_pictures
from activeo3.intervals import Metric
from activeo3.metric_rules import LOW_OVERLAP
from activeo3.metrics import best_of_pictures, evaluate_detections, rules_of
from activeo3.types import Example, TaskResult

FREQUENCIES = {"r": "AP_r", "c": "AP_c", "f": "AP_f"}
"""LVIS's marks of a category: in up to 10, up to 100, or more training pictures."""
LOW_RANGE = tuple(np.linspace(LOW_OVERLAP, 0.95, 18).tolist())


def headlines(examples: Sequence[Example], outcomes: Sequence[TaskResult], resamples: int) -> dict[str, Metric]:
    """The numbers that the data set of these examples asks for; none for most data sets.

    An example asks by its fields: ``frequency`` (r, c or f) and the ``lowest_iou`` of its ``rules``, and ``whole``.
    """
    found = by_frequency(examples, outcomes, resamples) | at_low_overlap(examples, outcomes, resamples)
    return found | on_whole_pictures(examples, outcomes, resamples)


def by_frequency(examples: Sequence[Example], outcomes: Sequence[TaskResult], resamples: int) -> dict[str, Metric]:
    """AP of the questions about rare, common and frequent categories; NaN for a group without a question."""
    marks = [example.frequency for example in examples]
    if not any(marks):
        return {}
    found = dict.fromkeys(FREQUENCIES.values(), Metric(np.nan, np.nan, np.nan))
    outcomes = best_of_pictures(examples, outcomes, rules_of(examples).of_picture)  # the limit is one of all categories
    for mark, name in FREQUENCIES.items():
        own = [index for index, other in enumerate(marks) if other == mark]
        if own:
            part = evaluate_detections([examples[k] for k in own], [outcomes[k] for k in own], resamples=resamples)
            found[name] = part["AP"]
    return found


def at_low_overlap(examples: Sequence[Example], outcomes: Sequence[TaskResult], resamples: int) -> dict[str, Metric]:
    """AP and AR by size from an IoU of LOW_OVERLAP on, if all examples ask for it."""
    rules = rules_of(examples)
    if rules.lowest_iou != LOW_OVERLAP:
        return {}
    found = {}
    for suffix, thresholds in (("10", (LOW_OVERLAP,)), ("10_95", LOW_RANGE)):
        rows = evaluate_detections(examples, outcomes, thresholds, resamples=resamples)
        found |= {f"{name}{suffix}{size}": rows[f"{name}{size}"] for name in ("AP", "AR") for size in rules.sizes}
    return found
