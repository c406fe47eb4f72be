"""Every number of an experiment, each with one owner and its reason.

``TrainConfig`` holds what decides a result, ``ds_config.json`` how DeepSpeed runs on this machine. The command line is the
dataclass: ``--group 16`` sets the field ``group``, and the text under a field is its help. A preset is a set of values that
belong together. Several are merged in their order, so a situation and a variant need no preset of their own
(``--preset paper gspo``); flags win.
"""

import dataclasses
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Collection, Literal, Mapping, Self, Sequence

from activeo3 import paths
from activeo3.cli import ConfigError, Range, check_fields, check_known, fields_of, numbers, read_flags
from activeo3.data_images import MOST_PIXELS
from activeo3.paths import Place
from activeo3.presets import PRESETS

MOST_REGIONS = 10
TASKS = ("sense", "direct", "segment", "zoom_qa", "grounding", "counting", "ocr", "detection")
"""The names of tasks.TASKS, here so that a wrong one is answered before torch is imported."""
DRAWN = {"scenes", "close_ups", "plates"}  # data sets that need no files

Positive = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Share = Annotated[float, Range(0, 1)]
Regions = Annotated[int, Range(1, MOST_REGIONS)]


@dataclass(frozen=True)
class Config:
    """The flags that training and evaluation share."""

    EVERYDAY: ClassVar[tuple[str, ...]] = ()
    """The flags that ``--help`` prints; ``--help all`` prints all."""

    # ---- what is learned, on which data
    preset: tuple[str, ...] = ("tiny",)
    """sets of values, merged in this order: a situation (tiny: a laptop; paper: Qwen2.5-VL-7B as in ACTIVE-O3 E.2), a whole
    task such as zoom_qa or refcoco, and variants such as gspo; presets.py lists them"""
    task: str = "sense"
    """sense (propose regions to zoom into), direct (find things without a zoom: Direct RFT), segment (propose where a mask is
    wrong), zoom_qa (answer a question after zooms), or, in one step (Perception-R1): grounding, counting, ocr, detection"""
    data: tuple[str, ...] = ("scenes",)
    """the data set, or several that are mixed: scenes (the embedded world), coco (any folder in COCO's format), or another
    that python -m activeo3.data lists"""
    data_root: Place = Place("")
    """the folder of data sets that live on disk"""
    seed: Annotated[int, Range(0, 2**22 - 1)] = 0  # every rank's seed is made of it and must stay below 2**32
    """decides the order of the data and every sampled token"""

    # ---- data sets: --data_options
    tile: int = 800
    """SODA's pictures are cut into tiles of so many pixels (its authors: 800); 0: left whole"""
    tile_overlap: Natural = 150
    """neighbouring tiles share so many pixels (SODA's authors: 150)"""
    selection_seed: Natural = 0
    """draws LVIS's questions, SODA's training tiles, the order of V*Bench's options"""
    absent: Share = 0.0
    """LVIS: share of questions about categories known to be absent from the picture (evaluation: 0.2)"""
    max_image_pixels: Annotated[int, Range(2**20)] = MOST_PIXELS  # pictures that are drawn here are below the limit
    """a picture file that states more pixels is left out before it is decoded, which takes up to 20 bytes a pixel"""

    # ---- what the model sees
    sensing_side: Positive = 96
    """shorter side of the whole picture as the policy sees it, in pixels (paper: 1024)"""
    max_view_pixels: int = 2**22
    """most pixels of that view; a larger one is shrunk, its aspect kept. Pictures up to 4:1 stay whole at the paper's 1024"""
    crop_side: Positive = 128
    """a crop is seen at crop_side x crop_side pixels (paper: 840)"""
    crop_shape: Literal["square", "aspect"] = "square"
    """square: every crop is resized to crop_side x crop_side (paper); aspect: its shape is kept, its area at least that"""

    # ---- prompts and answers
    wording: Literal["paper", "short", "zoom_roi"] = "short"
    """prompts: the paper's seven sentences, or the tiny policy's few words; zoom_roi: the paper's, with Active-Perception-R1's
    call in place of a box in json (of --task zoom_qa)"""
    thinking: bool = False
    """grounding, counting, ocr, detection: think before the answer (Perception-R1 found it to hurt)"""
    parser: Literal["strict", "lenient"] = "strict"
    """how answers are parsed: in the form that was asked for, or boxes of any form; the format reward is always strict"""
    regions: Regions = 3
    """how many regions an answer may propose (paper: 3)"""
    max_new_tokens: Positive = 96
    """longest answer of the policy, in tokens; in an episode, the longest turn"""

    # ---- episodes of several turns (zoom_qa)
    max_turns: Positive = 5
    """most turns of the policy in an episode; 1: it must answer at once"""
    max_zooms: Natural = 3
    """most zooms in an episode; a rejected zoom counts"""
    min_zooms: int = 0
    """zooms that an episode must have had before its answer counts; an earlier answer ends it without one"""
    looks_at_once: Regions = 1
    """how many regions one turn may ask for; each is a zoom. ACTIVE-O3's one step with 3 regions is
    --looks_at_once 3 --max_turns 2 --max_zooms 3"""
    memory: Literal["views", "notes"] = "views"
    """which images stay visible: all, or only the latest (earlier ones are masked, their text remains)"""

    # ---- episodes of several turns (zoom_qa): --episode_options
    episode_tokens: int = 1024
    """longest episode behind its prompt; it ends before an observation that does not fit"""
    least_zoom: float = 0.02
    """smallest region that an episode is shown, as a share of the area of the view it is in"""
    most_zoom: float = 0.65
    """largest region that an episode is shown, likewise"""

    # ---- the task model, which works on the crops
    task_checkpoint: Place = Place("")
    """the model of --task_model grounding-dino or sam, a folder or a hub id. With --task_model mllm alone: another language
    model, frozen, in place of the start policy"""
    task_max_new_tokens: Positive = 128
    """longest answer of the task model per crop, in tokens"""
    merge: Literal["nms", "concat"] = "nms"
    """boxes of several crops: non-maximum suppression at IoU 0.5, or all of them (the authors' demo)"""
    first_mask: Literal["coarse", "sam"] = "coarse"
    """the mask to be corrected: coarse (the truth at low resolution, with seeded holes and leaks) or sam (what --task_model sam
    makes of one click on the whole picture)"""

    # ---- the task model, which works on the crops: --task_options
    task_batch: Positive = 128
    """crops in one batch, or as many as a GPU's memory holds (a detector: at most 16)"""
    box_threshold: Share = 0.25
    """a detector's box counts from this score on"""
    text_threshold: Share = 0.25
    """a detector's box belongs to the query if one of its words has this score"""
    least_seen: Annotated[float, Range(0)] = 16.0
    """the oracle finds things from this size on, in pixels of the crop's view: a visual token's side (28 for Qwen2.5-VL). 0: of
    any size, and masks to the pixel"""
    clicks: Positive = 3
    """clicks of the oracle in every region, for --task_model sam: the paper names no number"""

    # ---- how it is computed
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 on a GPU, float32 on a CPU"""
    attention: Literal["auto", "flex", "sdpa", "flash_attention_2", "flash_attention_3", "eager"] = "auto"
    """kernels of the vision tower. auto: flash-attention if it works here, else sdpa; packed rows use sdpa, whose mask
    flash-attention does not take. flex: FlexAttention for packed rows, on a GPU, for answers longer than the prompt"""

    def __post_init__(self) -> None:
        check_fields(self)
        for field in dataclasses.fields(self):
            if field.type in (Place, tuple[Place, ...]):  # the dataclass is frozen, and this is still its making
                object.__setattr__(self, field.name, _expanded(field.name, getattr(self, field.name)))
        if not 0 <= self.least_zoom < self.most_zoom <= 1:
            sizes = f"least_zoom={self.least_zoom} must lie below most_zoom={self.most_zoom}"
            raise ConfigError(f"--episode_options {sizes}, both in 0 to 1.")
        if not 0 <= self.min_zooms <= min(self.max_zooms, (self.max_turns - 1) * self.looks_at_once):
            limits = f"between 0 and --max_zooms {self.max_zooms}, and leave a turn of --max_turns {self.max_turns}"
            raise ConfigError(f"--min_zooms is {self.min_zooms}; it must lie {limits} to answer in.")
        if self.max_view_pixels < self.sensing_side**2:
            square = f"even a square picture with --sensing_side {self.sensing_side} has {self.sensing_side**2}"
            raise ConfigError(f"--max_view_pixels is {self.max_view_pixels}; {square}.")
        if not self.data:
            raise ConfigError("--data names no data set.")
        if not 0 <= self.tile_overlap < (self.tile or 2**16):
            raise ConfigError(f"--data_options tile_overlap is {self.tile_overlap}; it must be below tile={self.tile}.")
        if self.absent == 1:
            raise ConfigError("--data_options absent is 1.0; some questions must have an answer: give less than 1.")

    def decided(self, trained_here: bool) -> Self:
        """The config for the answers of one model, of which --parser auto asks whether it was trained here."""
        if self.parser in ("strict", "lenient"):
            return self
        return dataclasses.replace(self, parser="strict" if trained_here else "lenient")

    @property
    def dataset_options(self) -> tuple[int, int, int, float]:
        """What ``data.open_dataset`` is told about tiles, the draw of questions and absent ones, in its order."""
        return self.tile, self.tile_overlap, self.selection_seed, self.absent

    def _needs_root(self) -> None:
        """Raise ConfigError if --data lies on disk and no folder is named."""
        if not set(self.data) <= DRAWN and not self.data_root:
            raise ConfigError(f"--data {' '.join(self.data)} lives on disk: say where with --data_root FOLDER.")

    def _needs_detector(self, *task_models: str) -> None:
        """Raise ConfigError if a detector or SAM is wanted and none is named."""
        for name, kind in (("grounding-dino", "a detector"), ("sam", "a Segment Anything model")):
            if name in task_models and not self.task_checkpoint:
                raise ConfigError(f"--task_model {name} needs {kind}: name it with --task_checkpoint FOLDER.")

    @property
    def task_model_names(self) -> tuple[str, ...]:
        """The values of ``--task_model``: one in training, several in evaluation."""
        named = getattr(self, "task_model", ())
        return (named,) if isinstance(named, str) else tuple(named)

    @property
    def other_mllm(self) -> str:
        """The language model in place of the start policy: what --task_checkpoint names, unless a detector does."""
        names = set(self.task_model_names)
        return self.task_checkpoint if "mllm" in names and not names & {"grounding-dino", "sam"} else ""

    def expert_name(self, task_model: str) -> str:
        """How tables name a task model: a language model that is not the start policy with its folder, ``mllm-Qwen2.5-VL-72B``."""
        if task_model != "mllm" or not self.other_mllm:
            return task_model
        parts = Path(paths.cached(self.other_mllm) or os.path.normpath(self.other_mllm)).parts
        return "-".join(["mllm", *parts[-2 if parts[-1].startswith("checkpoint-") else -1 :]])

    @classmethod
    def from_args(cls, argv: Sequence[str] | None = None, known: Mapping[str, Collection[str]] = {}) -> Self:
        """Read the command line; ``--help`` prints the flags with their reasons.

        ``known`` has the names that a flag may have, such as all data sets. Raises ConfigError.
        """
        given = read_flags(cls, argv, cls.EVERYDAY, f"presets: {', '.join(PRESETS)}")
        presets = given.get("preset", cls.preset)
        if not presets:
            raise ConfigError(f"--preset names none; there are: {', '.join(PRESETS)}.")
        for flag, choices in {"preset": PRESETS, "task": TASKS, **known}.items():
            named = given.get(flag, ())
            check_known(flag, [named] if isinstance(named, str) else named, choices)
        # A preset describes a training run; an evaluation takes from it what both scripts share.
        taken = {field.name for field in dataclasses.fields(cls if cls is TrainConfig else Config)}
        values = {key: value for name in presets for key, value in PRESETS[name].items() if key in taken} | given
        if cls is TrainConfig:
            values.setdefault("output_dir", f"runs/{'-'.join(presets)}")
            weights = [PRESETS[name].get("reward_weights", ()) for name in presets]  # those of other terms stay
            values["reward_weights"] = sum(weights, ()) + given.get("reward_weights", ())
        return cls(**values)


@dataclass(frozen=True)
class TrainConfig(Config):
    """Train a vision-language model to propose regions worth zooming into (ACTIVE-O3, GRPO)."""

    EVERYDAY: ClassVar[tuple[str, ...]] = (
        "preset", "task", "data", "data_root", "model", "output_dir", "steps", "prompts", "group", "lr", "lora", "seed",
    )  # fmt: skip

    # ---- what is learned, on which data
    model: Place = Place("data/tiny")
    """the start policy, which is also the frozen reference and the task model mllm: a folder or a hub id"""
    split: str = "train"
    """which part of the data set to train on"""
    limit: Natural = 0
    """use only the first N examples of the split; 0: all"""
    curriculum: Place = Place("")
    """a ranking of these examples from easy to hard, made by python -m activeo3.curriculum"""
    stage: int = 1
    """which part of the ranked examples to train on, from 1, the easiest, to --stages"""
    stages: int = 1
    """how many parts of equal size the ranking has; 1: no curriculum, all examples"""

    # ---- the task model, which works on the crops
    task_model: Literal["mllm", "grounding-dino", "sam", "oracle"] = "mllm"
    """mllm (the start policy, frozen, or another model by --task_checkpoint), grounding-dino, sam (for --task segment), or oracle
    (the ground truth in the regions, as far as their views show it)"""

    # ---- steps
    steps: Positive = 160
    """each samples P x G answers per rank and updates the policy --epochs times. A larger number continues a run that is over"""
    prompts: int = 4
    """P: prompts per rank and step"""
    group: int = 8
    """G: answers sampled per prompt (paper: 8)"""
    micro_prompts: int = 4
    """prompts per forward and backward pass of the update; smaller needs less memory, with the same result"""
    scoring: Literal["auto", "packed", "cached", "rows"] = "auto"
    """log-probabilities of a group, with the same result: packed (one row with the prompt), cached (a batch behind the prompt's
    cache), rows (the prompt again for each), or auto: packed, and cached for models with a running state, like Qwen3.5"""
    recompute: bool = False
    """activation checkpointing: much less memory for a third more time in the update, with the same result"""
    epochs: Positive = 1
    """updates per rollout; with 1 the sampling policy is the current one and the ratio is 1"""
    temperature: Annotated[float, Range(0.01)] = (
        1.0  # logits are divided by it, and tiny numbers would make them infinite
    )
    """of the sampled answers; log-probabilities are taken at the same temperature"""

    # ---- the update
    lr: Annotated[float, Range(0, open=True)] = 1.5e-4
    """learning rate (paper: 1e-6 for the 7B)"""
    train_only: str = "self_attn"
    """train only the parameters whose name matches this regular expression; empty: all (paper). With few answers per step the
    other parameters of the tiny policy follow the noise of the gradient: its answers lost their format"""
    lora: Natural = 0
    """rank of LoRA adapters of the matrices of the text tower that --train_only names; the reference is the same model without
    them; 0: no adapters (paper)"""
    beta: Annotated[float, Range(0)] = 0.04
    """weight of the KL to the reference (paper: 0.04); 0 needs no reference pass"""
    normalise: Literal["response", "token", "constant"] = "response"
    """mean over an answer's tokens first (GRPO), over all tokens (DAPO), or by a constant length (Dr. GRPO)"""
    ratio: Literal["token", "sequence", "geometric", "none"] = "token"
    """the policy ratio per token (GRPO), per answer (GSPO), per answer from clipped tokens (GMPO), or no ratio and no clip
    (REINFORCE, RLOO, GPG); with one update per rollout all have the same gradient"""
    advantage: Literal["group", "leave_one_out", "batch", "group_batch", "rescaled"] = "group"
    """what a reward is compared with: its group's mean and spread (GRPO), its siblings' mean (RLOO), mean and spread of the step
    (REINFORCE++), the group's mean and the step's spread (with baseline), or the group's mean, scaled up for groups without
    spread (GPG)"""

    # ---- the update: --update_options
    warmup: Natural = 10
    """steps of linear warm-up of the learning rate"""
    weight_decay: Annotated[float, Range(0)] = 0.01
    """of AdamW (paper: 0.01)"""
    grad_clip: Annotated[float, Range(0, open=True)] = 1.0
    """largest norm of a gradient"""
    clip_low: float = 0.2
    """the ratio is clipped from below at 1 - clip_low"""
    clip_high: Annotated[float, Range(0, open=True)] = 0.2
    """the ratio is clipped from above at 1 + clip_high (DAPO's clip-higher: 0.28)"""
    divide_by_std: bool = True
    """divide by the group's spread (GRPO); false: only subtract the mean (Dr. GRPO). For --advantage group"""

    # ---- the reward
    reward_weights: tuple[str, ...] = ()
    """weights of terms that differ from the task's defaults, as NAME=NUMBER; 0 is an ablation: format=0 task=2. The first lines of
    a run show all of them; a preset's weights stay unless they are named again"""
    coverage: Literal["contain", "iou", "purity", "recall"] = "contain"
    """true boxes with 90 % of their area in one region (ours), or with IoU >= 0.5 to one (paper B.4 b), or regions that are at
    least 10 % object (B.4 a). Of a mask's errors: their share in the regions times the share of the picture left out (ours),
    or without that (recall: 4.4)"""
    mask_truncated: bool = False
    """truncated answers get reward NaN and are excluded from their group, instead of counting as wrong (Mini-o3)"""

    # ---- the reward: --reward_options
    evidence: Literal["union", "per_call"] = "union"
    """zoom_qa: every place counts once, and less for large regions (ours); or per call, as Active-Perception-R1 does"""
    evidence_gate: bool = True
    """zoom_qa: evidence counts as far as the answer is right; false: also for a wrong answer"""
    perception_reward: Literal["f1", "paper"] = "f1"
    """counting, detection: F1 of all boxes of an answer, or Perception-R1's terms, which can be earned blind (matching.py)"""
    matching: Literal["hungarian", "sequential"] = "hungarian"
    """counting, detection: the best assignment, or first with first (Perception-R1's ablation: 8 AP less)"""
    iou_power: Literal[1, 2] = 1
    """grounding: reward IoU (Perception-R1's text) or its square (its code)"""
    places: Literal["near", "distance", "inside"] = "near"
    """counting: a point earns 1 at a thing's centre and 0 a thing's size away (near), 1 - its distance in the picture
    (Perception-R1), or 1 inside the true box"""

    # ---- what a run keeps
    output_dir: Place = Place("runs/tiny")
    """where the run leaves its files; an unfinished run there is continued. By default named after the presets"""
    resume_from: Literal["newest", "earlier"] = "newest"
    """the checkpoint that a run is continued from: the newest, which must be whole, or the newest one that is whole (damaged ones
    are renamed)"""
    save_every: Positive = 40
    """steps between checkpoints"""
    keep: Natural = 2
    """how many checkpoints to keep; 0: all"""
    save_on_exit: bool = False
    """when Ctrl-C or SIGTERM asks for the end: finish the step in hand and write a checkpoint first"""
    samples_every: Natural = 20
    """steps between saved sample pictures; 0: none"""
    eval_examples: Natural = 48
    """held-out pictures for the table at the end; 0: no table"""
    eval_split: str = "val"
    """which part of the data set to hold out"""
    max_skipped: Positive = 5
    """stop after so many steps in a row with a skipped update, or a reward left out, because it was not finite"""

    # ---- how it is computed
    ds_config: Place = Place("ds_config.json")
    """DeepSpeed's own settings"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._needs_root()
        self._needs_detector(self.task_model)
        self.given_weights  # noqa: B018  raises ConfigError
        if self.group < 2:
            raise ConfigError(f"--group is {self.group}; an answer needs at least one sibling to be compared with.")
        if not 1 <= self.micro_prompts <= self.prompts or self.prompts % self.micro_prompts:
            raise ConfigError(f"--prompts {self.prompts} must be a multiple of --micro_prompts {self.micro_prompts}.")
        if not 1 <= self.stage <= self.stages:
            raise ConfigError(f"--stage is {self.stage}; it must lie between 1 and --stages {self.stages}.")
        try:
            re.compile(self.train_only)
        except re.error as error:
            raise ConfigError(f"--train_only {self.train_only!r} is no regular expression: {error}.") from None
        if self.advantage != "group" and not self.divide_by_std:
            here = f"and --advantage is {self.advantage}"
            raise ConfigError(f"--update_options divide_by_std=false belongs to --advantage group, {here}.")
        if not 0 < self.clip_low < 1:
            raise ConfigError("--update_options clip_low must lie between 0 and 1.")

    @property
    def given_weights(self) -> dict[str, float]:
        """What ``--reward_weights`` names; of a term that is named twice the last weight counts. Raises ConfigError."""
        return numbers("--reward_weights", self.reward_weights)

    def lr_at(self, step: int) -> float:
        """Learning rate of step 1, 2, ...: linear warm-up, then constant."""
        return self.lr * min(1.0, step / max(1, self.warmup))

    def differences(self, other: dict[str, Any]) -> list[str]:
        """Sentences for the fields that decide the result and differ from an earlier run's."""
        mine = json.loads(json.dumps(dataclasses.asdict(self)))  # as the other's: with lists for tuples
        names = [name for name in mine if name not in _FREE and mine[name] != other.get(name)]
        names = [name for name in names if not (name in _PLACES and self._same_place(name, other.get(name)))]
        flags = {name: field.flag for name, field in fields_of(type(self)).items()}
        return [f"{flags[name]} was {other.get(name)!r} and is now {mine[name]!r}" for name in names]

    def _same_place(self, name: str, other: Any) -> bool:
        """Does an earlier run of the same ``output_dir`` name the same place in another spelling?"""
        return isinstance(other, str) and paths.same(getattr(self, name), paths.beside(Path(self.output_dir), other))


def _expanded(name: str, value: Any) -> Any:
    """The value of a field of places, each of them expanded."""
    if isinstance(value, tuple):
        return tuple(paths.expanded(text, name) for text in value)
    return paths.expanded(value, name)


_PLACES = {field.name for field in dataclasses.fields(TrainConfig) if field.type is Place}
_FREE = set(
    "preset output_dir data_root save_every keep save_on_exit samples_every eval_examples eval_split ds_config max_skipped "
    "max_image_pixels task_batch steps recompute scoring resume_from".split()
)
"""What may change when a run is continued: where things lie and how much is kept or shown."""
