"""The plan of the house, kept true by reading the syntax trees: who may import whom, and one owner each."""

import ast
import sys
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "activeo3"
ROOMS = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")
SCRIPTS = [path for path in (ROOT / "train.py", ROOT / "evaluate.py") if path.exists()]

# room: (layer, what it must not reach, directly or through another room). A room imports from its own
# layer or below; layer 0 imports nothing of ours.
PLAN: dict[str, tuple[int, set[str]]] = {
    "types": (0, {"torch"}),
    "geometry": (0, {"torch"}),
    "terminal": (0, {"torch"}),
    "sandbox": (0, {"torch"}),
    "clicks": (0, {"torch"}),
    "task_segmentation": (1, {"model", "rewards", "data", "torch"}),
    "grpo": (0, {"transformers", "deepspeed"}),
    "presets": (1, {"torch"}),
    "cli": (1, {"torch"}),
    "outputs": (1, {"torch"}),
    "locks": (1, {"torch"}),
    "processes": (1, {"torch", "numpy", "PIL"}),
    "paths": (1, {"torch"}),
    "config": (1, {"torch"}),
    "eval_config": (1, {"torch"}),
    "prompts": (1, {"model", "torch"}),
    "answer_text": (0, {"model", "torch"}),
    "answer_rules": (1, {"model", "torch"}),
    "answer_lenient": (1, {"model", "torch"}),
    "answer_parsing": (1, {"model", "torch"}),
    "task_perception_words": (1, {"model", "torch"}),
    "text_metrics": (1, {"rewards", "model", "torch"}),
    "zoom_calls": (1, {"model", "torch"}),
    "intervals": (0, {"torch"}),
    "box_matching": (1, {"model", "rewards", "torch"}),
    "metric_rules": (1, {"model", "torch"}),
    "metrics": (1, {"rewards", "model", "torch"}),
    "data_scenes": (1, {"torch"}),
    "data_scene_crops": (1, {"model", "torch"}),
    "packing": (1, {"transformers", "deepspeed", "rewards"}),
    "attention": (1, {"deepspeed"}),
    "patches": (0, {"transformers", "deepspeed"}),
    "decoding": (1, {"deepspeed", "rewards"}),
    "families": (1, {"torch"}),
    "box_tokens": (1, {"torch"}),
    "caches": (1, {"deepspeed", "rewards"}),
    "encoding": (1, {"engine", "rollout", "rewards"}),
    "generate": (1, {"engine", "rollout", "rewards"}),
    "scoring": (1, {"engine", "rollout", "rewards"}),
    "model": (1, {"engine", "rollout", "rewards"}),
    "model_files": (1, {"engine", "rollout", "rewards"}),
    "model_weights": (1, {"engine", "rollout", "rewards", "model"}),
    "checkpoint_files": (1, {"transformers", "deepspeed", "model"}),
    "random_states": (1, {"transformers", "deepspeed", "model"}),
    "metrics_file": (1, {"model", "torch"}),
    "monitor": (1, {"model", "engine", "data", "torch"}),
    "memory": (1, {"model", "torch"}),
    "log": (1, {"model", "engine", "data"}),
    "html_report": (1, {"model", "engine", "data"}),
    "drawing": (1, {"model", "engine", "data"}),
    "data_images": (0, {"torch"}),
    "data_io": (1, {"torch"}),
    "data_layouts": (1, {"torch"}),
    "data_fetch": (1, {"torch"}),
    "data_ids": (2, {"model", "rewards", "torch"}),
    "data_annotations": (2, {"model", "rewards", "torch"}),
    "data_coco": (2, {"model", "rewards", "torch"}),
    "data_absent": (2, {"model", "rewards", "torch"}),
    "data_lvis": (2, {"model", "rewards", "torch"}),
    "data_soda": (2, {"model", "rewards", "torch"}),
    "data_soda_a": (2, {"model", "rewards", "torch"}),
    "data_cache": (1, {"torch"}),
    "data_tiles": (2, {"model", "rewards", "torch"}),
    "eval_tiles": (2, {"model", "rewards", "torch"}),
    "data_thinobject": (2, {"model", "rewards", "torch"}),
    "data_tables": (2, {"model", "rewards", "torch"}),
    "data_vqa": (2, {"model", "rewards", "torch"}),
    "data_mmbench": (2, {"model", "rewards", "torch"}),
    "data_mme": (2, {"model", "rewards", "torch"}),
    "eval_submission": (2, {"model", "engine", "torch"}),
    "data_vstar": (2, {"model", "rewards", "torch"}),
    "data_docvqa_1200": (2, {"model", "rewards", "torch"}),
    "data_refcoco_files": (2, {"model", "rewards", "torch"}),
    "data_refcoco": (2, {"model", "rewards", "torch"}),
    "data_pixmo": (2, {"model", "rewards", "torch"}),
    "data_page_ocr": (2, {"model", "rewards", "torch"}),
    "data_docvqa": (2, {"model", "rewards", "torch"}),
    "data": (2, {"model", "rewards", "torch"}),
    "data_loader": (2, {"model", "rewards"}),
    "rewards": (2, {"model", "task_models", "torch"}),
    "matching": (2, {"model", "task_models", "torch"}),
    "evidence": (2, {"model", "task_models", "torch"}),
    "task_zoom_qa": (2, {"engine", "data"}),
    "rollout": (2, {"rewards", "task_models", "engine", "data"}),
    "task_models": (2, {"rewards", "rollout", "engine"}),
    "task_model_sam": (2, {"rewards", "rollout", "engine"}),
    "vision": (1, {"engine", "rollout", "rewards"}),
    "lora": (1, {"rewards", "rollout", "engine", "model"}),
    "engine": (2, {"rollout", "rewards", "data"}),
    "checkpoints": (2, {"rollout", "rewards", "data"}),
    "lessons": (2, {"model", "rewards", "torch"}),
    "warmstart": (2, {"engine", "rewards"}),
    "tiny": (2, {"engine", "rewards"}),
    "drills": (2, {"model", "rewards", "torch"}),
    "forms": (2, {"engine", "rewards"}),
    "eval_baselines": (2, {"model", "torch"}),
    "failures": (2, {"model", "torch"}),
    "eval_output": (2, {"model", "torch"}),
    "correction": (2, {"engine", "data"}),
    "eval_segmentation": (3, {"engine", "checkpoints"}),
    "task_perception": (2, {"engine", "checkpoints"}),
    "eval_parsing": (2, {"engine", "checkpoints"}),
    "eval_perception": (3, {"engine", "checkpoints"}),
    "tasks": (3, {"engine", "checkpoints"}),
    "headlines": (2, {"model", "torch"}),
    "progress": (1, {"model", "engine", "data", "torch"}),
    "proposals": (2, {"rewards", "task_models", "engine"}),
    "eval_core": (2, {"rollout", "rewards", "data"}),
    "eval_rollouts": (2, {"engine", "checkpoints"}),
    "fixed": (2, {"rewards", "engine"}),
    "swaps": (2, {"rewards", "engine"}),
    "plots": (2, {"model", "torch"}),
    "rivals": (3, {"rollout", "rewards"}),
    "contest": (3, set()),
    "curriculum": (3, set()),
    "modes": (3, {"engine", "checkpoints"}),
    "eval_zoom_qa": (3, {"engine", "checkpoints"}),
    "soundness": (3, set()),
    "eval_detection": (3, {"engine", "checkpoints"}),
    "eval_demo": (3, {"engine"}),
    "eval_vqa": (3, {"engine", "checkpoints"}),
}

