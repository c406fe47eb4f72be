"""Every number of an experiment, each with one owner and its reason.

``TrainConfig`` holds what decides a result, ``ds_config.json`` how DeepSpeed runs on this machine. The command line is
the dataclass (cli.py): ``--group 16`` sets the field ``group``, the text under a field is its help. Presets are merged
in their order (``--preset paper gspo``); flags win.
"""

import dataclasses
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Collection, Literal, Mapping, Self, Sequence

from activeo3 import paths, user_code
from activeo3.cli import OR_CODE, ConfigError, Range, check_fields, check_regex, fields_of, is_code, numbers, refuse
from activeo3.data_images import MOST_PIXELS
from activeo3.data_set import HUB
from activeo3.paths import Place
from activeo3.presets import from_command_line
from activeo3.prompt_file import read_templates
from activeo3.prompts import Wording
from activeo3.types import Sampling

# The names of tasks.TASKS, so that a wrong one is answered before torch is imported:
TASKS = ("sense", "direct", "act", "segment", "zoom_qa", "grounding", "counting", "ocr", "detection")
TASK_ROLE = ("direct", "act")  # tasks whose question is the task model's own
DRAWN = {"scenes", "close_ups", "plates", "mixed"}  # data sets that need no files

Positive = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Share = Annotated[float, Range(0, 1)]
PLACES = (Place, tuple[Place, ...])
Regions = Annotated[int, Range(1, 10)]


