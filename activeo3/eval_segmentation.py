"""The benchmark of masks corrected zoom by zoom: mean IoU after 0, 1, 2, ... zooms, one row per way of choosing
regions.

The benchmark of --task segment (ACTIVE-O3, section 5.4, its Fig. 3). All rows start from the same first masks,
and the same task model works in their regions, in the order in which they were proposed:

    random           K random regions of sensible size
    grid             K uniform tiles that cover the image
    cot              the start policy, prompted and untrained
    active           the checkpoint
    oracle-regions   K squares around the largest errors of the mask (task_segmentation.error_regions)

Where an answer has fewer regions than the budget, its mask stays as it is. Beside mean IoU stand the gain over
the first mask, with an interval of its own because the images are the same, and how many of the wrong pixels
the regions hold. Both correctors see a crop at a size of their own, so a large region is drawn coarsely: the tiles
of ``grid``, which leave nothing out, end below the first mask. With ``--task_options least_seen=0`` they end at 1.
"""

from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np

from activeo3 import intervals, metrics, outputs
from activeo3.config import Config, TrainConfig
from activeo3.eval_baselines import METHODS, by_rule, greedy_rollouts
from activeo3.eval_config import EvalConfig
from activeo3.eval_core import (
    STRICT,
    Benchmark,
    Map,
    Method,
    Models,
    Row,
    Setting,
    blackened,
    regions_of,
    rollout_of,
    rollout_record,
    shares,
    strict_columns,
)
from activeo3.eval_runner import Record
from activeo3.geometry import as_boxes, mask_to_rle, rle_to_mask
from activeo3.model import VisionLanguageModel
from activeo3.plots import Panel, draw
from activeo3.samples import Sample
from activeo3.task_segmentation import Draft, covered_error, error_regions, zoom_and_click
from activeo3.types import Example, Region, Rollout, TaskResult


class SegmentationBenchmark(Benchmark):
    """First masks, corrected in the regions that each method proposes."""

    methods = {
        "random": METHODS["random"],
        "grid": METHODS["grid"],
        "cot": Method(policy="start"),
        "active": Method(policy="trained"),
        "oracle-regions": Method(
            by_rule(lambda example, regions: error_regions(Draft.of(example).error, regions)), "none"
        ),
    }
    default_methods = tuple(methods)

    def __init__(self, name: str, config: EvalConfig, rewards: TrainConfig | None = None) -> None:
        zooms = max(config.regions, *config.budgets, 0)
        self.columns = (*(f"mIoU@{k}" for k in range(zooms + 1)), "gain", "covered", "regions", "seconds")
        self.best = f"mIoU@{config.regions}"
        super().__init__(name, config, rewards)
        self.digits = max(3, config.digits)

    def task_models(self, method: str, policy: str, models: Models) -> list[str]:
        return list(models.task_models)

    def prepare(self, examples: Sequence[Example], models: Models) -> list[Example]:
        """The examples with their first masks, which SAM makes if it is there and --first_mask says so."""
        return self.task.prepare_batch(
            models.task_models.get("sam") or next(iter(models.task_models.values())), examples
        )

    def passes(self, setting: Setting) -> int:
        return 2

    def predict(self, setting: Setting, examples: Sequence[Example], models: Models, map: Map) -> list[Record]:
        """Regions, the IoU after every zoom into them, and the mask at the end."""
        config, policy, task_model = (
            self.config_of(setting),
            models[setting.policy],
            models.task_models[setting.task_model],
        )
        propose = self.methods[setting.method].propose or self._asked

        def rollouts(block: Sequence[Example]) -> list[Record]:
            return [rollout_record(rollout) for rollout in propose(policy, block, config)]

        def correct(block: Sequence[tuple[Example, Sequence[Region]]]) -> list[Record]:
            examples, regions = zip(*block)
            drafts = [Draft.of(example) for example in (blackened(examples) if setting.blind else examples)]
            return [
                _corrected(*pair) for pair in zip(drafts, zoom_and_click(task_model, drafts, regions, config.clicks))
            ]

        proposed = map(rollouts, examples, ("propose", "greedy" if policy else setting.method, policy, config))
        pairs = [(e, regions_of(r["regions"])) for e, r in zip(examples, proposed, strict=True)]
        corrected = map(correct, pairs, ("correct", task_model, config, setting.blind))
        return [
            one | two | {"seconds": one["seconds"] + two["seconds"]}
            for one, two in zip(proposed, corrected, strict=True)
        ]

    def _asked(self, policy: VisionLanguageModel, examples: Sequence[Example], config: Config) -> list[Rollout]:
        return greedy_rollouts(policy, self.task.under(config), examples)

    def metrics(self, setting: Setting, examples: Sequence[Example], records: Sequence[Record]) -> dict[str, Any]:
        """Mean IoU by zooms, gain and covered errors with their intervals over images, and regions per answer."""
        found = self._measured(setting.regions, examples, records)
        if self.config.parser != "strict":
            rollouts = [rollout_of(*pair) for pair in zip(examples, records)]
            strict = [
                record | {"ious": record["ious"][:1], "regions": []} if rollout.action.strict else record
                for record, rollout in zip(records, rollouts)
            ]
            last = [f"mIoU@{setting.regions}"]
            found |= strict_columns(self._measured(setting.regions, examples, strict), last) | shares(rollouts)
        return found | {"seconds": float(np.mean([record["seconds"] for record in records]))}

    def _measured(self, zooms: int, examples: Sequence[Example], records: Sequence[Record]) -> dict[str, Any]:
        images = [example.image_id for example in examples]
        ious = np.array(
            [one["ious"] + one["ious"][-1:] * (zooms + 1 - len(one["ious"])) for one in records]
        )  # (E, K + 1)
        held = [covered_error(Draft.of(e).error, regions_of(one["regions"])) for e, one in zip(examples, records)]
        columns = {f"mIoU@{k}": ious[:, k] for k in range(zooms + 1)} | {
            "gain": ious[:, -1] - ious[:, 0],
            "covered": held,
        }
        means = {
            name: intervals.bootstrap_interval(column, images, self.config.resamples)
            for name, column in columns.items()
        }
        return means | {"regions": float(np.mean([len(one["regions"]) for one in records]))}

    def sample(self, example: Example, record: Record, title: str) -> Sample:
        rollout = rollout_of(example, record)
        result = TaskResult(as_boxes([]), np.zeros(0), mask=rle_to_mask(record["mask"]))
        return Sample.of(rollout, result, self.task.reward(rollout, result), title)

    def write(self, folder: Path, examples: Sequence[Example], rows: Mapping[str, Row]) -> str:
        """Mean IoU over zooms, a line per row, as the paper's Fig. 3."""
        lines = {
            label: [
                (float(name.removeprefix("mIoU@")), cell)
                for name, cell in row.metrics.items()
                if name.startswith("mIoU@") and not name.endswith(STRICT)
            ]
            for label, row in rows.items()
        }
        outputs.leave_picture(folder / f"{self.name}-zooms.png", draw([Panel("mean IoU", "zooms", lines)], self.name))
        return ""


def _corrected(draft: Draft, steps: Sequence[np.ndarray]) -> Record:
    """The record of one example, whose masks (H, W) after 0, 1, ... zooms are ``steps``."""
    return {"ious": [metrics.mask_iou(mask, draft.true) for mask in steps], "mask": mask_to_rle(steps[-1])}
