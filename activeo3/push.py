"""Upload a checkpoint to the Hugging Face hub, without what only a continued run needs.

    python -m activeo3.push runs/tiny/best NAME/MODEL

Optimizer, DeepSpeed and random states (training_state/) stay here; weights, adapters, tokenizer, settings, the model
card and activeo3.json go. The hub's library knows who you are (hf auth login, or HF_TOKEN).
"""

import sys
from pathlib import Path
from typing import Sequence

from huggingface_hub import HfApi

from activeo3 import checkpoint_files, processes, terminal
from activeo3.cli import ConfigError
from activeo3.data_io import is_hub_id

LEFT_OUT = [f"{name}*" for name in checkpoint_files.NOT_THE_MODEL] + [".*"]
USAGE = "usage: python -m activeo3.push CHECKPOINT HUB_ID [--private]"


def push(checkpoint: Path, name: str, private: bool = False, api: HfApi | None = None) -> str:
    """Upload a checkpoint to the model ``name`` of the hub, which is made if it is not there; returns its address.

    Raises ConfigError if it is no checkpoint, damaged, or the hub refuses it.
    """
    if not (checkpoint / "config.json").is_file():
        raise ConfigError(f"{checkpoint} is no checkpoint: it has no config.json.")
    if not is_hub_id(name) or "/" not in name:
        raise ConfigError(f"{name} is no hub id: write NAME/MODEL.")
    if damage := checkpoint_files.damage_of_model(str(checkpoint)):
        raise ConfigError(f"{damage}; it is not uploaded.")
    api = api or HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        message = f"activeo3: {checkpoint.resolve().name}"
        api.upload_folder(
            repo_id=name, folder_path=checkpoint.resolve(), ignore_patterns=LEFT_OUT, commit_message=message
        )
    except Exception as error:  # of every library below
        reason = " ".join(str(error).split())
        raise ConfigError(f"{checkpoint} could not be uploaded to {name}: {terminal.one_line(reason, 300)}") from None
    return f"{api.endpoint}/{name}"


def main(argv: Sequence[str] | None = None) -> None:
    """``push`` of the command line."""
    words = list(sys.argv[1:] if argv is None else argv)
    names = [word for word in words if not word.startswith("-")]
    if len(names) != 2 or set(words) - {*names, "--private"}:
        raise ConfigError(USAGE)
    print(push(Path(names[0]), names[1], "--private" in words))


if __name__ == "__main__":
    terminal.protect()
    processes.watch()
    processes.tell(kept=lambda: "the same command goes on with what is not uploaded yet")
    with processes.one_sentence(ConfigError):
        main()
