"""The README and the pages it links to are true: their files, flags and tables exist, and their commands run.

Commands are the lines of code blocks that start a program, however long they take as printed: here every
one runs on a few small pictures, the first through the real launcher, the rest in this process.
"""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from typing import Callable, Iterator

import pytest
from data_folders import docvqa_json, questions_on_disk, thin_set
from launch import rank_environment
from pages import PAGES, README, ROOT, code_lines, commands, inline_code
from PIL import Image
from sam_models import MEAN, STD, sam_1

from activeo3 import checkpoints, engine, log, monitor
from activeo3.alternation import rounds
from activeo3.cli import flags_of
from activeo3.config import TrainConfig
from activeo3.data_refcoco import FAMILIES
from activeo3.eval_config import EvalConfig
from activeo3.presets import PRESETS
from activeo3.tasks import task_of

sys.path.insert(0, str(ROOT))  # train.py and evaluate.py are scripts beside the package

import evaluate  # noqa: E402
import train  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # DeepSpeed's
TEXT = README.read_text()
EVERYWHERE = [words for text in PAGES.values() for words in commands(text)]
INLINE = [code for text in PAGES.values() for code in inline_code(text)]
SCRIPTS = {"train.py": TrainConfig, "evaluate.py": EvalConfig}


def script_of(words: list[str]) -> str | None:
    return next((word for word in words if word in SCRIPTS), None)


