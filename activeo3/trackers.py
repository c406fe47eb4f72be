"""Numbers where people keep them: a training run in TensorBoard and in Weights & Biases (``--report_to``).

A tracker mirrors the run's folder: the rows of metrics.jsonl, the rows of evaluations.jsonl, the pictures under
samples/, the table and the config, each value under the name that it has there. The folder is the truth. So a run that
is continued sends its tracker everything that the folder holds, and what a tracker had of steps that were lost with a
killed run is replaced: a curve has each step once.

    tensorboard    event files in OUTPUT_DIR/tensorboard: tensorboard --logdir OUTPUT_DIR
    wandb          OUTPUT_DIR/wandb; project, entity, key and mode are W&B's own variables (WANDB_PROJECT, WANDB_MODE).
                   Offline each start makes a folder that has the whole run: send the newest, wandb sync .../latest-run
"""

import dataclasses
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from activeo3 import outputs
from activeo3.config import ConfigError, TrainConfig
from activeo3.log import EVALUATIONS, RunLog, escape_markdown, read_rows, table
from activeo3.samples import steps_of

LIBRARIES = {"tensorboard": "tensorboard", "wandb": "wandb"}
"""A tracker and the library that it needs, which is also the name of our extra."""
WANDB_RUN = "wandb_run.txt"
"""Holds the id of the run in Weights & Biases, so that a continued run finds it."""


def check(config: TrainConfig) -> None:
    """Raise ConfigError if the library of a tracker of ``--report_to`` is not installed."""
    for name in config.report_to:
        if find_spec(LIBRARIES[name]) is None:
            raise ConfigError(f"--report_to {name} needs its library: install it with pip install {LIBRARIES[name]}.")


def run_log(config: TrainConfig, first_step: int, writes: bool) -> RunLog:
    """The console and metrics.jsonl of a run from ``first_step`` on, mirrored in the trackers of ``--report_to``.

    ``writes`` is True on one rank.
    """
    log = RunLog(Path(config.output_dir), config.steps, first_step=first_step, speaks=writes)
    if writes and config.report_to:
        log.mirror = Mirror(config, first_step)
        log.mirror.catch_up()
    return log


class Tracker(Protocol):
    """Where numbers are kept. Steps come in ascending order."""

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Named values of a step: numbers, words, None where there is none."""

    def picture(self, step: int, name: str, path: Path) -> None:
        """A picture file of a step."""

    def table(self, step: int, cells: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
        """The held-out table of a step, by rows; ``columns`` in their order."""

    def close(self) -> None:
        """Return when everything is kept."""


class Mirror:
    """The trackers of a run: sent what its folder holds, then each new row."""

    def __init__(self, config: TrainConfig, first_step: int) -> None:
        self.folder = Path(config.output_dir)
        kinds = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
        self.trackers: list[Tracker] = [kinds[name](config, first_step) for name in dict.fromkeys(config.report_to)]
        self._pictured = -1  # the newest step whose pictures were sent

    def catch_up(self) -> None:
        """Send the rows and pictures that the folder holds, in the order of their steps."""
        files = [self.folder / name for name in ("metrics.jsonl", EVALUATIONS)]
        rows = [row for path in files if path.exists() for row in read_rows(path)]
        for row in sorted(rows, key=lambda row: row["step"]):
            self.row(row)

    def row(self, row: Mapping[str, Any]) -> None:
        """Send the pictures of earlier steps that were not sent yet, and a row."""
        self._send_pictures(before=row["step"])
        for tracker in self.trackers:
            tracker.log(row["step"], row)
            if cells := table_of(row):
                tracker.table(row["step"], cells, list(dict.fromkeys(name for of_row in cells for name in of_row)))

    def close(self) -> None:
        """Send the last pictures, and return when the trackers have kept everything."""
        self._send_pictures(before=2**62)
        for tracker in self.trackers:
            tracker.close()

    def _send_pictures(self, before: int) -> None:
        for step, folder in steps_of(self.folder):
            if not self._pictured < step < before:
                continue
            self._pictured = step
            for path in sorted(folder.glob("*.jpg")):
                for tracker in self.trackers:
                    tracker.picture(step, f"samples/{path.stem}", path)


def numbers_of(values: Mapping[str, Any]) -> dict[str, float]:
    """The values that can stand in a curve; NaN and infinity, which are null in metrics.jsonl, as NaN.

    >>> numbers_of({"step": 3, "reward": 0.5, "kl": None, "lr": 1, "note": "x"})
    {'reward': 0.5, 'kl': nan, 'lr': 1.0}
    """
    known = {name: float("nan") if value is None else value for name, value in values.items() if name != "step"}
    return {name: float(value) for name, value in known.items() if isinstance(value, (bool, int, float))}


def table_of(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of the held-out table that a row of evaluations.jsonl holds; none in a row of a step.

    >>> table_of({"step": 4, "columns": ["AP"], "held_out/grid/AP": 0.2, "held_out/grid/AR": 0.3})
    [{'method': 'grid', 'AP': 0.2}]
    """
    found: dict[str, dict[str, Any]] = {}
    for name in (name for name in row if name.startswith("held_out/")):
        _, label, metric = name.split("/", 2)
        if metric in row["columns"]:
            found.setdefault(label, {"method": label})[metric] = row[name]
    return list(found.values())


class TensorBoard:
    """Event files that TensorBoard reads. Those of an earlier start are voided by the first event of a new one."""

    def __init__(self, config: TrainConfig, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        with outputs.enough_room(Path(config.output_dir)):
            self.writer = SummaryWriter(str(Path(config.output_dir) / "tensorboard"), purge_step=0)
        settings = json.dumps(dataclasses.asdict(config), indent=1).replace("\n", "\n    ")
        self.writer.add_text("config", f"    {settings}", 0)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        for name, value in numbers_of(values).items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def picture(self, step: int, name: str, path: Path) -> None:
        with Image.open(path, formats=["JPEG"]) as image:  # of our own
            self.writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def table(self, step: int, cells: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
        self.writer.add_text("table", escape_markdown(table(cells, columns)), step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases. Online, a step that it has already is not sent again."""

    def __init__(self, config: TrainConfig, first_step: int) -> None:
        import wandb

        folder, place = Path(config.output_dir), Path(config.output_dir) / WANDB_RUN
        known = place.read_text().strip() if first_step > 1 and place.is_file() else ""
        name = known or uuid.uuid4().hex[:8]
        outputs.leave(place, f"{name}\n".encode())
        offline = os.environ.get("WANDB_MODE", "online") != "online"
        self.run = wandb.init(
            dir=str(folder), id=name, name=folder.name, config=dataclasses.asdict(config),
            resume="allow" if known and not offline else None,
        )  # fmt: skip
        self.wandb, self.has = wandb, self.run.step

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        self._send(step, numbers_of(values))

    def picture(self, step: int, name: str, path: Path) -> None:
        self._send(step, {name: self.wandb.Image(str(path))})

    def table(self, step: int, cells: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
        rows = [[row.get(name) for name in columns] for row in cells]
        self._send(step, {"table": self.wandb.Table(columns=list(columns), data=rows)})

    def _send(self, step: int, values: Mapping[str, Any]) -> None:
        if step >= self.has:
            self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()