OWNERS = {
    "deepspeed": {"engine"},
    "torch.distributed": {"engine"},
    "transformers": {
        "model",
        "model_files",
        "model_weights",
        "attention",
        "caches",
        "decoding",
        "generate",
        "task_models",
        "task_model_sam",
        "tiny",
    },
    "tokenizers": {"tiny"},
    "pycocotools": {"geometry", "box_matching"},
    "pickle": {"data_refcoco_files"},
    "pyarrow": {"data_tables"},
    "peft": {"lora"},
    "scipy": {"matching"},
    "rapidfuzz": {"text_metrics"},
    "nltk": {"text_metrics"},
    "jieba": {"text_metrics"},
}
PACKAGES = {"torch", "transformers", "flash_attn", "deepspeed", "PIL", "numpy", "pycocotools", "tqdm"}
PACKAGES |= {"tokenizers", "packaging"}  # come with transformers
PACKAGES |= {"scipy", "rapidfuzz"}  # matching and edit distance of the one-shot tasks
PACKAGES |= {"pyarrow", "nltk", "jieba", "peft"}  # extras

LONGEST = 450  # lines; the aim is 300


@lru_cache(maxsize=None)
def imports_of(source: str) -> frozenset[str]:
    """Dotted names of all that a source imports, anywhere in it; ours as ``activeo3.room``.

    A use of ``torch.distributed`` through ``torch`` counts as an import of it.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inside = ".".join(filter(None, ["activeo3" if node.level else "", node.module]))
            names |= {inside} | {f"{inside}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and (node.attr, ast.unparse(node.value)) == ("distributed", "torch"):
            names.add("torch.distributed")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("__import__", "import_module")):
            names |= {str(argument.value) for argument in node.args if isinstance(argument, ast.Constant)}
    return frozenset(names)


def room_imports(room: str) -> frozenset[str]:
    return imports_of(sources()[f"{room}.py"])


def rooms_in(names: frozenset[str]) -> set[str]:
    """The rooms of ours among dotted names."""
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == "activeo3" and len(part) > 1 and part[1] in ROOMS}


def reached(room: str) -> set[str]:
    """Rooms and outside packages that importing ``room`` can bring in, lazily or not."""
    found: set[str] = set()
    waiting = [room]
    while waiting:
        names = room_imports(waiting.pop())
        waiting += sorted(rooms_in(names) - found)
        found |= rooms_in(names) | {name.split(".")[0] for name in names}
    return found


@lru_cache(maxsize=None)
def sources() -> dict[str, str]:
    paths = [PACKAGE / f"{room}.py" for room in ROOMS] + SCRIPTS
    return {path.name: path.read_text() for path in paths}


@lru_cache(maxsize=None)
def trees() -> list[tuple[str, ast.Module]]:
    return [(name, ast.parse(source)) for name, source in sources().items()]


# ---------------------------------------------------------------------- the tests' own eyes


def test_every_way_of_importing_is_seen() -> None:
    source = """
