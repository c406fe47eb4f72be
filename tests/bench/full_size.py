"""One step of a model as large as the real one, on a CPU: does it load, learn, save and come back within the memory?

Qwen2.5-VL-3B's configuration and vocabulary in its published layout, with random weights in bfloat16; one picture with
one question. ``train.py`` makes one step with adapters and two short answers, ``evaluate.py`` reads its checkpoint and
asks once. Prints the minutes and the peak memory of both commands and what the step said of itself.

    python tests/bench/full_size.py                       # 16 GB of memory, 20 GB of disk, half an hour on two cores
    python tests/bench/full_size.py --data_root FOLDER    # a COCO folder of yours in place of a drawn picture
"""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Iterator

import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import published  # noqa: E402

from activeo3 import data_scenes  # noqa: E402

LAYOUT = published.LAYOUTS["Qwen2.5-VL-3B"]
SHARDS = 2
TEXT = {
    "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
    "num_key_value_heads": 2, "max_window_layers": 70, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
}  # fmt: skip
VISION = {
    "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048,
    "fullatt_block_indexes": [7, 15, 23, 31],
}  # fmt: skip
SHORT_ANSWERS = "--max_new_tokens 16 --task_max_new_tokens 16 --dtype bfloat16".split()


def write_model(folder: Path) -> None:
    """The published folder of the 3B with random weights, 7.5 GB; nothing is done where it is complete."""
    if (folder / "complete").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    files = published.config_of(LAYOUT) | published.pictures_of(LAYOUT) | published.tokenizer_of(LAYOUT)
    config = files["config.json"] | TEXT
    files["config.json"] = config | {"vision_config": config["vision_config"] | VISION}
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False)
        (folder / name).write_text(text)
    shapes, where = dict(shapes_of(files["config.json"])), {}
    for number in range(SHARDS):
        name = published.shard(number, SHARDS)
        part = {key: drawn(shapes[key], seed) for seed, key in enumerate(sorted(shapes)) if seed % SHARDS == number}
        save_file(part, folder / name, metadata={"format": "pt"})
        where |= dict.fromkeys(part, name)
    size = 2 * sum(shape.numel() for shape in shapes.values())
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "complete").touch()


def shapes_of(config: dict[str, Any]) -> Iterator[tuple[str, torch.Size]]:
    """The published names and shapes of all weights; the tied head has none of its own."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(Qwen2_5_VLConfig(**config))
    for name, tensor in published.named(model.state_dict(), LAYOUT.names).items():
        if name != "lm_head.weight":
            yield name, tensor.shape


def drawn(shape: torch.Size, seed: int) -> torch.Tensor:
    """Weights as a new model has them: matrices near 0, norms near 1."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
    return noise if len(shape) > 1 else noise + 1


def write_picture(root: Path) -> None:
    """A COCO folder with one drawn picture of 640 x 480 pixels in both splits, and a box in it."""
    for split in ("train2017", "val2017"):
        (root / split).mkdir(parents=True, exist_ok=True)
        data_scenes.scene("train", 0).render().resize((640, 480)).save(root / split / "000000000001.jpg")
        box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [100, 100, 60, 50], "area": 3000, "iscrowd": 0}
        found = {
            "images": [{"id": 1, "file_name": "000000000001.jpg", "width": 640, "height": 480}],
            "categories": [{"id": 1, "name": "star"}],
            "annotations": [box],
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(found))


def measured(log: Path, *command: str) -> tuple[int, float, float]:
    """Run a script of the project: (exit code, minutes, most memory of the process in GB). Its output goes to a log.

    Memory is what the process has for itself: the files of weights are mapped while they are read, and the system takes
    that back whenever it wants to.
    """
    began, most = time.monotonic(), 0.0
    with log.open("w") as output:
        process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=output, stderr=output)
        while process.poll() is None:
            own = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
            most = max(most, int(own.group(1)) * 1024 / 1e9 if own else 0.0)
            time.sleep(0.2)
    return process.returncode, (time.monotonic() - began) / 60, most


def commands(out: Path, root: Path, flags: list[str]) -> dict[str, list[str]]:
    """The two scripts and their flags: a step with adapters and two short answers, and one question to its
    checkpoint."""
    both = ["--preset", "paper", "--data_root", str(root), "--limit", "1", *SHORT_ANSWERS]
    step = "--lora 8 --prompts 1 --group 2 --steps 1 --eval_examples 0".split()
    run = str(out / "run")
    return {
        "train.py": [*both, *step, "--model", str(out / "model"), "--output_dir", run, *flags],
        "evaluate.py": [*both, "--checkpoint", f"{run}/checkpoint-1", "--split", "val", "--methods", "active"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/full-size"), help="where all of it lies [%(default)s]")
    parser.add_argument("--data_root", type=Path, help="a COCO folder; by default one drawn picture")
    options, flags = parser.parse_known_args()
    out = options.out.resolve()
    write_model(out / "model")
    if not options.data_root:
        write_picture(out / "coco")
    for script, given in commands(out, (options.data_root or out / "coco").resolve(), flags).items():
        log = out / f"{script}.log"
        code, minutes, gigabytes = measured(log, script, *given)
        print(f"{script}: exit code {code}, {minutes:.1f} minutes, {gigabytes:.1f} GB at most; {log}", flush=True)
        print(log.read_text()[-3000:])
        if code:
            sys.exit(code)
    written = sum(path.stat().st_size for path in (out / "run/checkpoint-1").rglob("*") if path.is_file())
    print(f"the checkpoint has {written / 1e9:.2f} GB; torch uses {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