def flags_of_module(path: Path) -> set[str]:
    """The flags that a module's argparse parser knows, read from its source; ``--*_steps`` for an f-string."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    adders = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"]
    given = [argument for call in adders for argument in call.args]
    return {part.value for part in given if isinstance(part, ast.Constant)} | {
        "".join(piece.value if isinstance(piece, ast.Constant) else "*" for piece in part.values)
        for part in given
        if isinstance(part, ast.JoinedStr)
    }


def known_flags(words: list[str]) -> set[str]:
    """The flags that a command may use, by the program of ours that it starts; of another program all that it uses."""
    script = script_of(words)
    if script:
        return {f"--{flag}" for flag in flags_of(SCRIPTS[script])} | {"--help"}
    if words[0] == "python" and (ROOT / words[1]).is_file():
        return flags_of_module(ROOT / words[1]) | {"--help"}
    if words[:2] == ["python", "-m"]:
        of_training = (
            known_flags(["train.py"])
            if words[2] in ("activeo3.memory", "activeo3.curriculum") or "--check" in words
            else set()
        )
        return flags_of_module(ROOT / f"{words[2].replace('.', '/')}.py") | of_training | {"--help", "-m"}
    return {"*"}


# ---------------------------------------------------------------------- names


def test_the_commands_are_found() -> None:
    """Guards the tests below: a README in another layout would have no commands, and they could not fail."""
    assert commands("a\n\n    pip install -e . && deepspeed train.py  # go\n\n```\npython x.py --find 'a b'\n```\n") == [
        ["pip", "install", "-e", "."], ["deepspeed", "train.py"], ["python", "x.py", "--find", "a b"]
    ]  # fmt: skip
    started = {script_of(words) for words in commands(TEXT)}
    assert {"train.py", "evaluate.py"} <= started
    assert ["pytest", "-n", "2", "--dist", "loadfile"] in commands(TEXT)


def test_every_flag_exists() -> None:
    for words in [*EVERYWHERE, *(code.split() for code in INLINE if script_of(code.split()))]:
        start = words.index(script_of(words)) if script_of(words) else 0  # the launcher's own flags stand before
        used = [word.partition("=")[0] for word in words[start:] if word.startswith("-")]
        known = known_flags(words)
        assert all(any(fnmatchcase(flag, pattern) for pattern in known) for flag in used), " ".join(words)
    programs = [
        path
        for place in ("activeo3", "data/tiny", "tests/bench", "tests/attack")
        for path in (ROOT / place).glob("*.py")
    ]
    alone = {flag for code in INLINE for flag in re.findall(r"^--\w+", code)}
    everywhere = {f"--{flag}" for config in SCRIPTS.values() for flag in flags_of(config)}
    everywhere |= {flag for path in programs for flag in flags_of_module(path)}
    assert alone <= everywhere


def test_the_launchers_flags_exist() -> None:
    from deepspeed.launcher.runner import parse_args

    for words in [*EVERYWHERE, *(code.split() for code in INLINE)]:
        if words[0] == "deepspeed" and script_of(words):
            assert parse_args(words[1:]).user_script in SCRIPTS  # exits on a flag it does not know


def tree_of_files(text: str) -> list[str]:
    """The paths and patterns in the file tree: a line names one or more, two spaces, and what they are for."""
    lines = code_lines(text)
    first = next(i for i, line in enumerate(lines) if line.startswith("train.py  "))
    found, folder = [], ""
    for line in lines[first:]:
        names = re.match(r" *([\w./*]+(?: [\w./*]+)*)(?:  +\S|$| [a-z])", line)
        if not names:
            break
        folder = "activeo3/" if line.startswith(" ") else ""
        found += [folder + name for name in names[1].split() if "." in name or name.endswith("/")]
    return found


def test_the_file_tree_is_the_tree() -> None:
    """Every name or pattern of the tree fits a file, and every file of the package is named or fits a pattern."""
    names = tree_of_files(TEXT)
    assert all(any(ROOT.glob(name.rstrip("/"))) for name in names), [
        n for n in names if not any(ROOT.glob(n.rstrip("/")))
    ]
    rooms = [f"activeo3/{path.name}" for path in (ROOT / "activeo3").glob("*.py") if path.stem != "__init__"]
    missing = [room for room in rooms if not any(fnmatchcase(room, name) for name in names)]
    assert not missing, f"missing in the README: {missing}"


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_exists(page: str) -> None:
    text, folder = PAGES[page], (ROOT / page).parent
    named = {code for code in inline_code(text) if re.fullmatch(r"[\w/]+\.(py|sh|md)", code)}
    for name in named:
        assert any((place / name).exists() for place in (ROOT, folder, ROOT / "activeo3", ROOT / "tests")), name
    for target, _, heading in (target.partition("#") for target in re.findall(r"\]\(([^)]+)\)", text)):
        assert re.match(r"https?://", target) or (folder / target).exists(), target
        there = (folder / target if target else ROOT / page).read_text() if heading else ""
        headings = re.findall(r"^#+ (.+)$", there, re.MULTILINE)
        assert not heading or heading in [re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in headings]
    extras = set(re.findall(r"\.\[(\w+)\]", text))
    assert all(f'"{extra}": [' in (ROOT / "setup.py").read_text() for extra in extras)


def test_the_readme_is_a_ladder() -> None:
    """One sitting, every page of docs linked from it, and no page that only repeats another."""
    assert len(TEXT.splitlines()) <= 250
    assert all(
        f"({page})" in TEXT or f"({page}#" in TEXT
        for page in PAGES
        if page.startswith("docs/") and page != "docs/processes.md"
    )


def test_the_glossary_is_the_codes() -> None:
    assert monitor.glossary_table() in PAGES["docs/metrics.md"]


def test_every_preset_is_listed_with_a_command_that_uses_it() -> None:
    text = PAGES["docs/variants.md"]
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| `(deepspeed [^`]+)` \|$", text, re.MULTILINE))
    used = {name for words in EVERYWHERE + [code.split() for code in INLINE] if script_of(words) for name in words}
    assert set(rows) | (used & set(PRESETS)) | {
        "tiny",
        "counting",
        "ocr",
        "detection",
        "pixmo_count",
        "pageocr",
    } == set(PRESETS)
    for name, command in rows.items():
        config = TrainConfig.from_args(shlex.split(command)[2:])
        assert config.preset[1:] == (name,)


def test_ci_runs_the_test_command_of_the_readme() -> None:
    (line,) = [line for line in code_lines(TEXT) if "&& pytest" in line]
    assert line in (ROOT / ".ci" / "run").read_text().splitlines()


# ---------------------------------------------------------------------- commands

SMALL = [
    "--limit", "4", "--sensing_side", "32", "--crop_side", "32", "--max_new_tokens", "8", "--task_max_new_tokens", "8",
    "--wording", "short",
]  # fmt: skip
ONE_STEP = ["--steps", "1", "--eval_examples", "0", "--prompts", "1", "--micro_prompts", "1", "--group", "2"]


@pytest.fixture(scope="module")
def policy(make_vlm: Callable, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random policy, for the commands that name a large one."""
    folder = tmp_path_factory.mktemp("policy") / "model"
    make_vlm("qwen2_5_vl").save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures in each split of a COCO folder, one of its own, two thin objects, and RefCOCO about the two."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "images").mkdir()
    for name in ("1.jpg", "2.jpg", "photo.jpg"):
        Image.effect_noise((96, 64), 80).convert("RGB").save(folder / "images" / name)
    index = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 96, "height": 64} for i in (1, 2)],
        "categories": [{"id": 1, "name": "cup"}],
        "annotations": [{"id": i, "image_id": i, "category_id": 1, "bbox": [10, 10, 20, 20]} for i in (1, 2)],
    }
    for split in ("train", "val"):
        (folder / f"instances_{split}.json").write_text(json.dumps(index))
    thin_set(folder, split="train")
    lists = folder / "ThinObject5K" / "list"
    (lists / "test.txt").write_text((lists / "train.txt").read_text())
    phrases = {
        "images": [image | {"caption": f"cup {image['id']}"} for image in index["images"]], "annotations": index["annotations"]
    }  # fmt: skip
    (folder / "mdetr_annotations").mkdir()
    (folder / "coco").mkdir()
    (folder / "coco" / "train2014").symlink_to(folder / "images")
    for family in FAMILIES.values():
        for split in family.splits:
            (folder / "mdetr_annotations" / f"finetune_{family.folder}_{split}.json").write_text(json.dumps(phrases))
    return folder


