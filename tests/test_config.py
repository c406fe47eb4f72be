"""config.py: every number has a doc and one owner, and what cannot be used is said in one sentence."""

import contextlib
import dataclasses
import io
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from activeo3 import checkpoints, engine, tasks
from activeo3.cli import fields_of, flags_of
from activeo3.config import TASKS, ConfigError, TrainConfig
from activeo3.engine import Distributed, ds_config
from activeo3.eval_config import EvalConfig
from activeo3.presets import PRESETS
from activeo3.rewards import SENSING_TERMS

ROOT = Path(__file__).parent.parent
CHECKPOINT = ["--checkpoint", "somewhere"]
BOTH = pytest.mark.parametrize("cls", [TrainConfig, EvalConfig])


def names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def complaint(cls: type, argv: list[str]) -> str:
    """The one sentence with which a command line is refused."""
    with pytest.raises(ConfigError) as caught:
        cls.from_args(argv)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith(".")
    return sentence


# ---------------------------------------------------------------------- help


@BOTH
def test_every_field_says_what_it_is(cls: type) -> None:
    fields = fields_of(cls)
    assert list(fields) == names(cls)
    assert all(len(field.doc) > 10 and "\n" not in field.doc and field.group for field in fields.values())


def help_of(cls: type, *argv: str) -> str:
    with pytest.raises(SystemExit) as caught, contextlib.redirect_stdout(io.StringIO()) as shown:
        cls.from_args([*argv])
    assert caught.value.code == 0
    return shown.getvalue()


@BOTH
def test_help_all_shows_every_field_with_its_choices_text_and_default(cls: type, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "100000")  # no line breaks inside a text
    shown = help_of(cls, "--help", "all")
    for field in fields_of(cls).values():
        default = " ".join(field.default) if isinstance(field.default, tuple) else field.default
        assert f"--{field.joint or field.name} " in shown and f"{field.doc} [{default}]" in shown
        assert f"{field.group}:" in shown and (not field.joint or f" {field.name}" in shown)
        assert "{" + ",".join(map(str, field.choices)) + "}" in shown or not field.choices
    assert "local_rank" not in shown and "presets: tiny, paper" in shown
    assert "90 %" in shown or "95 %" in shown  # a percent sign is a character here, no format


def test_there_are_few_flags() -> None:
    assert len(flags_of(TrainConfig)) <= 77 and len(flags_of(EvalConfig)) <= 69


@BOTH
def test_help_shows_the_flags_of_every_day(cls: type) -> None:
    shown = help_of(cls, "--help")
    assert {flag for flag in flags_of(cls) if f"\n  --{flag} " in shown} == set(cls.EVERYDAY)
    assert 10 <= len(cls.EVERYDAY) <= 13 and "--help all prints all flags." in shown


# ---------------------------------------------------------------------- reading flags


def test_flags_set_fields_of_their_type() -> None:
    config = TrainConfig.from_args(
        "--group 16 --lr 3e-5 --beta 0 --update_options divide_by_std=False --coverage iou --output_dir runs/x --limit 7".split()
    )
    assert config == TrainConfig(
        group=16, lr=3e-5, beta=0.0, divide_by_std=False, coverage="iou", output_dir="runs/x", limit=7
    )
    assert type(config.beta) is float and type(config.group) is int


@pytest.mark.parametrize("text, value", [("true", True), ("false", False), ("True", True), ("FALSE", False)])
def test_booleans_are_words(text: str, value: bool) -> None:
    assert TrainConfig.from_args(["--recompute", text]).recompute is value


def test_flags_of_many_words() -> None:
    config = EvalConfig.from_args([*CHECKPOINT, "--methods", "grid", "oracle-regions", "--benchmark", "scenes"])
    assert config.methods == ("grid", "oracle-regions") and config.benchmark == ("scenes",)
    assert EvalConfig.from_args(CHECKPOINT).methods == ()  # those of the benchmark
    assert EvalConfig.from_args(CHECKPOINT).benchmark == ()