import json, torch.nn
from activeo3.geometry import iou
from . import prompts
from .models import Prompt as P
def late():
    from pycocotools import mask
    if torch.distributed.is_initialized(): __import__("deepspeed")
"""
    seen = imports_of(source)
    wanted = {"json", "torch.nn", "activeo3.geometry", "activeo3.prompts", "activeo3.model"}
    assert wanted | {"pycocotools.mask", "torch.distributed", "deepspeed"} <= seen
    assert "torch.distributed" in imports_of("from torch import distributed as dist")
    assert "torch.distributed" not in imports_of("import torch\ntorch.zeros(1)")
    assert rooms_in(seen) == {"geometry", "prompts", "model"}
    assert {"types", "numpy"} <= reached("metrics") and {"torch", "PIL"} <= reached("model")


# ---------------------------------------------------------------------- who may import whom


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_down(room: str) -> None:
    assert room in PLAN, f"{room}.py has no place in the plan: give it a layer above"
    layer, suppressed_ids = PLAN[room]
    for other in rooms_in(room_imports(room)):
        assert other != room and layer > 0, f"{room} imports {other}"
        below = PLAN.get(other, (layer, set()))[0]
        assert below <= layer, f"{room} (layer {layer}) imports {other} (layer {below})"
    assert reached(room).isdisjoint(suppressed_ids), f"{room} reaches {sorted(reached(room) & suppressed_ids)}"


def test_no_room_imports_itself_through_another() -> None:
    assert [room for room in ROOMS if room in reached(room)] == []


@pytest.mark.parametrize("owned, owners", OWNERS.items(), ids=OWNERS.keys())
def test_one_owner_each(owned: str, owners: set[str]) -> None:
    for name, source in sources().items():
        imported = imports_of(source)
        users = [other for other in imported if other == owned or other.startswith(f"{owned}.")]
        assert not users or Path(name).stem in owners, f"{name} imports {users}"


def test_only_the_named_packages_are_needed() -> None:
    for name, source in sources().items():
        outside = {other.split(".")[0] for other in imports_of(source)}
        unknown = outside - PACKAGES - set(sys.stdlib_module_names) - {"activeo3"}
        assert not unknown, f"{name} imports {sorted(unknown)}"


def test_nothing_imports_the_scripts() -> None:
    for name, source in sources().items():
        assert {"train", "evaluate"}.isdisjoint(imports_of(source)), name


def test_the_embedded_world_needs_neither_disk_nor_network() -> None:
    names = {name.split(".")[0] for name in room_imports("data_scenes")}
    assert names.isdisjoint({"os", "io", "pathlib", "shutil", "tempfile", "urllib", "http", "socket", "requests"})
    calls = {ast.unparse(node.func) for node in ast.walk(dict(trees())["data_scenes.py"]) if isinstance(node, ast.Call)}
    assert calls.isdisjoint({"open", "Image.open", "np.load", "np.fromfile"})


# ---------------------------------------------------------------------- the shape of every file


def test_the_package_is_flat() -> None:
    assert [path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"] == []
    assert "utils" not in ROOMS and "helpers" not in ROOMS


def test_every_file_says_what_it_is_for() -> None:
    for name, tree in trees():
        assert len(ast.get_docstring(tree) or "") > 40, f"{name} has no docstring"


def test_every_file_can_be_read_in_one_sitting() -> None:
    for room in ROOMS:
        lines = len((PACKAGE / f"{room}.py").read_text().splitlines())
        assert lines <= LONGEST, f"{room}.py has {lines} lines"


def test_no_text_is_run_and_no_error_is_swallowed_unseen() -> None:
    for name, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), f"{name}:{node.lineno} calls {node.func.id}"
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"{name}:{node.lineno} has a bare except"


def test_no_file_is_read_that_could_run_code() -> None:
    """Every ``torch.load`` takes tensors and plain values only, and ``np.load`` no objects; pickles have an owner above."""
    safe = {"torch.load": "weights_only=True", "np.load": "allow_pickle=False"}
    found = [
        (name, node)
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in safe
    ]
    assert len(found) >= 3
    for name, node in found:
        assert safe[ast.unparse(node.func)] in map(ast.unparse, node.keywords), f"{name}:{node.lineno}"


def test_rewards_are_computed_without_catching_anything() -> None:
    """A reward that fails is a bug to see, not a 0 to learn from."""
    for name, tree in trees():
        if name in ("rewards.py", "matching.py"):
            assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)]