@pytest.fixture(scope="module")
def small_sam(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags that put a random SAM in the place of one that is named by its hub id."""
    folder = tmp_path_factory.mktemp("sam")
    sam_1().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
    return ["--task_checkpoint", str(folder)]


@pytest.fixture(scope="module")
def trained(policy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint that the README's first training command leaves, run by the launcher."""
    folder = tmp_path_factory.mktemp("first")
    words = next(words for words in commands(TEXT) if words[0] == "deepspeed" and script_of(words) == "train.py")
    shipped = [] if (ROOT / "data" / "tiny" / "config.json").exists() else ["--model", policy]
    environment = {name: value for name, value in os.environ.items() if name not in rank_environment(0, 1)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    # Another run on this machine may have the launcher's usual port.
    words = [words[0], "--master_port", rank_environment(0, 1)["MASTER_PORT"], *words[1:]]
    command = [*words, *shipped, *SMALL, *ONE_STEP, "--output_dir", str(folder)]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "step 1/1  reward" in run.stdout
    return folder / "checkpoint-1"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process as a group of one in the project's folder."""
    for name, value in rank_environment(0, 1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(engine, "stop", lambda: None)
    monkeypatch.chdir(ROOT)


def to_run(script: str) -> list[list[str]]:
    """The commands of all pages that start a script, each once; the curriculum's page has a test of its own."""
    found = [words for page, text in PAGES.items() if page != "docs/curriculum.md" for words in commands(text)]
    own = re.compile(
        r"my_|detector$|hub:|^jsonl|^yolo|wandb|eval_every"
    )  # what test_own_code, test_own_data, test_eval_training run
    return [
        list(words)
        for words in dict.fromkeys(map(tuple, found))
        if script_of(list(words)) == script and not any(map(own.search, words))
    ]


def test_the_first_command_trains(trained: Path) -> None:
    assert checkpoints.complete(trained.parent) == [trained]
    assert [row["step"] for row in log.read_rows(trained.parent / "metrics.jsonl")] == [1]


def test_the_other_training_commands_train(
    here: None, policy: str, photos: Path, small_sam: list[str], tmp_path: Path
) -> None:
    lines = to_run("train.py")[1:]
    assert len(lines) >= 12
    for number, words in enumerate(lines):
        given = [str(photos) if word == "FOLDER" else word for word in words[words.index("train.py") + 1 :]]
        folder = tmp_path / str(number)
        given += small_sam if "thin_objects" in given else []
        config = TrainConfig.from_args([*given, "--model", policy, *SMALL, *ONE_STEP, "--output_dir", str(folder)])
        for run in rounds(config):
            train.main(run)
            assert [path.name for path in checkpoints.complete(Path(run.output_dir))] == ["checkpoint-1"]


def test_the_evaluation_commands_evaluate(
    here: None, trained: Path, photos: Path, small_sam: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    there = questions_on_disk(photos, parquet=find_spec("pyarrow") is not None)
    docvqa_json(photos)
    lines = to_run("evaluate.py")
    assert len(lines) >= 14
    for number, words in enumerate(lines):
        if "mme" in words and "mme" not in there:
            continue  # its files are parquet
        stand_in = {
            "FOLDER": str(photos), "photo.jpg": str(photos / "images" / "photo.jpg"),
            "runs/sft-cells/checkpoint-320": str(trained),
        }  # fmt: skip
        given = [stand_in.get(word, word) for word in words[words.index("evaluate.py") + 1 :]]
        folder = tmp_path / str(number)
        given += small_sam if "thin_objects" in given else []
        few = ["--limit", "2", "--resamples", "20"]
        config = EvalConfig.from_args([*given, "--checkpoint", str(trained), *SMALL, *few, "--output_dir", str(folder)])
        of_regions = task_of(config).benchmark not in ("perception", "zoom_qa") and not config.mode
        config = (
            replace(config, methods=("cot", "active")) if of_regions and "docvqa" not in config.benchmark else config
        )
        evaluate.main(config)
        if config.image:
            assert list(folder.glob("*.looked.png"))
        else:
            row = "| active" if config.methods == ("cot", "active") else "| trained"
            assert row in capsys.readouterr().out and (folder / "results.json").exists()