def test_training_data_may_be_mixed() -> None:
    mixed = "lvis_small lvis_dense soda_a soda_d"
    config = TrainConfig.from_args(["--data", *mixed.split(), "--data_root", "d"])
    assert config.data == tuple(mixed.split()) and TrainConfig().data == ("scenes",)
    stored = json.loads(json.dumps(dataclasses.asdict(config)))
    assert checkpoints.differences(config, stored) == []
    (said,) = checkpoints.differences(config, stored | {"data": ["soda_a"]})
    assert said.startswith("--data was ['soda_a'] and is now ['lvis_small', ")


def test_no_flags_give_the_tiny_preset() -> None:
    assert TrainConfig.from_args([]) == TrainConfig() == TrainConfig.from_args(["--preset", "tiny"])


def test_the_launcher_may_add_its_own_flag() -> None:
    assert TrainConfig.from_args(["--local_rank", "3"]) == TrainConfig()
    assert TrainConfig.from_args(["--local_rank=3"]) == TrainConfig()


def test_flags_that_are_rarely_changed_are_set_together() -> None:
    words = "--update_options warmup=3 clip_high=0.28 divide_by_std=false --data_options tile=0 --reward_options iou_power=2"
    config = TrainConfig.from_args(words.split())
    assert config == TrainConfig(warmup=3, clip_high=0.28, divide_by_std=False, tile=0, iou_power=2)
    assert TrainConfig.from_args("--preset dapo --update_options warmup=3".split()).clip_high == 0.28


def test_a_bare_boolean_means_true() -> None:
    config = TrainConfig.from_args(["--recompute", "--save_on_exit", "--steps", "3"])
    assert config.recompute and config.save_on_exit and config.steps == 3
    assert not TrainConfig.from_args(["--recompute", "false"]).recompute


STRANGE = [
    # command line, its sentence's beginning, the nearest known name
    ("--stepz 3", "--stepz is no flag", "--steps"),
    ("--gruop 4", "--gruop is no flag", "--group"),
    ("--out x", "--out is no flag", ""),
    ("--stepz=3", "--stepz is no flag", "--steps"),
    ("stray", "stray is no flag", ""),
    ("--group", "--group: expected one argument", ""),
    ("--preset papr", "--preset papr is not known", "paper"),
    ("--task zoomqa", "--task zoomqa is not known", "zoom_qa"),
    ("--crop_shape aspct", "--crop_shape is 'aspct'", "aspect"),
]


@pytest.mark.parametrize("argv, begins, near", STRANGE, ids=[argv for argv, *_ in STRANGE])
def test_an_unknown_name_gets_the_nearest_known_one(argv: str, begins: str, near: str) -> None:
    sentence = complaint(TrainConfig, argv.split())
    assert sentence.startswith(begins)
    assert f"did you mean {near}?" in sentence if near else "did you mean" not in sentence


