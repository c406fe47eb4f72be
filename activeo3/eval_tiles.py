"""What was found in tiles, merged into whole pictures and scored there, as the authors of SODA score.

Boxes of all tiles of a picture are moved to its frame and pass a non-maximum suppression at an IoU of 0.5 within a
category (``merge_det`` of SODA-mmrotate, ``merge_dets`` of SODA-mmdetection). A name ends in ``_whole``:

    AP_s_whole, AP50_s_whole, AP75_s_whole, AR_s_whole   the authors' AP, AP50, AP75, AR: up to 1,024 square pixels
    AP_eS_whole, AP_rS_whole, AP_gS_whole, AP_N_whole    extremely, relatively, generally small; normal. AR likewise
    AP_whole, AR_whole                                    objects of every size, which the authors do not report
    AP10_s_whole, AR10_s_whole                            at an IoU of 0.1, ACTIVE-O3's

Deviations from the authors' tools:

1. A category is asked for in the tiles that have an object of it, so nothing can be found wrongly in the others. Their
   detectors look at every tile for everything.
2. A question about a whole picture counts if all tiles in which it is asked are among the examples: with a limit,
   the last picture may be left out.
3. Areas marked as ignored, and what lies in them, count for nothing. They paint those areas in their tiles and drop
   the marks from the truth of the whole picture.
4. Of boxes with equal scores, as language models give them, the larger one stays: a smaller one is what the border of a
   tile has left of it.
5. Their SODA-A compares rotated boxes.
"""

from dataclasses import replace
from typing import Sequence

import numpy as np

from activeo3 import geometry
from activeo3.intervals import Metric
from activeo3.metric_rules import LOW_OVERLAP
from activeo3.metrics import evaluate_detections, rules_of
from activeo3.types import Example, SourceImage, TaskResult

SUFFIX = "_whole"
OVERLAP = 0.5
"""IoU above which the worse of two boxes of neighbouring tiles goes."""


def on_whole_pictures(examples: Sequence[Example], outcomes: Sequence[TaskResult], resamples: int) -> dict[str, Metric]:
    """AP and AR of whole pictures, all size classes; nothing if not all examples are tiles of a set that wants them."""
    if not all(example.source.whole for example in examples):
        return {}
    wholes, merged = merged_tiles(examples, outcomes)
    if not wholes:
        return {}
    found = evaluate_detections(wholes, merged, resamples=resamples)
    for name, threshold in (("50", 0.5), ("75", 0.75), ("10", LOW_OVERLAP)):
        at_one = evaluate_detections(wholes, merged, (threshold,), resamples=resamples)
        found |= {f"{kind}{name}{size}": at_one[f"{kind}{size}"] for kind in ("AP", "AR") for size in ("", "_s")}
    return {f"{name}{SUFFIX}": metric for name, metric in found.items()}


def merged_tiles(examples: Sequence[Example], outcomes: Sequence[TaskResult]) -> tuple[list[Example], list[TaskResult]]:
    """The questions about whole pictures whose tiles are all here, and what was found in these tiles together.

    A whole picture's example has its boxes, areas and crowds, and the pixels of its first tile: scores need none.
    """
    groups: dict[tuple[str, int], list[int]] = {}
    for position, example in enumerate(examples):
        groups.setdefault((str(example.source.whole_id), example.category_id), []).append(position)
    numbers = {source: number for number, source in enumerate(dict.fromkeys(source for source, _ in groups), start=1)}
    wholes, merged = [], []
    for (source, _), members in groups.items():
        tiles = [examples[position] for position in members]
        whole = tiles[0].source.whole
        if len(tiles) == whole.tiles:
            name = f"{source}:{tiles[0].query}"
            wholes.append(
                replace(
                    tiles[0],
                    id=name,
                    boxes_px=whole.boxes_px,
                    image_id=numbers[source],
                    crowd=whole.crowd,
                    areas=whole.areas,
                    rules=rules_of(tiles),
                    exhaustive=True,
                    source=SourceImage(tiles[0].source.file_name),
                )
            )
            merged.append(_merged(tiles, [outcomes[position] for position in members]))
    return wholes, merged


def _merged(tiles: Sequence[Example], outcomes: Sequence[TaskResult]) -> TaskResult:
    """All detections of one category in one picture, in its frame, without those that two tiles have found."""
    corners = [np.tile(tile.source.window_px[:2], 2) for tile in tiles]
    moved = [geometry.as_boxes(outcome.boxes_px) + corner for outcome, corner in zip(outcomes, corners, strict=True)]
    boxes, scores = (
        np.concatenate(moved),
        np.concatenate([np.asarray(outcome.scores, dtype=np.float64) for outcome in outcomes]),
    )
    larger_first = np.argsort(-geometry.area(boxes), kind="stable")
    boxes, scores = boxes[larger_first], scores[larger_first]
    kept = geometry.nms(boxes, scores, OVERLAP) if len(boxes) else np.zeros(0, dtype=np.int64)
    calls, tokens = sum(outcome.calls for outcome in outcomes), sum(outcome.tokens for outcome in outcomes)
    return TaskResult(boxes[kept], scores[kept], calls=calls, tokens=tokens)
