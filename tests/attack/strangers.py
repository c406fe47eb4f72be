"""Model folders of strangers: no loader runs what lies in one, asks whether it may, or reads a pickle that calls
something.

    python -m tests.attack.strangers --trials 500 --seed 0

Small healthy folders of every kind are given one to three tricks. Each trick leaves a mark if it works: a file that a
module, a pickle or a template writes, a question on the terminal, a kernel that would be fetched from the hub.
"""

import argparse
import json
import os
import pickle
import shutil
import signal
import sys
import tempfile
import time
import warnings
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterator
from unittest import mock

import numpy as np
import torch
from transformers import modeling_utils

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from activeo3.config import ConfigError  # noqa: E402
from activeo3.model import VisionLanguageModel  # noqa: E402
from activeo3.model_files import ModelError  # noqa: E402
from activeo3.task_model_detectors import Thresholds, load  # noqa: E402
from activeo3.task_model_sam import Sam  # noqa: E402

CPU = torch.device("cpu")
SECONDS = 60.0

Trick = Callable[[Path, Path], None]  # (folder, mark) -> the folder is a trap


# ---------------------------------------------------------------------- tricks

AUTO = ("AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoModelForZeroShotObjectDetection", "AutoModelForMaskGeneration",
        "AutoTokenizer", "AutoProcessor", "AutoImageProcessor", "AutoVideoProcessor", "AutoFeatureExtractor")  # fmt: skip
JSON = ("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
        "tokenizer_config.json", "adapter_config.json")  # fmt: skip


def edit(path: Path, **changes: Any) -> None:
    """Other values in a json file, which is made if there is none."""
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


def config_of(folder: Path) -> dict[str, Any]:
    """The config of a model; an adapter has none."""
    return json.loads((folder / "config.json").read_text()) if (folder / "config.json").exists() else {}


def module(mark: Path) -> str:
    """Source that leaves the mark when it is imported, and has whatever class is asked for."""
    classes = "".join(f"class {name}:\n    pass\n\n\n" for name in ("Own", "OwnFast"))
    return (
        f"open({str(mark)!r}, 'a').write('a module was imported\\n')\n\n\n{classes}def generate(*_, **__):\n    pass\n"
    )


def own_modules(folder: Path, mark: Path) -> None:
    """Every json file names classes of the folder's own."""
    (folder / "own.py").write_text(module(mark))
    for name in JSON:
        if (
            (folder / name).exists()
            or name in ("processor_config.json", "video_preprocessor_config.json")
            and (folder / "preprocessor_config.json").exists()
        ):
            edit(
                folder / name,
                auto_map={kind: "own.Own" if kind != "AutoTokenizer" else ["own.Own", "own.OwnFast"] for kind in AUTO},
            )


def own_architecture(folder: Path, mark: Path) -> None:
    """An architecture that transformers does not know, with classes of its own: it would ask, then run them."""
    own_modules(folder, mark)
    edit(
        folder / "config.json", model_type="own_vl", architectures=["Own"], auto_map={kind: "own.Own" for kind in AUTO}
    )


def own_classes(folder: Path, mark: Path) -> None:
    """Tokenizer and processors that transformers does not know."""
    own_modules(folder, mark)
    edit(folder / "tokenizer_config.json", tokenizer_class="Own")
    edit(
        folder / "preprocessor_config.json",
        image_processor_type="Own",
        processor_class="Own",
        feature_extractor_type="Own",
    )
    edit(folder / "processor_config.json", processor_class="Own", auto_map={"AutoProcessor": "own.Own"})


def own_tokenizer(folder: Path, mark: Path) -> None:
    """A tokenizer that transformers does not know, and nothing else."""
    (folder / "own.py").write_text(module(mark))
    edit(folder / "tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.Own", None]})