def test_task_names_are_those_of_the_tasks() -> None:
    assert set(TASKS) == set(tasks.known_tasks())


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
@pytest.mark.parametrize("argv, near", [("--stepz 3", "--steps?"), ("--data coco_dat", "coco_det?")])
def test_a_wrong_flag_is_answered_before_torch_is_imported(script: str, argv: str, near: str) -> None:
    words = [*argv.split(), *(CHECKPOINT if script == "evaluate.py" else [])]
    near = near if script == "train.py" or "data" in argv else ""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run(
        [sys.executable, "-X", "importtime", script, *words, "--data_root", "d"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = [line for line in run.stderr.splitlines() if not line.startswith("import time:")]
    assert run.returncode == 1 and len(lines) == 1 and lines[0].startswith("activeo3: --") and near in lines[0]
    assert "| torch\n" not in run.stderr.replace(" ", "").replace("|", "| ") and run.stdout == ""
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


# ---------------------------------------------------------------------- presets


def test_presets_hold_fields_and_values_that_can_be_used() -> None:
    for name, values in PRESETS.items():
        assert set(values) <= set(names(TrainConfig)) - {"preset", "output_dir"}, name
        config = TrainConfig.from_args(["--preset", name, "--data_root", "folder"])
        assert config == TrainConfig(preset=(name,), data_root="folder", output_dir=f"runs/{name}", **values)


@pytest.mark.parametrize("situation", ["tiny", "paper"])
def test_every_variant_goes_with_every_situation(situation: str) -> None:
    for name, values in PRESETS.items():
        config = TrainConfig.from_args(["--preset", situation, name, "--data_root", "d"])
        assert {key: getattr(config, key) for key in values} == values
        rest = {key: value for key, value in PRESETS[situation].items() if key not in values}
        assert {key: getattr(config, key) for key in rest} == rest
        assert config.output_dir == f"runs/{situation}-{name}" and config.preset == (situation, name)


def test_presets_are_merged_in_their_order_and_flags_win() -> None:
    both = TrainConfig.from_args("--preset dapo gspo --beta 0.5 --output_dir here".split())
    assert (both.normalise, both.ratio, both.clip_high, both.beta) == ("token", "sequence", 4e-4, 0.5)
    assert TrainConfig.from_args("--preset gspo dapo".split()).clip_high == 0.28
    assert both.output_dir == "here"


@pytest.mark.parametrize("argv", ["--preset paper --data_root d --lr 5e-7", "--lr 5e-7 --data_root d --preset paper"])
def test_a_flag_beside_a_preset_wins(argv: str) -> None:
    config = TrainConfig.from_args(argv.split())
    assert config.lr == 5e-7 and config.sensing_side == 1024 and config.preset == ("paper",)


def test_the_paper_preset_has_the_papers_numbers() -> None:
    """ACTIVE-O3, section E.2: batch 1 with 8 answers, lr 1e-6, KL 0.04, views of 1024 and 840 pixels."""
    config = TrainConfig.from_args(["--preset", "paper", "--data_root", "d"])
    wanted = dict(prompts=1, group=8, lr=1e-6, weight_decay=0.01, beta=0.04, regions=3, sensing_side=1024,
                  crop_side=840, crop_shape="square", wording="paper", temperature=1.0)  # fmt: skip
    assert {name: getattr(config, name) for name in wanted} == wanted
    assert config.given_weights == {}


def test_a_preset_sets_what_both_scripts_share() -> None:
    config = EvalConfig.from_args([*CHECKPOINT, "--preset", "paper", "--data_root", "d"])
    train = TrainConfig.from_args(["--preset", "paper", "--data_root", "d"])
    shared = set(names(EvalConfig)) & set(PRESETS["paper"])
    assert {"wording", "sensing_side", "crop_side", "data"} <= shared
    assert all(getattr(config, name) == getattr(train, name) for name in shared)


def test_an_evaluation_does_not_write_into_the_presets_run() -> None:
    assert EvalConfig.from_args([*CHECKPOINT, "--preset", "paper", "--data_root", "d"]).output_dir == ""


# ---------------------------------------------------------------------- what cannot be used

REFUSED = [
    # command line, what the sentence must name
    ("--preset huge", ("--preset huge is not known", "tiny, paper")),
    ("--preset tiny huge vast gspo", ("--preset huge vast is not known", "tiny, paper")),
    ("--preset", ("--preset names none", "tiny, paper")),
    ("--advantage best", ("--advantage", "group, leave_one_out, batch")),
    ("--preset dr_grpo gpg", ("divide_by_std=false", "--advantage group", "rescaled")),
    ("--group abc", ("--group", "'abc'", "whole number")),
    ("--group 1.5", ("--group", "'1.5'", "whole number")),
    ("--group 1", ("--group", "1")),
    ("--train_only (", ("--train_only", "regular expression")),
    ("--lr fast", ("--lr", "'fast'", "number")),
    ("--lr 0", ("--lr",)),
    ("--lr nan", ("--lr", "nan")),
    ("--beta nan", ("--beta", "nan")),
    ("--beta -0.1", ("--beta", "-0.1")),
    ("--reward_weights task=inf", ("--reward_weights", "task=inf")),
    ("--reward_weights 'task'", ("--reward_weights", "task")),
    ("--temperature 0", ("--temperature", "0.01")),
    ("--temperature 1e-40", ("--temperature", "1e-40")),
    ("--update_options grad_clip=-1", ("--update_options grad_clip is -1",)),
    ("--update_options clip_low=1", ("clip_low",)),
    ("--update_options clip_high=0", ("clip_high",)),
    ("--update_options divide_by_std=yes", ("divide_by_std", "'yes'", "true or false")),
    ("--update_options clip_hi=1", ("clip_hi is not known", "did you mean clip_high?")),
    ("--update_options clip_high", ("clip_high has no value", "clip_high=0.2")),
    ("--clip_high 0.3", ("--clip_high is set by --update_options clip_high=0.2",)),
    ("--coverage dice", ("--coverage", "'dice'", "contain, iou, purity")),
    ("--normalise none", ("--normalise", "response, token, constant")),
    ("--ratio word", ("--ratio", "token, sequence")),
    ("--merge soft", ("--merge", "nms, concat")),
    ("--crop_shape round", ("--crop_shape", "square, aspect")),
    ("--wording long", ("--wording", "paper, short")),
    ("--dtype float16", ("--dtype", "auto, float32, bfloat16")),
    ("--regions 0", ("--regions", "0")),
    ("--regions 11", ("--regions", "11")),
    ("--sensing_side 0", ("--sensing_side", "0")),
    ("--sensing_side 224 --max_view_pixels 50000", ("--max_view_pixels", "50000", "--sensing_side", "50176")),
    ("--crop_side 0", ("--crop_side", "0")),
    ("--max_new_tokens 0", ("--max_new_tokens", "0")),
    ("--task_max_new_tokens -1", ("--task_max_new_tokens", "-1")),
    ("--task_options task_batch=0", ("task_batch", "0")),
    ("--seed -1", ("--seed", "-1")),
    ("--seed 99999999999", ("--seed", "99999999999")),
    ("--data coco", ("--data coco", "--data_root")),
    ("--data scenes soda_a", ("--data scenes soda_a", "--data_root")),
    ("--data", ("--data", "no data set")),
    ("--data_options selection_seed=-1", ("selection_seed is -1", "at least 0")),
    ("--data_options tile=-1", ("tile_overlap", "tile=-1")),
    ("--data_options tile=100 tile_overlap=100", ("tile_overlap is 100", "tile=100")),
    ("--data_options tile=0 tile_overlap=-1", ("tile_overlap is -1",)),
    ("--preset paper", ("--data coco", "--data_root")),
    ("--prompts 4 --micro_prompts 3", ("--prompts 4", "--micro_prompts 3")),
    ("--prompts 2", ("--prompts 2", "--micro_prompts 4")),
    ("--micro_prompts 0", ("--micro_prompts 0",)),
    ("--steps 0", ("--steps", "0")),
    ("--epochs 0", ("--epochs", "0")),
    ("--save_every 0", ("--save_every", "0")),
    ("--max_skipped 0", ("--max_skipped", "0")),
    ("--limit -1", ("--limit", "-1")),
    ("--update_options warmup=-1", ("warmup", "-1")),
    ("--keep -1", ("--keep", "-1")),
    ("--samples_every -1", ("--samples_every", "-1")),
    ("--eval_examples -1", ("--eval_examples", "-1")),
    ("--update_options weight_decay=-1", ("weight_decay", "-1")),
]


@pytest.mark.parametrize("argv, named", REFUSED, ids=[argv for argv, _ in REFUSED])
def test_a_bad_value_is_one_sentence_that_names_its_flag(argv: str, named: tuple[str, ...]) -> None:
    sentence = complaint(TrainConfig, argv.split())
    assert all(word in sentence for word in named), sentence


EVAL_REFUSED = [
    ("", ("--checkpoint",)),
    ("--checkpoint x --methods random psychic", ("--methods", "psychic", "oracle-regions")),
    ("--checkpoint x --limit -1", ("--limit", "-1")),
    ("--checkpoint x --resamples -1", ("--resamples", "-1")),
    ("--checkpoint x --image a.jpg", ("--image", "--find")),
    ("--checkpoint x --find dot", ("--image", "--find")),
    ("--checkpoint x --preset huge", ("--preset", "huge")),
    ("--checkpoint x --regions 0", ("--regions",)),
]


@pytest.mark.parametrize("argv, named", EVAL_REFUSED, ids=[argv for argv, _ in EVAL_REFUSED])
def test_a_bad_value_of_an_evaluation_too(argv: str, named: tuple[str, ...]) -> None:
    sentence = complaint(EvalConfig, argv.split())
    assert all(word in sentence for word in named), sentence


def test_a_picture_of_ones_own_and_named_benchmarks_need_no_data_root() -> None:
    paper = [*CHECKPOINT, "--preset", "paper"]
    assert "--data_root" in complaint(EvalConfig, paper)
    assert EvalConfig.from_args([*paper, "--image", "photo.jpg", "--find", "dot"]).crop_side == 840
    assert EvalConfig.from_args([*paper, "--benchmark", "scenes"]).crop_side == 840


@pytest.mark.parametrize("values", [dict(group=1), dict(beta=float("nan")), dict(coverage="dice"), dict(regions=0)])
def test_values_are_checked_wherever_they_come_from(values: dict) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(values))} "):
        TrainConfig(**values)
    with pytest.raises(ConfigError, match=f"{next(iter(values))} "):
        dataclasses.replace(TrainConfig(), **values)


