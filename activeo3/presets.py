"""The presets of the one-shot tasks: Perception-R1 (arXiv 2504.07954, section 4.3 and Table 7) on real checkpoints.

Learning rate, 8 answers, KL weight, temperature, two questions per rank and step in passes of one, and how many
questions each task was trained on are the paper's; ``steps`` are these questions once, on 8 ranks.

Deviations from the paper:
  1. The start policy is Qwen2.5-VL-3B for all four. The paper trains grounding, counting and OCR from
     Qwen2-VL-2B, which writes boxes in special tokens.
  2. A picture has at most a million pixels, as in the released script, but its shorter side is set: for COCO's
     pictures near their own size, for pages and pictures from the web at what the million allows.
"""

from typing import Any

_PAPER: dict[str, Any] = {
    "model": "Qwen/Qwen2.5-VL-3B-Instruct",
    "wording": "paper",
    "max_view_pixels": 1_000_000,
    "prompts": 2,
    "micro_prompts": 1,
    "lr": 1e-6,
    "train_only": "",
    "save_every": 100,
    "eval_examples": 200,
}

ONE_SHOT: dict[str, dict[str, Any]] = {
    "refcoco": _PAPER | {
        "task": "grounding", "data": ("refcoco",), "output_dir": "runs/refcoco",
        "sensing_side": 480, "max_new_tokens": 256, "limit": 5_000, "steps": 312,
    },
    "pixmo_count": _PAPER | {
        "task": "counting", "data": ("pixmo_count",), "output_dir": "runs/pixmo_count",
        "sensing_side": 768, "max_new_tokens": 1024, "limit": 10_000, "steps": 625,
    },
    "pageocr": _PAPER | {
        "task": "ocr", "data": ("pageocr",), "output_dir": "runs/pageocr",
        "sensing_side": 880, "max_new_tokens": 2048, "limit": 5_000, "steps": 312,
    },
    "coco_det": _PAPER | {
        "task": "detection", "data": ("coco_det",), "output_dir": "runs/coco_det",
        "sensing_side": 480, "max_new_tokens": 2048, "limit": 110_000, "steps": 6_875,
    },
}  # fmt: skip
