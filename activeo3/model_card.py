"""What makes a checkpoint a model that transformers alone uses rightly: its card and the settings of view and answer.

    README.md                  the model card: base model, data, steps, table, prompt, and lines of code to copy
    preprocessor_config.json   limits of the view, so that AutoImageProcessor shows what the policy was trained on
    generation_config.json     greedy answers that end where an answer ends, without image tokens

Training sees the whole picture with its shorter side at --sensing_side (paper E.2). Transformers' processor knows no
sides, only the least and the most pixels of a view. So the saved limits enclose the view of a 4:3 picture: plain use
shows a picture of another shape a little larger or smaller. The lines of the card resize first, as training does, and
give our answer token for token.
"""

import json
from pathlib import Path
from typing import Any, Callable

from activeo3 import prompts
from activeo3.checkpoint_files import CARD
from activeo3.config import TASK_ROLE, TrainConfig
from activeo3.data_io import is_hub_id
from activeo3.encoding import Encoder
from activeo3.geometry import with_shorter_side
from activeo3.terminal import one_line

QUERY = "{query}"
TABLE = "<!-- table -->"
"""Where a card has its table once there is one."""
CODE = """from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

folder, picture, query = "{folder}", "photo.jpg", "red ring"
image, prompt = Image.open(picture).convert("RGB"), {prompt}
tokenizer, processor = AutoTokenizer.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder, backend="pil")
model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32")  # "bfloat16" on a GPU
unit, size = processor.patch_size * processor.merge_size, {size}
view = image.resize([max(1, round(side / unit)) * unit for side in size], Image.Resampling.LANCZOS)
seen = processor(images=view, do_resize=False, return_tensors="pt")
turn = [{{"type": "image"}}, {{"type": "text", "text": prompt.replace("{query}", query)}}]
text = tokenizer.apply_chat_template([{{"role": "user", "content": turn}}], tokenize=False, add_generation_prompt=True)
visual = int(seen["image_grid_thw"].prod()) // processor.merge_size**2  # one token each
ids = tokenizer(text.replace("<|image_pad|>", "<|image_pad|>" * visual), add_special_tokens=False, return_tensors="pt")
kinds = (ids["input_ids"] == model.config.image_token_id).int()
answer = model.generate(**ids, **seen, mm_token_type_ids=kinds)[0, ids["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))  # boxes in {frame}"""


def write(folder: Path, vlm: Encoder, config: TrainConfig, step: int) -> None:
    """Write card and settings into the folder of a checkpoint, in place of those of the start policy."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            content = json.loads((folder / name).read_text())
            _limit(content, vlm, config)
            if isinstance(content.get("image_processor"), dict):
                _limit(content["image_processor"], vlm, config)
            (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(_generation(vlm, config), indent=2) + "\n")
    (folder / CARD).write_text(card(vlm, config, step))


def view_limits(factor: int, config: TrainConfig) -> tuple[int, int]:
    """The least and the most pixels of a view: half a visual token around the view of a 4:3 picture, as transformers
    rounds down what it shrinks, and up what it enlarges.

    >>> view_limits(16, TrainConfig(sensing_side=96))
    (10560, 14144)
    """
    whole = (config.crop_side,) * 2 if config.task in TASK_ROLE else with_shorter_side((4, 3), config.sensing_side)
    width, height = (max(1, round(side / factor)) * factor for side in whole)
    least, most = ((width + half) * (height + half) for half in (-factor // 2, factor // 2))
    return min(least, config.max_view_pixels), min(most, config.max_view_pixels)


def _limit(settings: dict[str, Any], vlm: Encoder, config: TrainConfig) -> None:
    """Put the view's limits into the settings of an image processor, under all names that it has for them."""
    if "patch_size" not in settings and "size" not in settings:
        return
    least, most = view_limits(vlm.factor, config)
    settings["size"] = {"shortest_edge": least, "longest_edge": most}
    settings |= {name: value for name, value in (("min_pixels", least), ("max_pixels", most)) if name in settings}


def _generation(vlm: Encoder, config: TrainConfig) -> dict[str, Any]:
    """A greedy answer as ``generate`` of ours makes it (generate.py); no penalty or beam of the start policy's."""
    longest = config.task_max_new_tokens if config.task in TASK_ROLE else config.max_new_tokens
    return {
        "do_sample": False, "max_new_tokens": longest, "eos_token_id": sorted(vlm.end_tokens),
        "pad_token_id": vlm.end_token, "suppress_tokens": list(vlm.suppressed_ids),
    }  # fmt: skip