def test_the_edges_of_what_can_be_used() -> None:
    zero = dict.fromkeys(("beta", "warmup", "keep", "samples_every", "eval_examples", "limit", "weight_decay"), 0)
    weights = {"reward_weights": tuple(f"{name}=0" for name in SENSING_TERMS)}
    config = TrainConfig(group=2, prompts=1, micro_prompts=1, regions=10, steps=1, clip_high=5.0, **zero, **weights)
    assert config.given_weights == dict.fromkeys(SENSING_TERMS, 0.0)
    assert EvalConfig(checkpoint=("x",), limit=0, resamples=0).limit == 0


# ---------------------------------------------------------------------- what follows from the numbers


def test_the_learning_rate_warms_up_and_stays_or_falls() -> None:
    config = TrainConfig(lr=1e-3, warmup=4)
    assert [config.lr_at(step) for step in (1, 2, 4, 5, 1000)] == pytest.approx([2.5e-4, 5e-4, 1e-3, 1e-3, 1e-3])
    assert TrainConfig(lr=1e-3, warmup=0).lr_at(1) == 1e-3
    falling = TrainConfig(lr=1e-3, warmup=0, half_life=80)
    assert [falling.lr_at(step) for step in (80, 160, 240)] == pytest.approx([5e-4, 2.5e-4, 1.25e-4])
    assert dataclasses.replace(falling, steps=999).lr_at(100) == falling.lr_at(
        100
    )  # a longer run is the same run so far


