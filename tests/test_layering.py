"""The plan of the house, kept true by reading the syntax trees: who may import whom, and one owner each."""

import ast
import subprocess
import sys
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Iterable

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "activeo3"
ROOMS = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")
SCRIPTS = [path for path in (ROOT / "train.py", ROOT / "evaluate.py") if path.exists()]


def part(room: str) -> str:
    """The part of the package that a room's prefix names; no prefix means the core, and files are open to all."""
    if room in ("data_io", "data_images", "data_files", "data_set"):
        return "files"
    if room in NOT_NAMED_YET:
        return NOT_NAMED_YET[room]
    prefix = "core" if room == "tasks" or room.startswith("task_model") else room.split("_")[0]
    return {"task": "task", "data": "data", "eval": "eval"}.get(prefix, "core")


MAY_IMPORT = {
    "files": {"files"},
    "core": {"files", "core"},
    "data": {"files", "data"},
    "task": {"files", "core", "task"},
    "eval": {"files", "core", "task", "data", "eval"},
}
DATA_NEEDS = "config drawing html_report hub types geometry terminal paths processes outputs answer_text text_metrics metric_rules".split()
"""Rooms of the core that data sets and files may import."""

NOT_NAMED_YET = {"notebook": "eval", "curriculum": "eval", "demo": "eval"}
"""Rooms whose names do not show their part."""

APART = {
    "data* answer_* prompts zoom_calls types geometry metrics rewards matching text_metrics": "torch",
    "config eval_config presets cli user_code label_set prompt_file paths processes outputs memory monitor terminal": "torch",
    "processes": "numpy PIL",  # runs before anything that takes long
    "grpo": "transformers deepspeed",  # mathematics only
    "model model_* encoding generate decoders decoding packing attention vision lora": "engine rollout rewards data",
    "engine checkpoint*": "rollout rewards data",
    "rollout": "rewards engine data",
    "task_model*": "rewards rollout engine",
    "rewards matching metrics": "model task_models",
    "task* eval_*": "deepspeed",
}
"""Rooms, and what none of them may reach, directly or through another room."""

OWNERS = {
    "deepspeed": "engine",
    "torch.distributed": "engine",
    "transformers": "model model_* attention decoders decoding generate task_model_*",
    "huggingface_hub": "hub model_hub push",
    "pycocotools": "geometry metrics box_matching",
    "pickle": "data_refcoco*",
    "importlib.util": "user_code trackers",
    "wandb": "trackers",
    "pyarrow": "data_io data_tables",
    "pydantic": "data*",
    "yaml": "data_yolo",
    "datasets": "data_hub",
    "peft": "lora",
    "scipy": "matching task_model_sam task_segmentation",
    "rapidfuzz": "text_metrics",
    "nltk": "text_metrics",
    "jieba": "text_metrics",
    "matplotlib": "plots charts",
    "jinja2": "html_report",
    "tabulate": "eval_output html_report log",
}
"""An outside package, and the rooms that may import it."""

PACKAGES = {"torch", "transformers", "flash_attn", "deepspeed", "PIL", "numpy", "pycocotools", "tqdm"}
PACKAGES |= {"packaging", "huggingface_hub", "yaml"}  # come with transformers
PACKAGES |= {"scipy", "rapidfuzz"}  # matching and edit distance of the one-shot tasks
PACKAGES |= {"pydantic", "jinja2", "matplotlib", "tabulate"}  # checked rows, the page, its charts, tables
PACKAGES |= {"wandb"}  # an extra, as tensorboard through torch
PACKAGES |= {"pyarrow", "nltk", "jieba", "peft", "datasets"}  # extras

MANY_PARAMETERS = 3  # functions with 8 or more
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


def matching(patterns: str, names: Iterable[str]) -> set[str]:
    """The names that one of the patterns fits."""
    return {name for name in names for pattern in patterns.split() if fnmatchcase(name, pattern)}


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
from .model import Prompt as P
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
def test_imports_follow_the_prefixes(room: str) -> None:
    allowed = MAY_IMPORT[part(room)]
    for other in rooms_in(room_imports(room)):
        needed = part(room) in ("data", "files") and other in DATA_NEEDS
        assert part(other) in allowed or needed, f"{room} ({part(room)}) imports {other} ({part(other)})"


@pytest.mark.parametrize("rooms", APART)
def test_what_is_kept_apart(rooms: str) -> None:
    for room in matching(rooms, ROOMS):
        reaches = matching(APART[rooms], reached(room))
        assert not reaches, f"{room} reaches {sorted(reaches)}"


def test_no_room_imports_itself_through_another() -> None:
    assert [room for room in ROOMS if room in reached(room)] == []


@pytest.mark.parametrize("owned, owners", OWNERS.items(), ids=OWNERS.keys())
def test_one_owner_each(owned: str, owners: str) -> None:
    for name, source in sources().items():
        imported = imports_of(source)
        users = [other for other in imported if other == owned or other.startswith(f"{owned}.")]
        assert not users or matching(owners, [Path(name).stem]), f"{name} imports {users}"


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


def test_no_test_imports_a_test() -> None:
    """What tests share lies in rooms of its own, or in conftest.py."""
    for path in (ROOT / "tests").rglob("*.py"):
        named = {name.split(".")[0] for name in imports_of(path.read_text())}
        assert not {name for name in named if name.startswith("test_")}, path


def test_every_file_says_what_it_is_for() -> None:
    for name, tree in trees():
        assert len(ast.get_docstring(tree) or "") > 40, f"{name} has no docstring"


def test_every_file_can_be_read_in_one_sitting() -> None:
    for room in ROOMS:
        lines = len((PACKAGE / f"{room}.py").read_text().splitlines())
        assert lines <= LONGEST, f"{room}.py has {lines} lines"


def test_the_loop_fits_two_screens() -> None:
    assert len((ROOT / "train.py").read_text().splitlines()) <= 150


def test_few_functions_have_many_parameters() -> None:
    many = [
        f"{name}: {node.name}"
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and sum(each.arg not in ("self", "cls") for each in node.args.args + node.args.kwonlyargs) >= 8
    ]
    assert len(many) <= MANY_PARAMETERS, many


@pytest.mark.skipif(find_spec("ruff") is None, reason="needs ruff")
@pytest.mark.parametrize(
    "words", [["check", "--output-format", "concise"], ["format", "--check"]], ids=["check", "format"]
)
def test_ruff_finds_nothing(words: list[str]) -> None:
    """Unused names and imports, their order, and the form of the code, by ruff.toml: ``ruff check --fix; ruff
    format``."""
    run = subprocess.run(
        [sys.executable, "-m", "ruff", *words, "--no-cache", "."], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_no_text_is_run_and_no_error_is_swallowed_unseen() -> None:
    for name, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), f"{name}:{node.lineno} calls {node.func.id}"
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"{name}:{node.lineno} has a bare except"


def test_no_file_is_read_that_could_run_code() -> None:
    """Every ``torch.load`` takes tensors and plain values only, and ``np.load`` no objects; pickles have an owner
    above."""
    safe = {"torch.load": "weights_only=True", "np.load": "allow_pickle=False"}
    found = [
        (name, node)
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in safe
    ]
    assert len(found) >= 2
    for name, node in found:
        assert safe[ast.unparse(node.func)] in map(ast.unparse, node.keywords), f"{name}:{node.lineno}"


def test_rewards_are_computed_without_catching_anything() -> None:
    """A reward that fails is a bug to see, not a 0 to learn from."""
    for name, tree in trees():
        if name in ("rewards.py", "matching.py"):
            assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)]