def own_image_processor(folder: Path, mark: Path) -> None:
    """An image processor that transformers does not know, nested as 5.x writes it."""
    (folder / "own.py").write_text(module(mark))
    nested = {"image_processor_type": "Own", "auto_map": {"AutoImageProcessor": "own.Own"}}
    edit(
        folder / "processor_config.json",
        image_processor=nested,
        processor_class="Own",
        auto_map={"AutoProcessor": "own.Own", "AutoImageProcessor": "own.Own"},
    )
    edit(folder / "preprocessor_config.json", **nested)


def code_elsewhere(folder: Path, mark: Path) -> None:
    """Classes of another repository or folder."""
    (folder.parent / "other").mkdir(exist_ok=True)
    (folder.parent / "other/own.py").write_text(module(mark))
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        edit(folder / name, auto_map={kind: f"{folder.parent}/other--own.Own" for kind in AUTO})


def own_generate(folder: Path, mark: Path) -> None:
    """A way to generate of its own, which transformers 4.5x loaded of local folders without asking."""
    (folder / "custom_generate").mkdir(exist_ok=True)
    (folder / "custom_generate/generate.py").write_text(module(mark))
    (folder / "custom_generate/requirements.txt").write_text("")
    edit(folder / "generation_config.json", custom_generate=str(folder))


class Poison:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self.mark)!r}, 'a').write('a pickle was loaded\\n')",)


def without_weights(folder: Path) -> None:
    for path in [*folder.glob("*.safetensors*"), *folder.glob("*.bin*")]:
        path.unlink()


def weights_are_a_pickle(folder: Path, mark: Path) -> None:
    """The old form of weights, as torch writes it, with a call inside."""
    adapter = (folder / "adapter_config.json").exists()
    without_weights(folder)
    torch.save(
        {"a": torch.zeros(2), "b": Poison(mark)}, folder / ("adapter_model.bin" if adapter else "pytorch_model.bin")
    )


def weights_are_a_bare_pickle(folder: Path, mark: Path) -> None:
    """Likewise as torch wrote it before 1.6: no zip archive."""
    adapter = (folder / "adapter_config.json").exists()
    without_weights(folder)
    (folder / ("adapter_model.bin" if adapter else "pytorch_model.bin")).write_bytes(pickle.dumps(Poison(mark)))


def a_part_of_the_weights_is_a_pickle(folder: Path, mark: Path) -> None:
    """An index that names a pickle, one beside it and one elsewhere."""
    without_weights(folder)
    for path in (folder / "part.bin", folder.parent / "part.bin"):
        torch.save({"b": Poison(mark)}, path)
    index = {
        "metadata": {"total_size": 1},
        "weight_map": {"a": "part.bin", "b": "../part.bin", "c": str(folder.parent / "part.bin")},
    }
    for name in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        (folder / name).write_text(json.dumps(index))


def pickles_beside(folder: Path, mark: Path) -> None:
    """Other files that programs load as pickles: states of optimizers and trainers."""
    for name in (
        "optimizer.pt",
        "training_args.bin",
        "scheduler.pt",
        "rng_state.pth",
        "random-0.pt",
        "tokenizer.pkl",
        "model.ckpt",
        "pytorch_model.bin",
    ):
        torch.save(Poison(mark), folder / name)


def kernels(folder: Path, mark: Path) -> None:
    """Attention from the hub, which is code, for every part of the model."""
    config = config_of(folder)
    named = {
        "attn_implementation": "evil/kernel",
        "_attn_implementation": "evil/kernel:attend",
        "experts_implementation": "evil/kernel",
        "use_kernels": True,
    }
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        part |= named
    edit(folder / "config.json", **config)


def kernel_of_one_part(folder: Path, mark: Path) -> None:
    """Likewise, hidden in the last part."""
    config = config_of(folder)
    parts = [value for value in config.values() if isinstance(value, dict)]
    (parts or [config])[-1]["attn_implementation"] = "evil/kernel"
    edit(folder / "config.json", **config)