def test_a_continued_run_is_the_same_run() -> None:
    config = TrainConfig()
    stored = json.loads(json.dumps(dataclasses.asdict(config)))
    assert checkpoints.differences(config, stored) == []
    assert set(checkpoints.FREE) < set(names(TrainConfig))
    for name in names(TrainConfig):
        said = checkpoints.differences(config, stored | {name: "something else"})
        assert len(said) == (name not in checkpoints.FREE), name
        flag = fields_of(TrainConfig)[name].flag
        assert all(f"{flag} was 'something else' and is now {stored[name]!r}" == sentence for sentence in said)


def test_what_an_older_run_did_not_have_is_a_difference() -> None:
    config = TrainConfig()
    stored = json.loads(json.dumps(dataclasses.asdict(config)))
    del stored["beta"], stored["keep"]
    assert checkpoints.differences(config, stored) == ["--beta was None and is now 0.04"]


def test_weights_of_one_term_do_not_replace_those_of_another() -> None:
    argv = ["--preset", "tiny", "task_only", "--reward_weights", "area=2", "task=3", "task=4"]
    given = TrainConfig.from_args(argv).given_weights
    assert given == {"format": 0, "no_overlap": 0, "area": 2, "coverage": 0, "task": 4}


# ---------------------------------------------------------------------- DeepSpeed's file: each number one owner

