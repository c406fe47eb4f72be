"""Model folders of strangers: the small form of tests/attack/strangers.py, and that its traps would work elsewhere."""

import ast
import sys
from pathlib import Path
from typing import Iterator

import jinja2
import pytest
import torch
from attack import strangers
from attack.strangers import LOADERS, TRICKS, watched
from transformers import AutoConfig, dynamic_module_utils

import evaluate
from activeo3.eval_config import EvalConfig
from activeo3.model import ModelError

PACKAGE = Path(__file__).parent.parent / "activeo3"
OF_ALL = (
    "own_modules",
    "own_architecture",
    "own_generate",
    "weights_are_a_pickle",
    "a_part_of_the_weights_is_a_pickle",
    "kernels",
)
KINDS = {
    "policy": tuple(TRICKS), "detector": (*OF_ALL, "own_classes", "own_tokenizer", "own_image_processor"), "sam": (*OF_ALL, "own_image_processor"),
    "sam2": OF_ALL, "adapter": (*OF_ALL, *(name for name in TRICKS if name.startswith("adapter")), "weights_are_a_bare_pickle"),
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pytest.importorskip("peft")
    return strangers.healthy(tmp_path_factory.mktemp("healthy"))


@pytest.mark.parametrize("kind", LOADERS)
def test_no_loader_runs_what_lies_in_a_folder(kind: str, folders: dict[str, Path]) -> None:
    LOADERS[kind](folders[kind])  # it can be loaded, so the tricks are what is in the way
    assert {name: strangers.fault(kind, folders[kind], [name]) for name in KINDS[kind]} == dict.fromkeys(
        KINDS[kind], ""
    )


@pytest.fixture
def trap(tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "model").mkdir()
    for path in folders["policy"].iterdir():
        (tmp_path / "model" / path.name).write_bytes(path.read_bytes())
    yield tmp_path / "model", tmp_path / "mark"


def test_the_traps_would_work(trap: tuple[Path, Path]) -> None:
    """What transformers, torch and jinja2 do with the same folder if they are let."""
    folder, mark = trap
    strangers.own_architecture(folder, mark)
    with pytest.raises(Exception):  # the class is no config, but by then its module has run
        AutoConfig.from_pretrained(str(folder), trust_remote_code=True)
    assert mark.read_text() == "a module was imported\n"
    mark.unlink()
    with watched(mark), pytest.raises(ValueError):
        AutoConfig.from_pretrained(str(folder))
    assert "a question was asked" in mark.read_text() and "[y/N]" in mark.read_text()
    mark.unlink()
    strangers.weights_are_a_pickle(folder, mark)
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert mark.read_text() == "a pickle was loaded\n"
    mark.unlink()
    strangers.template_that_escapes(folder, mark)
    reach = (folder / "chat_template.jinja").read_text().partition("{{ ''")[0]
    jinja2.Environment().from_string(reach).render()
    assert mark.exists()


def test_the_architecture_is_checked_before_anything_else_of_a_folder(trap: tuple[Path, Path]) -> None:
    folder, mark = trap
    strangers.own_architecture(folder, mark)
    opened: list[str] = []
    sys.addaudithook(lambda event, values: opened.append(str(values[0])) if event == "open" else None)
    with pytest.raises(ModelError, match="is a own_vl model; supported are"):
        strangers.policy(folder)
    assert {Path(name).name for name in opened if name.startswith(str(folder))} == {"config.json"}


def test_every_load_forbids_code_and_pickles() -> None:
    """Read in the sources: nobody can forget the argument."""
    loads = 0
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            words, given = ast.unparse(node), {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            named = [ast.unparse(part) for part in (node.func, *node.args) if isinstance(part, ast.Attribute)]
            if [name for name in named if name.endswith("from_pretrained") and name != "PeftConfig.from_pretrained"]:
                assert given.get("trust_remote_code") == "False", f"{path.name}:{node.lineno} {words}"
                loads += 1
            if "torch.load" in named:
                assert given.get("weights_only") == "True", f"{path.name}:{node.lineno} {words}"
    assert loads >= 6


def test_no_program_asks_a_question(trap: tuple[Path, Path]) -> None:
    folder, mark = trap
    strangers.own_architecture(folder, mark)
    for given in (
        {"checkpoint": (str(folder),)},
        {"checkpoint": ("data/tiny",), "start": str(folder)},
        {"checkpoint": ("data/tiny",), "task_model": ("mllm",), "task_checkpoint": str(folder)},
    ):
        with watched(mark), pytest.raises(ModelError, match=f"{folder} is a own_vl model; supported are"):
            evaluate.main(EvalConfig(output_dir=str(folder.parent / "out"), limit=1, **given))
    assert not mark.exists()
