"""Every number of an evaluation, with its reason: the command line of evaluate.py.

What a policy is shown and how it answers is shared with training and stands in config.py.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args, get_type_hints

from activeo3.cli import Range, check_known, is_code
from activeo3.config import Config, ConfigError, Natural, Regions, Share, TrainConfig
from activeo3.paths import Place

METHODS = (
    "direct", "direct-native", "random", "grid", "fixed", "cot", "active", "repeat", "answer", "oracle-regions",
)  # fmt: skip
"""Every method of eval_baselines.py; a benchmark has some of them."""
MODES = ("baseline", "default", "strict_zoom", "oracle_crop")  # of episodes: eval_zoom_qa.py
ABSENT = 0.2
"""The share of questions about absent categories in a table, also in that at the end of a run."""
TASK_MODELS = get_args(get_type_hints(TrainConfig)["task_model"])


@dataclass(frozen=True)
class EvalConfig(Config):
    """Evaluate checkpoints beside every baseline and ceiling, in one table."""

    EVERYDAY: ClassVar[tuple[str, ...]] = (
        "checkpoint", "benchmark", "preset", "data_root", "split", "limit", "methods", "task_model", "budgets", "image",
        "find", "question", "output_dir",
    )  # fmt: skip

    # ---- what is compared, on which data
    checkpoint: tuple[Place, ...] = ()
    """the trained policy: a checkpoint folder of a run, or any model folder; several are rows of one table"""
    start: Place = Place("")
    """the untrained policy and the task model mllm; by default what the checkpoint was trained from"""
    benchmark: tuple[str, ...] = ()
    """data sets to evaluate on; by default --data"""
    methods: tuple[str, ...] = ()
    """rows of the table, by default those that fit the benchmark: direct, random, grid, fixed, cot, active,
    oracle-regions. Of boxes there are also direct-native (the whole image at its own size and shape), repeat (one
    region, sampled as often as there are regions) and answer (the checkpoint itself finds things, in the whole
    image)"""
    mode: tuple[str, ...] = ()
    """how questions in words are asked in episodes, a row each: baseline (one look at the whole picture), default (may
    zoom), strict_zoom (no zoom, no answer) and oracle_crop (is shown where the answer is). Means --task zoom_qa,
    which takes baseline and default if nothing is said"""
    parser: Literal["auto", "strict", "lenient"] = "auto"  # type: ignore[assignment]
    """how answers are read: strict (in the form that was asked for) or lenient (boxes of any form, answers without
    tags). auto: lenient for a model that was not trained here, whose folder has no activeo3.json. Tables with a lenient
    row show both readings"""
    budgets: tuple[Regions, ...] = ()
    """also measure these numbers of regions, beside --regions (of zooms, beside --max_zooms): a curve of success over
    cost"""
    task_model: tuple[str, ...] = ("mllm",)
    """who works on the crops, one row each per method: mllm (--start, or --task_checkpoint), detector (of
    transformers), sam (for --task segment), oracle (the ground truth in the regions, as far as their views show it), or
    a function of yours, my_detector.py:find. Questions in words (mme,
    mmbench, realworldqa, vstar) are answered by --start and --checkpoint instead"""
    black: bool = False
    """also make every row with black images: what it scores then does not come from looking. Black are the crops of a
    task model, what a zoom shows, or the image of a task without zooms"""
    split: str = "test"
    """which part of the data set to evaluate on"""
    limit: Natural = 200
    """examples per benchmark; 0: all"""
    output_dir: Place = Place("")
    """where results.json and pictures go; by default eval/ in the checkpoint, or here for a hub id or for
    several checkpoints"""
    # ---- tables
    columns: tuple[str, ...] = ()
    """columns of the first table beside the method, e.g. AP_s AR_s AP_m AR_m AP_l AR_l (the paper's); by default a few
    that fit the data set. A benchmark shows those of them that it has; results.json has all"""
    digits: Annotated[int, Range(0, 10)] = 2
    """decimals in the tables of boxes and one-shot tasks"""
    resamples: Natural = 1000
    """bootstrap resamples of the 95 % intervals"""
    # ---- data sets: --data_options
    absent: Share = ABSENT
    """of LVIS: the share of questions about categories that are known to be absent from their picture, so that what is
    invented costs (data_coco.py)"""

    # ---- a picture of your own
    image: Place = Place("")
    """a picture of your own: draw regions, and what comes of --find or --question, instead of a table; scenes:1 is a
    picture of the embedded world, which has a query of its own"""
    find: str = ""
    """what to find in --image"""
    question: str = ""
    """a question in words about --image: the checkpoint says where to look, and answers"""
    options: tuple[str, ...] = ()
    """answers of --question to choose from, without letters"""
    protocol: Literal["together", "per_crop"] = "together"
    """how --question is asked about the crops: together (the picture and all crops in one prompt), or per_crop (each
    crop alone, as in the authors' demo)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.checkpoint:
            raise ConfigError("--checkpoint is missing: name a checkpoint folder, e.g. --checkpoint data/tiny.")
        self._check_picture()
        if self.image and len(self.checkpoint) > 1:
            raise ConfigError("--image shows what one policy does; name one --checkpoint.")
        for flag, known in (("methods", METHODS), ("task_model", TASK_MODELS), ("mode", MODES)):
            wanted = getattr(self, flag)
            check_known(flag, [name for name in wanted if flag != "task_model" or not is_code(name)], known)
            if not wanted and flag == "task_model":
                raise ConfigError(f"--{flag} names none; there are: {', '.join(known)}.")
        self._check_named(data=not self.image and not self.benchmark)
        if self.mode and (self.image or self.task not in ("sense", "zoom_qa")):
            what = "--image" if self.image else f"--task {self.task}"
            raise ConfigError(f"--mode is how questions are asked in episodes: leave out {what}, or --mode.")

    @property
    def scene(self) -> int | None:
        """The number of a picture of the embedded world, ``--image scenes:1``; None for a file."""
        name, _, number = self.image.partition(":")
        return int(number) if name == "scenes" and number.isdecimal() and not Path(self.image).exists() else None

    def _check_picture(self) -> None:
        """Raise ConfigError if the flags about a picture of the user's do not go together."""
        asked = [flag for flag in ("find", "question") if getattr(self, flag)]
        if len(asked) > 1 or bool(self.image) != bool(asked) and self.scene is None:
            raise ConfigError("--image goes with one of --find and --question: --image photo.jpg --find 'red star'.")
        if self.image and self.task != "sense" and (self.find or self.task != "zoom_qa"):
            raise ConfigError(f"--image is looked at: leave out --task {self.task}.")
        for flag in ("options", "protocol"):
            if not self.question and getattr(self, flag) != getattr(EvalConfig, flag):
                raise ConfigError(f"--{flag} belongs to --question 'What is it?' about --image photo.jpg.")
        if self.protocol == "per_crop" and self.task == "zoom_qa":
            raise ConfigError(
                "--protocol per_crop asks about crops; with --task zoom_qa the policy answers itself: leave out one."
            )
        if self.options and not 2 <= len(self.options) <= 26:
            raise ConfigError(f"--options has {len(self.options)}; there must be 2 to 26 to choose from.")
