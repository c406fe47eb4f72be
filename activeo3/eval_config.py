"""Every number of an evaluation, with its reason: the command line of evaluate.py.

What a policy is shown and how it answers is shared with training and stands in config.py.
"""

from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

from activeo3.config import MOST_REGIONS, Config, ConfigError, TrainConfig
from activeo3.paths import Place

METHODS = ("direct", "random", "grid", "fixed", "cot", "active", "oracle-regions")
MORE_METHODS = ("direct-native", "repeat", "answer")  # to be asked for
OF_A_CHECKPOINT = ("active", "repeat", "answer")  # one row for each checkpoint; the others are the same for all
MODES = ("baseline", "default", "strict_zoom", "oracle_crop")  # of episodes: modes.py
ABSENT = 0.2
"""The share of questions about absent categories in a table, also in that at the end of a run."""
TASK_MODELS = get_args(get_type_hints(TrainConfig)["task_model"])


@dataclass(frozen=True)
class EvalConfig(Config):
    """Evaluate a checkpoint beside every floor and ceiling, in one table."""

    checkpoint: tuple[Place, ...] = ()
    """the trained policy: a checkpoint folder of a run, or any model folder; several are rows of one table"""
    start: Place = Place("")
    """the untrained policy and the task model mllm; by default what the checkpoint was trained from"""
    benchmark: tuple[str, ...] = ()
    """data sets to evaluate on; by default --data"""
    methods: tuple[str, ...] = METHODS
    """rows of the table; beside the default ones there are: direct-native (the whole picture at its own
    size and shape), repeat (one region, sampled as often as there are regions) and answer (the checkpoint
    itself finds things, in the whole picture)"""
    mode: tuple[str, ...] = ()
    """how questions in words are asked in episodes, a row each: baseline (one look at the whole picture), default (may
    zoom), strict_zoom (no zoom, no answer) and oracle_crop (is shown where the answer is). Means --task zoom_qa,
    which takes baseline and default if nothing is said"""
    parser: Literal["auto", "strict", "lenient"] = "auto"  # type: ignore[assignment]
    """how answers are read: strict (in the form that was asked for) or lenient (boxes of any form, answers without tags).
    auto: lenient for a model that was not trained here, whose folder has no activeo3.json. Tables with a lenient row show
    both readings"""
    budgets: tuple[int, ...] = ()
    """also measure these numbers of regions, beside --regions: a curve of success over cost"""
    task_model: tuple[str, ...] = ("mllm",)
    """who works on the crops, one row each per method: mllm (--start, or --task_checkpoint), grounding-dino, sam (for --task
    segment), oracle (the ground truth in the regions, as far as their views show it). Questions in words (mme,
    mmbench, realworldqa, vstar) are answered by --start and --checkpoint instead"""
    black: bool = False
    """also give black crops to the task model, or to a policy that zooms: what it scores then does not come from looking"""
    absent: float = ABSENT
    """of LVIS: the share of questions about categories that are known to be absent from their picture, so that what is
    invented costs (data_absent.py)"""
    split: str = "test"
    """which part of the data set to evaluate on"""
    limit: int = 200
    """examples per benchmark; 0: all"""
    output_dir: Place = Place("")
    """where results.json and pictures go; by default eval/ in the checkpoint, or here for a hub id or for
    several checkpoints"""
    columns: tuple[str, ...] = ()
    """columns of the first table beside the method, e.g. AP_s AR_s AP_m AR_m AP_l AR_l (the paper's); by default a few
    that fit the data set. A benchmark shows those of them that it has; results.json has all"""
    digits: int = 2
    """decimals in the tables of boxes and one-shot tasks"""
    resamples: int = 1000
    """bootstrap resamples of the 95 % intervals"""
    image: Place = Place("")
    """a picture of your own: draw regions, and what comes of --find or --question, instead of a table"""
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
        if not all(1 <= budget <= MOST_REGIONS for budget in self.budgets):
            shown = " ".join(map(str, self.budgets))
            raise ConfigError(f"--budgets {shown}: a policy may propose 1 to {MOST_REGIONS} regions.")
        if not self.image and not self.benchmark:
            self._needs_root()
        for flag, known in (("methods", METHODS + MORE_METHODS), ("task_model", TASK_MODELS), ("mode", MODES)):
            wanted = getattr(self, flag)
            unknown = " ".join(name for name in wanted if name not in known)
            if unknown:
                raise ConfigError(f"--{flag} {unknown} not known; there are: {', '.join(known)}.")
            if not wanted and flag != "mode":
                raise ConfigError(f"--{flag} names none; there are: {', '.join(known)}.")
        self._needs_detector(*self.task_model)
        if self.mode and (self.image or self.task not in ("sense", "zoom_qa")):
            what = "--image" if self.image else f"--task {self.task}"
            raise ConfigError(f"--mode is how questions are asked in episodes: leave out {what}, or --mode.")
        if self.limit < 0:
            raise ConfigError(f"--limit is {self.limit}; it cannot be negative (0: all).")
        if not 0 <= self.digits <= 10:
            raise ConfigError(f"--digits is {self.digits}; tables have 0 to 10 decimals.")
        if self.resamples < 0:
            raise ConfigError(f"--resamples is {self.resamples}; it cannot be negative (0: no intervals).")

    def _check_picture(self) -> None:
        """Raise ConfigError if the flags about a picture of the user's do not go together."""
        asked = [flag for flag in ("find", "question") if getattr(self, flag)]
        if len(asked) > 1 or bool(self.image) != bool(asked):
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
