"""Is a model there: as a folder, in the cache of the hub, or on the hub? Asked once; downloads show their bar."""

import os
from contextlib import suppress
from functools import cache
from pathlib import Path

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError

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
    _ask_the_hub(source)


@cache
def _ask_the_hub(source: str) -> None:
    """Raise ModelError if a model is neither in the hub's cache nor on the hub.

    Left alone, the hub's library asks five times and says half a minute later that nothing answers. So one try decides:
    where the hub cannot be reached, this process goes on with its cache, as with HF_HUB_OFFLINE=1.
    """
    try:
        with suppress(EntryNotFoundError):  # there is such a model, and what it lacks is said by its reader
            get_hf_file_metadata(hf_hub_url(source, "config.json"), timeout=10)
        return
    except GatedRepoError:
        why = "the hub asks who you are: accept its terms there, and log in with: hf auth login"
    except RepositoryNotFoundError:
        why = f"the hub has no model of this name, or it is private; and there is no folder {source} here"
    except Exception as error:  # of every library below
        reason = " ".join(str(error).split())
        why = f"there is no such folder, and the hub cannot be reached ({reason}): name a folder, or try again later"
        if any(isinstance(try_to_load_from_cache(source, f"{kind}config.json"), str) for kind in ("", "adapter_")):
            constants.HF_HUB_OFFLINE = True
            return
    raise ModelError(f"{source}: {why}.")


@cache
def download(source: str) -> None:
    """Bring a model of the hub into its cache, with a bar on the screen of the first process.

    Loading it may happen where the output of libraries goes to a file. Raises ModelError as ``check_there`` does.
    """
    check_there(source)
    if not (Path(source).is_dir() or constants.is_offline_mode()) and os.environ.get("RANK", "0") == "0":
        part_of(source, "files", snapshot_download, allow_patterns=DOWNLOADED, ignore_patterns=["*/*"])