RANKS = Distributed(rank=0, world=1, device=torch.device("cpu"), log=Path("nowhere.log"))


def filled(path: Path, learns: bool = True, **values) -> dict:
    return ds_config(TrainConfig(ds_config=str(path), **values), RANKS, torch.float32, learns)


def test_the_projects_own_file_is_filled_in() -> None:
    settings = filled(ROOT / "ds_config.json", lr=3e-5, weight_decay=0.5, grad_clip=0.7, prompts=2, micro_prompts=1)
    assert settings["zero_optimization"]["stage"] == 3
    assert settings["optimizer"]["params"]["lr"] == 3e-5 and settings["optimizer"]["params"]["weight_decay"] == 0.5
    assert settings["gradient_clipping"] == 0.7
    assert settings["train_micro_batch_size_per_gpu"] == 2 and settings["gradient_accumulation_steps"] == 1
    assert settings["bf16"] == {"enabled": False}
    assert "auto" not in json.dumps(settings)
    assert not set(json.loads((ROOT / "ds_config.json").read_text())) & set(engine._OWNED)


def test_a_frozen_model_has_no_optimizer() -> None:
    settings = filled(ROOT / "ds_config.json", learns=False)
    assert "optimizer" not in settings and "gradient_clipping" not in settings


@pytest.mark.parametrize("key", engine._OWNED)
def test_a_file_that_sets_what_a_flag_owns_is_refused(key: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3}, key: 1}))
    with pytest.raises(ConfigError, match=f"{key}.*flags"):
        filled(path)


def test_a_file_that_is_not_there_or_not_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--ds_config .*absent.json: there is no such file"):
        filled(tmp_path / "absent.json")
    (tmp_path / "torn.json").write_text('{\n  "zero_optimization": {\n')
    with pytest.raises(ConfigError, match=r"--ds_config .*torn.json: this is not valid json \(line \d"):
        filled(tmp_path / "torn.json")


def test_another_language_model_is_one_unless_a_detector_has_the_checkpoint() -> None:
    for config in (
        TrainConfig(task_checkpoint="a/b"),
        EvalConfig(checkpoint=("x",), task_checkpoint="a/b", task_model=("oracle", "mllm")),
    ):
        assert (
            config.other_mllm == "a/b"
            and config.expert_name("mllm") == "mllm-b"
            and config.expert_name("oracle") == "oracle"
        )
    run = TrainConfig(task_checkpoint="runs/one/checkpoint-40/")
    assert run.expert_name("mllm") == "mllm-one-checkpoint-40"
    detector = EvalConfig(checkpoint=("x",), task_checkpoint="a/b", task_model=("mllm", "detector"))
    for config in (
        detector,
        TrainConfig(),
        TrainConfig(task_model="oracle", task_checkpoint="a/b"),
        EvalConfig(checkpoint=("x",)),
    ):
        assert config.other_mllm == "" and config.expert_name("mllm") == "mllm"


def test_a_choice_of_numbers_is_read_as_one() -> None:
    assert TrainConfig.from_args(["--reward_options", "iou_power=2"]).iou_power == 2
    with pytest.raises(ConfigError, match="--reward_options iou_power is '3'; it can be one of: 1, 2"):
        TrainConfig.from_args(["--reward_options", "iou_power=3"])
