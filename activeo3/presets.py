"""Sets of values that belong together, by name: two situations, and variants that go with either.

    deepspeed train.py --preset tiny gspo              # several are merged in their order
    deepspeed train.py --preset paper direct --data_root FOLDER

What a field means stands in config.py, what an algorithm is in grpo.py. Values are those of its paper where
it gives them. With one update per rollout the ratio of GSPO and GMPO is 1 and they are GRPO, so their
presets make two.
"""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # Situations. ``tiny`` is the defaults: the shipped policy and the embedded world, on a laptop.
    "tiny": {},
    # ACTIVE-O3, section E.2; 1250 steps x 8 ranks are its 10,000 examples once.
    "paper": {
        "model": "Qwen/Qwen2.5-VL-7B-Instruct",
        "data": ("coco",),
        "wording": "paper",
        "sensing_side": 1024,
        "crop_side": 840,
        "max_new_tokens": 512,
        "task_max_new_tokens": 1024,
        "task_batch": 16,
        "prompts": 1,
        "micro_prompts": 1,
        "lr": 1e-6,
        "train_only": "",
        "steps": 1250,
        "save_every": 100,
        "eval_examples": 200,
    },
    # What is trained. The data of the paper's headline rows; its reward ablation (Table 15); Direct RFT (Table 6).
    "paper_data": {"data": ("lvis_small", "lvis_dense", "soda_a", "soda_d")},
    "task_only": {"w_format": 0.0, "w_no_overlap": 0.0, "w_area": 0.0, "w_coverage": 0.0},
    "heuristic_only": {"w_task": 0.0},
    "direct": {"task": "direct"},
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
}