def template_that_escapes(folder: Path, mark: Path) -> None:
    """A chat template that reaches for Python."""
    reach = "{{ cycler.__init__.__globals__.os.system('touch MARK') }}{{ ''.__class__.__mro__[1].__subclasses__() }}{% import 'os' as os %}"
    for name in ("chat_template.jinja", "chat_template.json", "tokenizer_config.json"):
        text = reach.replace("MARK", str(mark))
        (folder / name).write_text(text) if name.endswith("jinja") else edit(folder / name, chat_template=text)


def modules_beside(folder: Path, mark: Path) -> None:
    """Modules with the names of packages, which are imported from the folder that one stands in if it is on Python's
    path."""
    for name in (
        "torch",
        "numpy",
        "kernels",
        "timm",
        "sitecustomize",
        "modeling_qwen3_vl",
        "__init__",
        "setup",
        "conftest",
    ):
        (folder / f"{name}.py").write_text(module(mark))


def quantised(folder: Path, mark: Path) -> None:
    """A quantisation, of the model and of a part."""
    edit(folder / "config.json", quantization_config={"quant_method": "own", "modules_to_not_convert": ["own"]})


def adapter_that_imports(folder: Path, mark: Path) -> None:
    """Settings of peft that name modules and tokenizers."""
    (folder.parent / "imported_by_peft.py").write_text(module(mark))
    if (folder / "adapter_config.json").exists():
        edit(folder / "adapter_config.json", megatron_config={"a": 1}, megatron_core="imported_by_peft",
             auto_mapping={"base_model_class": "Own", "parent_library": "imported_by_peft"})  # fmt: skip


def adapter_with_a_tokenizer(folder: Path, mark: Path) -> None:
    """A prompt that is learned: it loads a tokenizer, in the way that the folder says."""
    own_tokenizer(folder, mark)
    if (folder / "adapter_config.json").exists():
        edit(folder / "adapter_config.json", peft_type="PROMPT_TUNING", task_type="CAUSAL_LM", num_virtual_tokens=3, prompt_tuning_init="TEXT",
             prompt_tuning_init_text="a", tokenizer_name_or_path=str(folder), tokenizer_kwargs={"trust_remote_code": True})  # fmt: skip


def adapter_of_a_trap(folder: Path, mark: Path) -> None:
    """An adapter whose base model is a folder with code of its own."""
    if (folder / "adapter_config.json").exists():
        trap = folder.parent / "trap"
        trap.mkdir(exist_ok=True)
        (trap / "config.json").write_text('{"model_type": "own_vl"}')
        own_modules(trap, mark)
        edit(folder / "adapter_config.json", base_model_name_or_path=str(trap))


def links(folder: Path, mark: Path) -> None:
    """Files that are links to what is not there, to a device and to a pipe."""
    os.mkfifo(folder / "pipe")
    for name, target in (
        ("added_tokens.json", "pipe"),
        ("special_tokens_map.json", "/dev/zero"),
        ("chat_template.json", "nowhere"),
    ):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)


TRICKS: dict[str, Trick] = {trick.__name__: trick for trick in (
    own_modules, own_architecture, own_classes, own_tokenizer, own_image_processor, code_elsewhere, own_generate, weights_are_a_pickle,
    weights_are_a_bare_pickle, a_part_of_the_weights_is_a_pickle, pickles_beside, kernels, kernel_of_one_part, template_that_escapes,
    modules_beside, quantised, adapter_that_imports, adapter_with_a_tokenizer, adapter_of_a_trap, links,
)}  # fmt: skip


# ---------------------------------------------------------------------- healthy folders and their loaders


