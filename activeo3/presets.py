"""Sets of values that belong together, by name: two situations, and variants that go with either.

    deepspeed train.py --preset tiny gspo              # several are merged in their order
    deepspeed train.py --preset paper direct --data_root FOLDER

What a field means stands in config.py, what an algorithm is in grpo.py. Values are those of its paper where
it gives them. With one update per rollout the ratio of GSPO and GMPO is 1 and they are GRPO, so their
presets make two.

The one-shot tasks' presets are Perception-R1's (arXiv 2504.07954, section 4.3): learning rate, answers, KL weight,
temperature, two questions per rank and step in passes of one, and how many questions each task was trained on;
``steps`` are these questions once, on 8 ranks. Three things differ. Counting and detection are paid by F1 (matching.py;
the paper's rewards: --reward_options perception_reward=paper places=distance). All four start from Qwen2.5-VL-3B, where
the paper has Qwen2-VL-2B for three of them, which writes boxes in special tokens. A picture has at most a million
pixels, as in its script, but its shorter side is set: for COCO's pictures near their own size, for pages and pictures
from the web at what the million allows.
"""

from pathlib import Path
from typing import Any, Collection, Mapping, Sequence

from activeo3 import user_code
from activeo3.cli import ConfigError, check_known, is_code, read_flags

_ONE_SHOT: dict[str, Any] = {
    "model": "Qwen/Qwen2.5-VL-3B-Instruct",
    "wording": "paper",
    "max_view_pixels": 1_000_000,
    "prompts": 2,
    "micro_prompts": 1,
    "lr": 1e-6,
    "train_only": "",
    "save_every": 100,
    "eval_examples": 200,
    "stop_repeats": 8,
}

_CLOSE_UP: dict[str, Any] = {
    "model": "data/tiny-tasks",
    "data": ("close_ups",),
    "sensing_side": 128,
    "steps": 60,
    "save_every": 60,
    "eval_examples": 200,
}

