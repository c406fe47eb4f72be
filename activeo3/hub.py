"""Is something on the Hugging Face hub? Asked once, for models (model_hub.py) and for data sets (data_hub.py).

Left alone, the hub's library asks five times and says half a minute later that nothing answers.
"""

from contextlib import suppress
from functools import cache
from pathlib import Path

ASKED_FOR = {"model": "config.json", "dataset": "README.md"}
"""The file by which a thing of the hub is known to be there; it may lack it."""


@cache
def why_not(name: str, kind: str) -> str:
    """Why a ``model`` or ``dataset`` cannot be had, as the rest of a sentence; "" if it can.

    Where the hub cannot be reached, this process goes on with its cache, as with HF_HUB_OFFLINE=1.
    """
    # Imported when it is needed: it takes a third of the second in which a wrong flag is answered.
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError

    try:
        with suppress(EntryNotFoundError):
            get_hf_file_metadata(hf_hub_url(name, ASKED_FOR[kind], repo_type=kind), timeout=10)
        return ""
    except GatedRepoError:
        return "the hub asks who you are: accept its terms there, and log in with: hf auth login"
    except RepositoryNotFoundError:
        return f"the hub has no {kind} of this name, or it is private; and there is no folder {name} here"
    except Exception as error:  # of every library below
        reason = " ".join(str(error).split())
        if any(Path(constants.HF_HUB_CACHE).glob(f"{kind}s--{name.replace('/', '--')}/snapshots/*/*")):
            constants.HF_HUB_OFFLINE = True
            return ""
        return f"there is no such folder, and the hub cannot be reached ({reason}): name a folder, or try again later"


def is_offline() -> bool:
    """Is the hub not to be asked, by HF_HUB_OFFLINE=1 or because it could not be reached?"""
    from huggingface_hub import constants

    return constants.is_offline_mode()