# ---------------------------------------------------------------------- the card


def prompt_of(vlm: Encoder, config: TrainConfig) -> str:
    """The prompt of a run's task, with ``{query}`` where it names what is asked for; "" of a task of the user's."""
    words, boxes = config.words, vlm.boxes
    made: dict[str, Callable[[], str]] = {
        "sense": lambda: prompts.sensing_prompt(QUERY, words, config.regions, boxes),
        **dict.fromkeys(TASK_ROLE, lambda: prompts.task_prompt(QUERY, words, boxes)),
        "segment": lambda: prompts.segmentation_prompt(QUERY, words, config.regions, boxes),
        "zoom_qa": lambda: prompts.episode_prompt(
            QUERY, words, config.max_zooms if config.max_turns > 1 else 0, at_once=config.regions_per_turn,
            least=config.min_zooms, notes=config.memory == "notes", boxes=boxes,
        ),
        "detection": lambda: prompts.perception_prompt("detection", [QUERY], words, config.thinking, boxes),
    }  # fmt: skip
    for name in ("grounding", "counting", "ocr"):
        made[name] = lambda: prompts.perception_prompt(config.task, QUERY, words, config.thinking, boxes)
    return made.get(config.task, str)()


def code_of(vlm: Encoder, config: TrainConfig, folder: str) -> str:
    """The lines of a card: one answer by transformers alone, the policy's own, token for token."""
    side = config.sensing_side
    size = f"[max({side}, round(side * {side} / min(image.size))) for side in image.size]"
    if config.task in TASK_ROLE:
        size = f"({config.crop_side}, {config.crop_side})"
    frame = "pixels of the view" if vlm.text_scale((1, 1)) == (1, 1) else "thousandths of the view"
    prompt = json.dumps(prompt_of(vlm, config), ensure_ascii=False)
    return CODE.format(folder=folder, prompt=prompt, size=size, frame=frame, query=QUERY)


def card(vlm: Encoder, config: TrainConfig, step: int) -> str:
    """The model card of the checkpoint of a step, as Markdown with the hub's own fields."""
    base = str(config.model)
    public = is_hub_id(base) and not Path(base).exists()
    fields = {"library_name": "transformers", "pipeline_tag": "image-text-to-text", "license": "other"}
    fields |= {"base_model": base} if public else {}
    head = "\n".join(f"{name}: {json.dumps(value)}" for name, value in fields.items())
    lora = f", LoRA {config.lora}" if config.lora else ""
    return f"""---
{head}
tags: [activeo3, grpo]
---

# {one_line(base)}, trained where to look

| | |
|---|---|
| base model | {_cell(base)} |
| trained for | `--task {_cell(config.task)}` on {_cell("+".join(config.data))} ({_cell(config.split)}) |
| steps | {step} of {config.steps}, {config.group} answers to each of {config.prompts} questions per process |
| method | GRPO, learning rate {config.lr:g}, beta {config.beta:g}, seed {config.seed}{lora} |
| view | shorter side {config.sensing_side} pixels |
| licence | that of the base model and of the data; write it into the field `license` above |

{TABLE}

## Use

{_use(vlm, config)}
"""


def _use(vlm: Encoder, config: TrainConfig) -> str:
    """How an answer is made with transformers alone: the lines, and the prompt."""
    if not (prompt := prompt_of(vlm, config)):
        return f"The prompt is that of the task {_cell(config.task)}; `python evaluate.py --checkpoint` asks it."
    first = {
        "zoom_qa": "They ask for the first turn of an episode; `python evaluate.py` makes the zooms.",
        "segment": "Before that, the mask to correct is drawn over the view; `python evaluate.py` draws it.",
    }.get(config.task, "")
    alone = " ".join(filter(None, ["With transformers alone (`pip install torch transformers pillow`).", first]))
    return f"""{alone}

```python
{code_of(vlm, config, "CHECKPOINT")}
```

`CHECKPOINT` is this folder or its id on the hub. The prompt, in which `{QUERY}` is what is asked for:

    {one_line(prompt, limit=4000)}"""


def _cell(text: str) -> str:
    return one_line(str(text)).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def with_table(text: str, table: str) -> str:
    """A card with its held-out table, in place of an earlier one."""
    before, mark, after = text.partition(TABLE)
    rest = after[after.index("\n## Use") :] if "\n## Use" in after else after
    return f"{before}{mark}\n\n{table}\n{rest}" if mark else text