def healthy(root: Path) -> dict[str, Path]:
    """A small folder of every kind that is loaded."""
    from conftest import save_detector
    from peft import LoraConfig, get_peft_model
    from sam_models import MEAN, STD, sam_1, sam_2

    folders = {kind: root / kind for kind in LOADERS}
    shutil.copytree(ROOT / "data/tiny", folders["policy"])
    save_detector("grounding-dino", folders["detector"])
    for kind, model in (("sam", sam_1()), ("sam2", sam_2())):
        model.save_pretrained(folders[kind])
        (folders[kind] / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
    base = VisionLanguageModel.load(str(folders["policy"]), torch.float32)
    base.model.name_or_path = str(folders["policy"])
    get_peft_model(base.model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folders["adapter"])
    return folders


def policy(folder: Path) -> None:
    VisionLanguageModel.load(str(folder), torch.float32)


LOADERS: dict[str, Callable[[Path], None]] = {
    "policy": policy, "adapter": policy, "detector": lambda folder: load(str(folder), CPU, Thresholds(0.3, 0.3)) and None,
    "sam": lambda folder: Sam.load(str(folder), CPU) and None, "sam2": lambda folder: Sam.load(str(folder), CPU) and None,
}  # fmt: skip


@contextmanager
def watched(mark: Path) -> Iterator[None]:
    """Questions on the terminal and kernels of the hub leave the mark, too; nobody is there to answer."""
    is_kernel = modeling_utils.is_kernel

    def spy(name: str | None) -> bool:
        if is_kernel(name):
            mark.write_text(f"the kernel {name} was asked for\n")
        return is_kernel(name)

    def asked(question: str = "") -> str:
        mark.write_text(f"a question was asked: {question}\n")
        raise EOFError

    with ExitStack() as stack:
        for target, instead in ((("builtins.input"), asked), ("transformers.modeling_utils.is_kernel", spy)):
            stack.enter_context(mock.patch(target, instead))
        stack.enter_context(mock.patch.object(sys, "stdin", None))
        yield


def fault(kind: str, healthy_folder: Path, tricks: list[str]) -> str:
    """What came of a folder with these tricks that should not have; "" if nothing did."""
    with tempfile.TemporaryDirectory() as root:
        folder, mark = Path(root) / "model", Path(root) / "mark"
        shutil.copytree(healthy_folder, folder)
        for name in tricks:
            TRICKS[name](folder, mark)
        began, wrong = time.monotonic(), ""
        signal.signal(signal.SIGALRM, _too_long)
        signal.alarm(int(SECONDS))
        try:
            with watched(mark), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                LOADERS[kind](folder)
        except (ModelError, ConfigError) as error:
            wrong = "" if str(error).startswith(root) and "\n" not in str(error) else f"the sentence {error}"
        except BaseException as error:
            wrong = f"{type(error).__name__}: {error}"
        finally:
            signal.alarm(0)
        took = time.monotonic() - began
        return mark.read_text().strip() if mark.exists() else wrong or (f"{took:.0f} seconds" if took > SECONDS else "")


def _too_long(*_: object) -> None:
    raise TimeoutError


def chosen(seed: int, trial: int) -> tuple[str, list[str]]:
    """The kind of folder and the tricks of a trial: each pair once, then two or three tricks at random."""
    pairs = [(kind, [name]) for kind in LOADERS for name in TRICKS]
    if trial < len(pairs):
        return pairs[trial]
    rng = np.random.default_rng([seed, trial])
    names = list(TRICKS)
    return str(rng.choice(list(LOADERS))), [names[k] for k in rng.permutation(len(names))[: rng.integers(2, 4)]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    faults = []
    with tempfile.TemporaryDirectory() as root:
        folders = healthy(Path(root))
        say = partial(print, file=sys.stderr, flush=True)
        for trial in range(options.trials):
            kind, tricks = chosen(options.seed, trial)
            if wrong := fault(kind, folders[kind], tricks):
                faults.append(f"{trial} {kind} {tricks}: {wrong}")
                say(faults[-1])
            if trial % 50 == 49:
                say(f"{trial + 1} of {options.trials}, {len(faults)} faults")
    print(*faults, sep="\n")
    print(f"strangers {options.trials} {len(faults)}")


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
