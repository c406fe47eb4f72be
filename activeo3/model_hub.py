"""Is a model there: as a folder, in the cache of the hub, or on the hub? Downloads show their bar."""

import os
from functools import cache
from pathlib import Path

from huggingface_hub import snapshot_download

from activeo3 import hub
from activeo3.data_io import did_you_mean_path, is_hub_id
from activeo3.model_files import ModelError, part_of

DOWNLOADED = ["*.safetensors", "*.json", "*.jinja", "*.txt"]
"""Files of a model on the hub that are brought here before it is loaded, those of its folders left out."""


def check_there(source: str) -> None:
    """Raise ModelError unless a model is a folder, in the hub's cache, or on the hub, which is asked once."""
    if Path(source).is_dir():
        return
    near = did_you_mean_path(source)
    if near or not is_hub_id(source):
        raise ModelError(f"the model folder {source} does not exist; {near or 'name a checkpoint folder or a hub id.'}")
    if why := hub.why_not(source, "model"):
        raise ModelError(f"{source}: {why}.")


@cache
def download(source: str) -> None:
    """Bring a model of the hub into its cache, with a bar on the screen of the first process.

    Loading it may happen where the output of libraries goes to a file. Raises ModelError as ``check_there`` does.
    """
    check_there(source)
    if not (Path(source).is_dir() or hub.is_offline()) and os.environ.get("RANK", "0") == "0":
        part_of(source, "files", snapshot_download, allow_patterns=DOWNLOADED, ignore_patterns=["*/*"])