PRESETS: dict[str, dict[str, Any]] = {
    # Situations. ``tiny`` is the defaults: the shipped policy and the embedded world, on a laptop. Only ``self_attn``
    # is trained: attention of the text tower decides where to zoom, and with few answers per step the other parameters
    # follow the noise of the gradient (answers lost their format).
    "tiny": {},
    # ACTIVE-O3, section E.2; 1250 steps x 8 ranks ask 10,000 questions, as many as it has of LVIS.
    "paper": {
        "model": "Qwen/Qwen2.5-VL-7B-Instruct",
        "data": ("coco",),
        "wording": "paper",
        "sensing_side": 1024,
        "crop_side": 840,
        "least_seen": 28.0,  # a visual token of Qwen2.5-VL
        "max_new_tokens": 512,
        "episode_tokens": 6_144,  # three crops of 900 tokens and five turns
        "task_max_new_tokens": 1024,
        "recompute": True,  # without it, 4:3 pictures with answers of 450 tokens do not fit 80 GB
        "prompts": 1,
        "micro_prompts": 1,
        "lr": 1e-6,
        "train_only": "",
        "stop_repeats": 8,
        "steps": 1250,
        "save_every": 100,
        "eval_examples": 200,
    },
    # Episodes on a laptop, from the shipped policy that knows their form. A look costs nothing: in groups without a
    # right answer, most at first, the cost is the only difference, and divided by its own spread it outweighs all else.
    "zoom_qa": {
        "task": "zoom_qa", "model": "data/tiny-tasks", "max_new_tokens": 40, "max_turns": 2, "max_zooms": 1,
        "least_zoom": 0.005, "reward_weights": ("calls=0",), "steps": 80, "save_every": 80, "eval_examples": 200,
    },
    # How many looks a picture needs, in the embedded world with mixed difficulty: up to three regions at once, as in
    # ACTIVE-O3's one step. A look earns nothing but a right answer.
    "mixed": {
        "task": "zoom_qa", "data": ("mixed",), "model": "data/tiny-tasks", "max_new_tokens": 100, "max_turns": 2,
        "max_zooms": 3, "regions_per_turn": 3, "least_zoom": 0.005, "reward_weights": ("calls=0", "evidence=0"),
        "steps": 60, "save_every": 20, "eval_examples": 200,
    },
    # One-shot perception on a laptop, a task each: close-ups of the embedded world, and the same policy.
    "grounding": _CLOSE_UP | {"task": "grounding", "max_new_tokens": 40},
    "counting": _CLOSE_UP | {"task": "counting", "max_new_tokens": 180},
    "detection": _CLOSE_UP | {"task": "detection", "max_new_tokens": 240},
    "ocr": _CLOSE_UP | {"task": "ocr", "data": ("plates",), "max_new_tokens": 12},
    # Perception-R1, a task each.
    "refcoco": _ONE_SHOT | {
        "task": "grounding", "data": ("refcoco",), "sensing_side": 480, "max_new_tokens": 256, "limit": 5_000,
        "steps": 312,
    },
    "pixmo_count": _ONE_SHOT | {
        "task": "counting", "data": ("pixmo_count",), "sensing_side": 768, "max_new_tokens": 1024, "limit": 10_000,
        "steps": 625,
    },
    "pageocr": _ONE_SHOT | {
        "task": "ocr", "data": ("pageocr",), "sensing_side": 880, "max_new_tokens": 2048, "limit": 5_000, "steps": 312,
        "stop_repeats": 0,  # a page may repeat itself
    },
    "coco_det": _ONE_SHOT | {
        "task": "detection", "data": ("coco_det",), "sensing_side": 480, "max_new_tokens": 2048, "limit": 110_000,
        "steps": 6_875,
    },
    # Stages of a curriculum, from easy to hard with more and more answers (Perception-R1; curriculum.py, reading 2).
    "curriculum_1": {"stage": 1, "stages": 3, "group": 8},
    "curriculum_2": {"stage": 2, "stages": 3, "group": 12},
    "curriculum_3": {"stage": 3, "stages": 3, "group": 16},
    # What is trained. The data of the paper's headline rows; its reward ablation (Table 15); Direct RFT (Table 6). With
    # SODA there are more than 10,000 questions: LVIS's 10,000, and one for every category in 2,000 of SODA's tiles. The
    # paper names no number of steps; with the 1250 of ``paper`` a part of the mixture is not asked, another one with
    # each seed.
    "paper_data": {"data": ("lvis_small", "lvis_dense", "soda_a", "soda_d")},
    "task_only": {"reward_weights": ("format=0", "no_overlap=0", "area=0", "coverage=0")},
    "heuristic_only": {"reward_weights": ("task=0",)},
    "direct": {"task": "direct"},
    # The task role in place of sensing; its right answers in place of sampled ones. alternation.py trains both in turn.
    "act": {"task": "act"},
    "sft": {"task": "act", "task_update": "sft", "advantage": "one", "ratio": "none", "beta": 0.0, "group": 1},
    # With ``sft``: things that the tiny policy has never seen, in photographs of a COCO folder. All parameters learn,
    # the vision tower's too, at a rate that falls.
    "cells": {
        "data": ("coco",), "prompts": 16, "micro_prompts": 16, "normalise": "token", "train_only": "", "lr": 1e-3,
        "half_life": 80, "task_max_new_tokens": 400, "steps": 320, "save_every": 80,
    },
    # Errors of masks, its section 5.4: corrected by an oracle; or on its data, by SAM 2.1 (it cites SAM 2).
    "segment": {"task": "segment", "task_model": "oracle"},
    "thin_objects": {
        "task": "segment",
        "data": ("thinobject5k",),
        "task_model": "sam",
        "task_checkpoint": "facebook/sam2.1-hiera-large",
    },
    # How it is trained. Dr. GRPO, arXiv 2503.20783: no division by the spread, a constant length, no KL.
    "dr_grpo": {"divide_by_std": False, "normalise": "constant", "beta": 0.0},
    # DAPO, arXiv 2503.14476: mean over tokens, a higher upper clip, no KL. Its dynamic sampling is left out.
    "dapo": {"normalise": "token", "clip_high": 0.28, "beta": 0.0},
    # GSPO, arXiv 2507.18071: one ratio per answer, in the narrow clip range of its section 5.1.
    "gspo": {"ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4, "beta": 0.0, "epochs": 2},
    # GMPO, arXiv 2507.20673: the geometric mean of ratios clipped to e^-0.4 ... e^0.4.
    "gmpo": {"ratio": "geometric", "clip_low": 0.3297, "clip_high": 0.4918, "beta": 0.0, "epochs": 2},
    # GPG, arXiv 2504.02546: log pi A, mean over tokens, groups without spread made up for, no KL.
    "gpg": {"advantage": "rescaled", "ratio": "none", "normalise": "token", "beta": 0.0},
    # RLOO, arXiv 2402.14740: log pi A of whole answers, against the mean of the siblings.
    "rloo": {"advantage": "leave_one_out", "ratio": "none", "normalise": "constant"},
    # REINFORCE++, arXiv 2501.03262: normalised over the whole step, without and with the group's mean.
    "reinforce_pp": {"advantage": "batch", "normalise": "token"},
    "reinforce_pp_baseline": {"advantage": "group_batch", "normalise": "token"},
}  # fmt: skip


def from_command_line(
    cls: type,
    argv: Sequence[str] | None,
    taken: Collection[str],
    known: Mapping[str, Collection[str]],
    everyday: Collection[str],
) -> dict[str, Any]:
    """The values of a command line for a config: those of its presets for the ``taken`` fields, merged in order, and
    its flags.

    ``known`` has the names that a flag may have. Raises ConfigError.
    """
    given = read_flags(cls, argv, everyday, f"presets: {', '.join(PRESETS)}")
    if path := given.get("extension"):
        user_code.run_file(f"--data_options extension={path}", Path(path))
    names = given.setdefault("preset", ("tiny",))
    if not names:
        raise ConfigError(f"--preset names none; there are: {', '.join(PRESETS)}.")
    for flag, choices in {"preset": PRESETS, **known}.items():
        named = given.get(flag, ())
        named = [named] if isinstance(named, str) else named
        check_known(flag, [name for name in named if flag != "task" or not is_code(name)], choices)
    parts = [{name: value for name, value in PRESETS[preset].items() if name in taken} for preset in names] + [given]
    values = {name: value for part in parts for name, value in part.items()}
    if "reward_weights" in values:  # those of other terms stay
        values["reward_weights"] = sum((part.get("reward_weights", ()) for part in parts), ())
    return values