@dataclass(frozen=True)
class Config:
    """The flags that training and evaluation share."""

    EVERYDAY: ClassVar[tuple[str, ...]] = ()  # the flags that --help prints

    # ---- what is learned, on which data
    preset: tuple[str, ...] = ("tiny",)
    """sets of values, merged in this order: a situation (tiny: a laptop; paper: Qwen2.5-VL-7B as in ACTIVE-O3 E.2), a
    whole task such as zoom_qa or refcoco, and variants such as gspo; presets.py lists them"""
    task: str = "sense"
    """sense (propose regions to zoom into), direct (find things, no zoom), segment (propose where a mask is wrong),
    zoom_qa (answer after zooms), or, in one step (Perception-R1): grounding, counting, ocr, detection; or a class of
    yours, my_task.py:MyTask"""
    data: tuple[str, ...] = ("scenes",)
    """a data set, or several that are mixed: scenes (embedded world), yours as coco, jsonl, yolo or hub:NAME; python -m
    activeo3.data has all"""
    data_root: Place = Place("")
    """the folder of data sets that live on disk"""
    holdout: Share = 0.0
    """of your own data: the share of the training pictures that is held out, as the split val (selection_seed draws)"""
    seed: Annotated[int, Range(0, 2**22 - 1)] = 0  # every rank's seed is made of it and must stay below 2**32
    """decides the order of the data and every sampled token"""

    # ---- data sets: --data_options
    extension: str = ""
    """a Python file of yours that registers data sets (data_set.py); it is run before names are looked up"""
    tile: int = 800
    """SODA's pictures are cut into tiles of so many pixels (its authors: 800); 0: left whole"""
    tile_overlap: Natural = 150
    """neighbouring tiles share so many pixels (SODA's authors: 150)"""
    selection_seed: Natural = 0
    """draws LVIS's questions, SODA's training tiles, the order of V*Bench's options"""
    absent: Share = 0.0
    """LVIS: share of questions about categories known to be absent from the picture (evaluation: 0.2)"""
    box_format: Literal["auto", "xyxy", "xywh", "cxcywh", "xyxy_unit", "xywh_unit", "cxcywh_unit"] = "auto"
    """jsonl, hub: corners, or a corner or the centre with width and height; in pixels, or unit: from 0 to 1. auto:
    xyxy; xywh under the name bbox, as in COCO"""
    data_columns: str = ""
    """hub: which column holds what, as image=photo,query=caption,boxes=objects.bbox; by default their usual names"""
    subset: str = ""
    """hub: which of the data set's configurations"""
    max_image_pixels: Annotated[int, Range(2**20)] = MOST_PIXELS  # pictures that are drawn here are below the limit
    """a picture file that states more pixels is left out before it is decoded, which takes up to 20 bytes a pixel"""

    # ---- what the model sees
    sensing_side: Positive = 96
    """shorter side of the whole picture as the policy sees it, in pixels (paper: 1024)"""
    max_view_pixels: int = 2**22
    """most pixels of that view; a larger one is shrunk, its aspect kept. Up to 4:1 it is whole at the paper's 1024"""
    crop_side: Positive = 128
    """a crop is seen at crop_side x crop_side pixels (paper: 840)"""
    crop_shape: Literal["square", "aspect"] = "square"
    """square: crops are resized to crop_side x crop_side (paper); aspect: the shape is kept, the area at least that"""

    # ---- prompts and answers
    wording: Literal["paper", "short", "zoom_roi"] = "short"
    """prompts: the paper's, the tiny policy's short ones, or the paper's with Active-Perception-R1's call (zoom_qa)"""
    prompt_file: Place = Place("")
    """a toml or json file with prompts of yours; python -m activeo3.prompt_file prints all that can be replaced"""
    thinking: bool = False
    """grounding, counting, ocr, detection: think before the answer (Perception-R1 found it to hurt)"""
    parser: Literal["strict", "lenient"] = "strict"
    """how answers are parsed: as asked for, or boxes of any form; the format reward is always strict"""
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
    regions_per_turn: Regions = 1
    """regions that one turn may ask for, each a zoom (ACTIVE-O3's one step: 3, with --max_turns 2 --max_zooms 3)"""
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
    """the model of detector or sam, a folder or hub id; for mllm: another language model than the start policy"""
    task_max_new_tokens: Positive = 128
    """longest answer of the task model per crop, in tokens"""
    merge: Literal["nms", "concat"] = "nms"
    """boxes of several crops: non-maximum suppression at IoU 0.5, or all of them (the authors' demo)"""
    first_mask: Literal["coarse", "sam"] = "coarse"
    """the mask to correct: coarse (the truth at low resolution, with seeded errors), or SAM's answer to one click"""

    # ---- the task model, which works on the crops: --task_options
    task_batch: Positive = 128
    """crops in one batch, or as many as a GPU's memory holds (a detector: at most 16)"""
    box_threshold: Share = 0.25
    """a detector's box counts from this score on"""
    text_threshold: Share = 0.25
    """a detector's box belongs to the query if one of its words has this score"""
    least_seen: Annotated[float, Range(0)] = 16.0
    """the oracle's smallest thing in pixels of a crop's view: a visual token (Qwen2.5-VL: 28); 0: any, exact masks"""
    clicks: Positive = 3
    """clicks of the oracle in every region, for --task_model sam: the paper names no number"""

    # ---- how it is computed
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 on a GPU, float32 on a CPU"""
    attention: Literal["auto", "flex", "sdpa", "flash_attention_2", "flash_attention_3", "eager"] = "auto"
    """kernels of the vision tower. auto: flash-attention if it works here, else sdpa; packed rows use sdpa, whose mask
    flash-attention does not take. flex: FlexAttention for packed rows, on a GPU, for answers longer than the prompt"""

    decoder: Literal["graph", "hf"] = "graph"
    """how tokens are drawn: in a loop of ours, on a GPU a CUDA graph, or by transformers' generate; the same tokens"""
    stop_repeats: Natural = 0
    """cut an answer off that ends in so many copies of one piece, 32 tokens or more in all; 0: never"""

    def __post_init__(self) -> None:
        check_fields(self)
        for field in dataclasses.fields(self):
            if field.type in PLACES:  # the dataclass is frozen, and this is still its making
                object.__setattr__(self, field.name, paths.expanded(getattr(self, field.name), field.name))
        self.words, self.own_files  # noqa: B018  raise ConfigError, and are kept as they are now
        zooms = min(self.max_zooms, (self.max_turns - 1) * self.regions_per_turn)
        refuse({
            f"--episode_options least_zoom={self.least_zoom} must lie below most_zoom={self.most_zoom}, both in 0 to 1":
                not 0 <= self.least_zoom < self.most_zoom <= 1,
            f"--min_zooms is {self.min_zooms}; it must lie between 0 and --max_zooms {self.max_zooms}, and leave a "
            f"turn of --max_turns {self.max_turns} to answer in": not 0 <= self.min_zooms <= zooms,
            f"--max_view_pixels is {self.max_view_pixels}; even a square picture with --sensing_side "
            f"{self.sensing_side} has {self.sensing_side**2}": self.max_view_pixels < self.sensing_side**2,
            "--data names no data set": not self.data,
            "--holdout is 1.0; some pictures must be left to train on: give less than 1": self.holdout == 1,
            f"--data_options tile_overlap is {self.tile_overlap}; it must be below tile={self.tile}":
                not 0 <= self.tile_overlap < (self.tile or 2**16),
            "--data_options absent is 1.0; some questions must have an answer: give less than 1": self.absent == 1,
        })  # fmt: skip

    def decided(self, trained_here: bool) -> Self:
        """The config for the answers of one model, of which --parser auto asks whether it was trained here."""
        auto = "strict" if trained_here else "lenient"
        return dataclasses.replace(self, parser=auto) if self.parser == "auto" else self

    @property
    def dataset_options(self) -> dict[str, Any]:
        """The options of ``data.open_dataset``."""
        named = ("tile", "tile_overlap", "absent", "holdout", "box_format", "data_columns", "subset")
        return {name: getattr(self, name) for name in named} | {"seed": self.selection_seed}

    def _check_named(self, data: bool = True) -> None:
        """Raise ConfigError if data sets on disk have no folder, a task model no checkpoint, or a function no file."""
        for flag, name in (("--task", self.task), *(("--task_model", name) for name in self.task_model_names)):
            if is_code(name):
                user_code.check(flag, name)
        root = f"--data {' '.join(self.data)} lives on disk: say where with --data_root FOLDER"
        on_disk = {name for name in self.data if not name.startswith(HUB)} - DRAWN
        refuse({root: data and on_disk and not self.data_root})
        for name, kind in (("detector", "a detector of transformers"), ("sam", "a Segment Anything model")):
            if name in self.task_model_names and not self.task_checkpoint:
                raise ConfigError(f"--task_model {name} needs {kind}: name it with --task_checkpoint FOLDER.")

    def sampling(self, temperature: float, max_new_tokens: int) -> Sampling:
        """How answers are drawn, at a temperature (0: greedy), up to a length."""
        return Sampling(temperature, max_new_tokens, self.decoder, self.stop_repeats)

    @property
    def task_model_names(self) -> tuple[str, ...]:
        """The values of ``--task_model``: one in training, several in evaluation."""
        named = getattr(self, "task_model", ())
        return (named,) if isinstance(named, str) else tuple(named)

    @cached_property
    def words(self) -> Wording:
        """The wording, with the prompts of the user's that replace some of its own."""
        return Wording(self.wording, read_templates(Path(self.prompt_file)) if self.prompt_file else {})

    @cached_property
    def own_files(self) -> dict[str, str]:
        """The files of the user's that decide a result: a digest of each as it was at the start, by the flag that names
        it."""
        code = [("--task", self.task), *(("--task_model", name) for name in self.task_model_names)]
        code += [("--reward", name) for name in getattr(self, "reward", ())]
        named = [(flag, *user_code.parts_of(name)) for flag, name in code if is_code(name)]
        found = {f"{flag} {name}": path for flag, path, name in named}
        others = {"--data_options extension": self.extension, "--prompt_file": self.prompt_file}
        found |= {flag: Path(path) for flag, path in others.items() if path}
        return {flag: user_code.digest(path) for flag, path in found.items()}

    @property
    def other_mllm(self) -> str:
        """The language model in place of the start policy: what --task_checkpoint names, unless a detector does."""
        names = set(self.task_model_names)
        return self.task_checkpoint if "mllm" in names and not names & {"detector", "sam"} else ""

    def expert_name(self, task_model: str) -> str:
        """How tables name a task model: another language model with its folder, ``mllm-Qwen2.5-VL-72B``, a function of
        the user's with its file, ``my_detector-find``."""
        if is_code(task_model):
            path, function = user_code.parts_of(task_model)
            return f"{path.stem}-{function}"
        if task_model != "mllm" or not self.other_mllm:
            return task_model
        parts = Path(paths.cached(self.other_mllm) or os.path.normpath(self.other_mllm)).parts
        return "-".join(["mllm", *parts[-2 if parts[-1].startswith("checkpoint-") else -1 :]])

    @classmethod
    def from_args(cls, argv: Sequence[str] | None = None, known: Mapping[str, Collection[str]] = {}) -> Self:
        """Read the command line; ``known`` has the names that a flag may have. Raises ConfigError."""
        # A preset describes a training run; an evaluation takes from it what both scripts share.
        taken = fields_of(cls if cls is TrainConfig else Config)
        values = from_command_line(cls, argv, taken, {"task": TASKS, **known}, cls.EVERYDAY)
        if cls is TrainConfig:
            values.setdefault("output_dir", f"runs/{'-'.join(values['preset'])}")
        for name in set(values) & {field.name for field in dataclasses.fields(cls) if field.type in PLACES}:
            paths.refuse_misspelt(values[name], name)
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
    task_model: Annotated[Literal["mllm", "detector", "sam", "oracle"], OR_CODE] = "mllm"
    """mllm (start policy, frozen), detector (of transformers), sam (for --task segment), oracle (the truth in the
    views), or a function of yours, my_detector.py:find"""

    # ---- steps
    steps: Positive = 160
    """each samples P x G answers per rank and makes --epochs updates; a larger number continues a run that is over"""
    prompts: int = 4
    """P: prompts per rank and step"""
    group: int = 8
    """G: answers sampled per prompt (paper: 8)"""
    micro_prompts: int = 4
    """prompts per forward and backward pass of the update; smaller needs less memory, with the same result"""
    scoring: Literal["auto", "packed", "cached", "rows"] = "auto"
    """a group as one packed row, a batch behind the cached prompt, or plain rows: one result; auto: packed if it can"""
    recompute: bool = False
    """activation checkpointing: much less memory for a third more time in the update, with the same result"""
    epochs: Positive = 1
    """updates per rollout; with 1 the sampling policy is the current one and the ratio is 1"""
    temperature: Annotated[float, Range(0.01)] = 1.0  # logits are divided by it
    """of the sampled answers; log-probabilities are taken at the same temperature"""

    # ---- the update
    lr: Annotated[float, Range(0, open=True)] = 1.5e-4
    """learning rate (paper: 1e-6 for the 7B)"""
    train_only: str = "self_attn"
    """train the parameters whose names match this regular expression (presets.py says why); empty: all (paper)"""
    lora: Natural = 0
    """rank of LoRA adapters of the matrices of --train_only; the reference is the model without; 0: none (paper)"""
    beta: Annotated[float, Range(0)] = 0.04
    """weight of the KL to the reference (paper: 0.04); 0 needs no reference pass"""
    normalise: Literal["response", "token", "constant"] = "response"
    """mean over an answer's tokens first (GRPO), over all tokens (DAPO), or by a constant length (Dr. GRPO)"""
    ratio: Literal["token", "sequence", "geometric", "none"] = "token"
    """per token (GRPO), answer (GSPO), answer from clipped tokens (GMPO), or none and no clip (REINFORCE, RLOO, GPG)"""
    advantage: Literal["group", "leave_one_out", "batch", "group_batch", "rescaled", "one"] = "group"
    """reward against its group's mean and spread (GRPO), its siblings' mean (RLOO), the step's mean and spread
    (REINFORCE++), the group's mean and step's spread (with baseline), scaled up without spread (GPG), or 1 (sft)"""
    alternate: Natural = 0
    """train sensing and task role in turn, so many steps each, from the one that --task names; 0: only that one"""
    task_update: Literal["rl", "sft"] = "rl"
    """how the task role learns: by reward, or the truth of its crops (the preset sft, or with --alternate)"""

    # ---- the update: --update_options
    warmup: Natural = 10
    """steps of linear warm-up of the learning rate"""
    half_life: Natural = 0
    """steps in which the learning rate halves, from the first one on; 0: it stays"""
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
    divide_costs: bool = True
    """also the cost of zooms; false: it is compared with the siblings' as it is, after the rest was divided"""

    # ---- the reward
    reward: tuple[str, ...] = ()
    """functions of yours that add a term each, my_reward.py:score; its name is the function's, its weight 1"""
    reward_weights: tuple[str, ...] = ()
    """weights that differ from the task's, as format=0 task=2 (0: an ablation); the first lines of a run show all"""
    coverage: Literal["contain", "iou", "purity", "recall"] = "contain"
    """true boxes with 90 % of their area in one region (ours) or IoU >= 0.5 (paper B.4 b), regions at least 10 %
    object (B.4 a); of a mask's errors: their share in regions times the share left out, or the first (recall: 4.4)"""
    mask_truncated: bool = False
    """truncated answers get reward NaN and are excluded from their group, instead of counting as wrong (Mini-o3)"""

    # ---- the reward: --reward_options
    evidence: Literal["union", "per_call"] = "union"
    """zoom_qa: every place counts once, and less for large regions (ours); or per call, as Active-Perception-R1 does"""
    evidence_gate: bool = True
    """zoom_qa: evidence counts as far as the answer is right; false: also for a wrong answer"""
    cost_gate: bool = False
    """zoom_qa: a zoom costs as far as the answer is right; false: in every answer"""
    zooms_target: Annotated[float, Range(0)] = 0.0
    """zoom_qa: after each step the weight of calls moves, so that so many zooms per answer are paid for; 0: it stays"""
    price_rate: Annotated[float, Range(0)] = 0.01
    """with zooms_target: how far the weight moves per zoom above the target; it never falls below 0"""
    perception_reward: Literal["f1", "paper"] = "f1"
    """counting, detection: F1 of all boxes of an answer, or Perception-R1's terms (matching.py)"""
    matching: Literal["hungarian", "sequential"] = "hungarian"
    """counting, detection: the best assignment, or first with first (Perception-R1's ablation: 8 AP less)"""
    iou_power: Literal[1, 2] = 1
    """grounding: reward IoU (Perception-R1's text) or its square (its code)"""
    places: Literal["near", "distance", "inside"] = "near"
    """counting: 1 at a thing's centre to 0 a thing's size away, 1 - distance (Perception-R1), or 1 inside the box"""

    # ---- what a run keeps
    output_dir: Place = Place("runs/tiny")
    """where the run leaves its files; an unfinished run there is continued. By default named after the presets"""
    resume_from: Literal["newest", "earlier"] = "newest"
    """the newest checkpoint, which must be whole, or the newest one that is whole (damaged ones are renamed)"""
    save_every: Positive = 40
    """steps between checkpoints"""
    keep: Natural = 2
    """how many checkpoints to keep; 0: all"""
    save_optimizer: bool = True
    """false: checkpoints hold the policy alone, an eighth of the size in bfloat16, and no run goes on from them"""
    save_on_exit: bool = False
    """when Ctrl-C or SIGTERM asks for the end: finish the step in hand and write a checkpoint first"""
    samples_every: Natural = 20
    """steps between saved sample pictures; 0: none"""
    eval_examples: Natural = 48
    """held-out pictures for the table at the end; 0: no table"""
    eval_split: str = "val"
    """which part of the data set to hold out"""
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """where the run's numbers, pictures and table are kept as well: tensorboard, wandb, or both"""
    eval_every: Natural = 0
    """steps between held-out tables during the run, a multiple of --save_every; 0: only the one at the end"""
    best_metric: str = ""
    """the column of that table that decides to which checkpoint best points; by default the task's own, as AP"""
    max_skipped: Positive = 5
    """stop after so many steps in a row with a skipped update, or a reward left out, because it was not finite"""

    # ---- how it is computed
    ds_config: Place = Place("ds_config.json")
    """DeepSpeed's own settings"""
    group_timeout: Positive = 60
    """minutes that a rank waits for the others before the run ends; torch's own limit is 10"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_named()
        for named in self.reward:
            user_code.check("--reward", named)
        names = [user_code.parts_of(named)[1] for named in self.reward]
        twice = next((name for name in names if names.count(name) > 1), "")
        self.given_weights  # noqa: B018  raises ConfigError
        refuse({
            f"--reward names two functions {twice!r}; give each another name": twice,
            f"--group is {self.group}; an answer needs at least one sibling to be compared with":
                self.group < (1 if self.advantage == "one" else 2),
            f"--alternate trains sense and act in turn, and --task is {self.task}":
                self.alternate and self.task not in ("sense", "act"),
            "--task_update sft goes with --task act, --advantage one, --ratio none and --beta 0: take the preset sft":
                self.task_update == "sft" and not self.alternate
                and (self.task, self.advantage, self.ratio, self.beta) != ("act", "one", "none", 0),
            f"--prompts {self.prompts} must be a multiple of --micro_prompts {self.micro_prompts}":
                not 1 <= self.micro_prompts <= self.prompts or self.prompts % self.micro_prompts,
            f"--eval_every {self.eval_every} must be a multiple of --save_every {self.save_every}, so that each table "
            "has its checkpoint": self.eval_every % self.save_every,
            f"--eval_every {self.eval_every} needs held-out pictures: raise --eval_examples":
                self.eval_every and not self.eval_examples,
            f"--stage is {self.stage}; it must lie between 1 and --stages {self.stages}":
                not 1 <= self.stage <= self.stages,
            f"--update_options divide_by_std=false belongs to --advantage group, and --advantage is {self.advantage}":
                self.advantage != "group" and not self.divide_by_std,
            "--update_options clip_low must lie between 0 and 1": not 0 < self.clip_low < 1,
        })  # fmt: skip
        check_regex("--train_only", self.train_only)

    @property
    def given_weights(self) -> dict[str, float]:
        """What ``--reward_weights`` names; of a term that is named twice the last weight counts. Raises ConfigError."""
        return numbers("--reward_weights", self.reward_weights)

    def lr_at(self, step: int) -> float:
        """Learning rate of step 1, 2, ...: linear warm-up, then constant or falling. It depends on the step alone, so
        that a run that is continued with more ``steps`` is the same run."""
        fallen = 0.5 ** (step / self.half_life) if self.half_life else 1.0
        return self.lr * fallen * min(1.0, step / max(1, self.warmup))
