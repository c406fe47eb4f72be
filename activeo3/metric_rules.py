"""How a data set is scored: which detections count, in which size classes, and what is not punished.

A data set owns its rules and hands them to each of its examples (``Example.rules``); metrics.py follows them.

              detections that count for AP | for AR               size classes beside COCO's
    COCO      100 of a question            | 100                  none
    LVIS      300 of a picture, over all its categories           none
    SODA_A    20,000 of a question         | 20,000               eS, rS, gS, N
    SODA_D    100 of a question            | 1,000                eS, rS, gS, N

Sources: pycocotools' COCOeval; lvis' LVISEval; the evaluation code of "Towards Large-Scale Small Object Detection"
(arXiv 2207.14096, repositories SODA-mmrotate and SODA-mmdetection). LVIS is federated: of some categories not
every instance is boxed in a picture, and a detection there that matches nothing is not counted as false.
An example says so itself (``Example.exhaustive``), because that holds for a pair of picture and category.

The reward follows no limit (``UNLIMITED``): what a task model finds in three crops is not a ranking to be cut.
"""

from dataclasses import dataclass
from typing import Mapping

Range = tuple[float, float]
"""Smallest and largest area of a size class in square pixels of the original picture, both included."""

SIZES: Mapping[str, Range] = {
    "": (0.0, 1e10),
    "_s": (0.0, 32.0**2),
    "_m": (32.0**2, 96.0**2),
    "_l": (96.0**2, 1e10),
}
"""COCO's size classes by the suffix of a metric's name."""

SODA_SIZES = (
    ("_eS", (0.0, 12.0**2)), ("_rS", (12.0**2, 20.0**2)), ("_gS", (20.0**2, 32.0**2)), ("_N", (32.0**2, 40.0 * 50.0)),
)  # fmt: skip
"""SODA's classes: extremely, relatively and generally small, and normal."""

NO_LIMIT = 2**31
LOW_OVERLAP = 0.1
"""ACTIVE-O3 lowers the IoU threshold on SODA to this (its E.3)."""


@dataclass(frozen=True)
class MetricRules:
    """How the examples of a data set are scored.

    Of the detections of one question the best ``for_ap`` count in AP and the best ``for_ar`` in AR; of all
    detections of one picture, over its questions, only the best ``of_picture``. ``own_sizes`` are the size
    classes that it has beside COCO's. ``lowest_iou`` asks for AP and AR from that threshold on as well
    (eval_detection.py). A ``federated`` set names the categories of which a picture was checked, and no others.
    """

    name: str
    for_ap: int = 100
    for_ar: int = 100
    of_picture: int = NO_LIMIT
    own_sizes: tuple[tuple[str, Range], ...] = ()
    lowest_iou: float | None = None
    federated: bool = False

    @property
    def sizes(self) -> dict[str, Range]:
        """All size classes, COCO's first, by the suffix of a metric's name."""
        return {**SIZES, **dict(self.own_sizes)}


COCO = MetricRules("COCO")
LVIS = MetricRules("LVIS", NO_LIMIT, NO_LIMIT, of_picture=300, federated=True)
SODA_A = MetricRules("SODA-A", 20_000, 20_000, own_sizes=SODA_SIZES, lowest_iou=LOW_OVERLAP)
SODA_D = MetricRules("SODA-D", 100, 1_000, own_sizes=SODA_SIZES, lowest_iou=LOW_OVERLAP)
UNLIMITED = MetricRules("unlimited", NO_LIMIT, NO_LIMIT)
"""Every detection counts: for the reward, and for counts of detections."""
