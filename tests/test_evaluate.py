"""evaluate.py as people run it: a table from a checkpoint, a picture of one's own, and clear complaints."""

import json
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_reference import STATS, scored_by_pycocotools
from data_folders import lvis_folder, theirs
from launch import SMALL
from own_photos import NAMES, as_label_studio, photos
from PIL import Image
from scripted import rows_in

from activeo3 import eval_demo, eval_detection, eval_setup, outputs
from activeo3.data import open_dataset
from activeo3.eval_config import EvalConfig
from activeo3.eval_runner import Runner
from activeo3.model import VisionLanguageModel
from activeo3.types import Example

ROOT = Path(__file__).parent.parent


# ---------------------------------------------------------------------- the table


def test_a_table_with_its_numbers_and_pictures(checkpoint: str, evaluate, tmp_path: Path) -> None:
    methods = ["random", "grid", "oracle-regions"]
    printed, complaint = evaluate(
        "--checkpoint", checkpoint, "--limit", "4", "--methods", *methods, "--output_dir", str(tmp_path), *SMALL
    )
    assert complaint == ""
    rows = rows_in(tmp_path)
    assert [(row["benchmark"], row["method"], row["n"]) for row in rows] == [("scenes", name, 4) for name in methods]
    for row in rows:
        assert set(row["metrics"]) > set(eval_detection.COLUMNS)
        low, high = row["intervals"]["region_recall"]
        assert low <= row["metrics"]["region_recall"] <= high
    assert rows[2]["metrics"]["region_recall"] == 1.0
    assert all(f"\n| {name} " in printed for name in methods) and "| method" in printed
    assert "scenes (test), 4 questions" in printed
    assert str(tmp_path / "results.json") in printed and str(tmp_path / "scenes.html") in printed
    assert "<html" in (tmp_path / "scenes.html").read_text()
    own = [f"{kind}-scenes-{name}.json" for kind in ("answers", "predictions") for name in sorted(methods)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        outputs.LIST, outputs.LOCK, *own, "results.json", "results.md", "results.tex", "scenes.html", "truth-scenes.json",
    ]  # fmt: skip
    assert "| recall_inside " in printed or " recall_inside |" in printed


def test_methods_times_task_models_and_pycocotools_agrees(
    checkpoint: str, make_detector, evaluate, tmp_path: Path
) -> None:
    methods, models = ["direct", "repeat", "grid", "oracle-regions"], ["mllm", "detector", "oracle"]
    printed, complaint = evaluate(
        "--checkpoint", checkpoint, "--limit", "4", "--methods", *methods, "--output_dir", str(tmp_path), *SMALL,
        "--task_model", *models, "--task_checkpoint", make_detector("grounding-dino"), "--black", "true",
        "--task_options", "box_threshold=0.02", "text_threshold=0.001", "least_seen=0",
    )  # fmt: skip
    assert complaint == ""
    every = rows_in(tmp_path)
    rows = [row for row in every if not row["blind"]]
    assert [(row["method"], row["task_model"]) for row in rows] == [
        (method, model) for method in methods for model in models
    ]
    assert len(every) == 2 * len(rows)
    for file, cell in (("results.md", "| {} "), ("results.tex", "& {} ")):
        text = " ".join((tmp_path / file).read_text().split())
        assert all(text.count(cell.format(model)) == 4 * len(methods) for model in models)
    assert "| task_model " in printed and "| blind |" in printed
    for row in rows:
        name = f"predictions-scenes-{row['method']}-{row['task_model']}"
        stats = scored_by_pycocotools(tmp_path, "truth-scenes", name)
        for column in ("AP", "AP50", "AP_s", "AR", "AR_s"):
            ours = row["metrics"][column]
            assert stats[STATS[column]] == pytest.approx(-1 if ours is None else ours, abs=1e-9)
    oracle = {(row["method"], row["blind"]): row["metrics"] for row in every if row["task_model"] == "oracle"}
    assert oracle["oracle-regions", False]["AP"] == oracle["direct", False]["AP"] == 1.0
    assert 0 < oracle["grid", False]["AP"] <= 1 and oracle["grid", False]["recall_inside"] == 1.0
    assert oracle["direct", True]["AP50"] == 1.0


def test_the_columns_of_a_table_are_chosen(checkpoint: str, evaluate, tmp_path: Path) -> None:
    wanted = ["AP_s", "AR_s", "AP_m", "AR_m", "AP_l", "AR_l"]
    common = ["--checkpoint", checkpoint, "--limit", "2", "--methods", "grid", "--output_dir", str(tmp_path), *SMALL]
    printed, complaint = evaluate(*common, "--columns", *wanted, "AP_eS", "--digits", "4")
    assert complaint == "" and f"| method | {' | '.join(wanted)} |" in " ".join(printed.split())
    for task, name in (("sense", "AP_x"), ("counting", "AP_s"), ("zoom_qa", "AP")):
        _, complaint = evaluate("--checkpoint", checkpoint, "--task", task, "--columns", "AP_s", name)
        assert complaint.startswith("activeo3: --columns ") and "\n" not in complaint


def test_another_language_model_acts_and_is_named(
    make_vlm, checkpoint: str, evaluate, tmp_path: Path, monkeypatch
) -> None:
    """Of the other family, on the crops of all rows; the start policy is asked for nothing but regions."""
    other, asked, encode = tmp_path / "large", [], VisionLanguageModel.encode
    make_vlm("qwen2_5_vl", seed=3).save(other)

    def listen(self: VisionLanguageModel, views: Any, texts: list[str], *names: Any) -> Any:
        asked.extend((self.family, text.split()[0]) for text in texts)
        return encode(self, views, texts, *names)

    monkeypatch.setattr(VisionLanguageModel, "encode", listen)
    flags = [
        "--checkpoint",
        checkpoint,
        "--limit",
        "2",
        "--task_checkpoint",
        str(other),
        "--output_dir",
        str(tmp_path / "out"),
        *SMALL,
    ]
    assert evaluate(*flags, "--methods", "grid", "cot", "--task_model", "mllm", "oracle")[1] == ""
    assert {pair for pair in asked if pair[1] == "Find"} == {("qwen2_5_vl", "Find")} and ("qwen3_vl", "Where") in asked
    rows = rows_in(tmp_path / "out")
    assert [row["task_model"] for row in rows] == ["mllm-large", "oracle"] * 2
    printed, complaint = evaluate(*flags, "--methods", "grid")
    assert (
        complaint == "" and "| mllm-large" in printed
    )  # a single task model is named as well, if it is not the start policy


def test_the_official_evaluation_of_lvis_runs_from_what_is_left_behind(
    checkpoint: str, make_detector, evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fifth of the questions has the answer none, and nothing on the way stumbles over a question without boxes."""
    root = lvis_folder(tmp_path / "data", 0, ("star", "ring", "cup", "square", "cross", "circle"))
    printed, complaint = evaluate(
        "--checkpoint", checkpoint, "--benchmark", "coco", "--data_root", root, "--split", "val", "--limit", "0", *SMALL,
        "--methods", "direct", "active", "oracle-regions", "--output_dir", str(tmp_path / "out"),
        "--task_model", "detector", "oracle", "--task_checkpoint", make_detector("grounding-dino"),
        "--task_options", "box_threshold=0.02", "text_threshold=0.001", "least_seen=0",
    )  # fmt: skip
    assert complaint == ""
    rows = rows_in(tmp_path / "out")
    truth = json.loads((tmp_path / "out" / "truth-coco.json").read_text())
    absent = sum(len(row["neg_category_ids"]) for row in truth["images"])
    assert {row["n"] for row in rows} == {
        absent + len({(a["image_id"], a["category_id"]) for a in truth["annotations"]})
    }
    assert absent == round(rows[0]["n"] / 5)
    for row in rows:
        found = tmp_path / "out" / f"predictions-coco-{row['method']}-{row['task_model']}.json"
        other = theirs(monkeypatch, tmp_path / "out" / "truth-coco.json", found)
        assert row["metrics"]["AP"] == pytest.approx(other["AP"], abs=1e-9) and row["metrics"]["AR"] == pytest.approx(
            other["AR"], abs=1e-9
        )
    best = [row["metrics"]["AP"] for row in rows if (row["method"], row["task_model"]) == ("direct", "oracle")]
    assert best[0] > 0.9  # boxes of one query that overlap are merged
    inventive = [row for row in rows if row["task_model"] == "detector" and row["method"] == "direct"][0]
    assert inventive["metrics"]["FP"] > 0


def test_a_checkpoint_is_compared_with_what_it_was_trained_from(
    make_vlm, checkpoint: str, evaluate, tmp_path: Path
) -> None:
    trained = tmp_path / "checkpoint-3"
    make_vlm("qwen3_vl", seed=1).save(trained)
    (trained / "activeo3.json").write_text(json.dumps({"step": 3, "world": 1, "config": {"model": checkpoint}}))
    printed, complaint = evaluate("--checkpoint", str(trained), "--limit", "2", "--methods", "cot", "active", *SMALL)
    assert complaint == ""
    assert {path.name for path in (trained / "eval").iterdir()} >= {
        "results.json",
        "scenes.html",
        "predictions-scenes-cot.json",
        "predictions-scenes-active.json",
    }
    page = (trained / "eval" / "scenes.html").read_text()
    assert "cot" in page and "active" in page and str(trained) in page

    rows, start = eval_setup.compared([str(trained)])
    assert (rows[0].source, start) == (str(trained), checkpoint)
    load = eval_setup.loader(start, "", "auto", torch.float32, torch.device("cpu"))
    weights = [next(load(source).model.parameters()).flatten()[:5].tolist() for source in (str(trained), start)]
    assert weights[0] != weights[1] and load(start) is load(start)


def test_results_of_a_hub_model_make_no_folder_that_hides_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    script = runpy.run_path(str(ROOT / "evaluate.py"), run_name="evaluate")
    config, folder = script["EvalConfig"], script["output_folder"]
    (tmp_path / "run" / "checkpoint-3").mkdir(parents=True)
    assert folder(config(checkpoint=("run/checkpoint-3",))) == Path("run/checkpoint-3/eval")
    assert (
        folder(config(checkpoint=("owner/model",)))
        == folder(config(checkpoint=("run/checkpoint-3", "b")))
        == Path("eval")
    )
    assert folder(config(checkpoint=("owner/model",), output_dir="mine")) == Path("mine")


# ---------------------------------------------------------------------- a picture of one's own


def test_a_picture_of_ones_own_is_looked_at_and_drawn(checkpoint: str, evaluate, picture, tmp_path: Path) -> None:
    picture(200, 120).save(tmp_path / "my photo.png")
    printed, complaint = evaluate(
        "--checkpoint", checkpoint, "--image", str(tmp_path / "my photo.png"), "--find", "red star",
        "--output_dir", str(tmp_path / "drawn"), *SMALL,
    )  # fmt: skip
    assert complaint == ""
    drawn = tmp_path / "drawn" / "my photo.png.looked.png"
    assert "sensing:" in printed and "0 found in 0 regions" in printed and str(drawn) in printed
    with Image.open(drawn) as image:
        assert image.width > 200 and image.height > 120
        assert np.asarray(image).std() > 10


def test_a_photo_is_looked_at_upright(evaluate, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: turn it clockwise
    Image.new("RGB", (60, 40), "white").save(tmp_path / "phone.jpg", exif=exif)
    example = own_picture(tmp_path / "phone.jpg")
    assert example.size_px == (40, 60) and example.query == "dot" and example.boxes_px.shape == (0, 4)


def test_a_picture_of_ones_own_is_read_with_the_care_of_a_data_set(tmp_path: Path) -> None:
    """Pillow alone would show 16-bit grey as white, and what lies behind the transparent parts."""
    Image.fromarray(np.full((8, 8), 77 * 256, dtype=np.uint16)).save(tmp_path / "deep.png")
    Image.new("RGBA", (8, 8), (9, 8, 7, 0)).save(tmp_path / "glass.png")
    seen = [own_picture(tmp_path / name).image.getpixel((0, 0)) for name in ("deep.png", "glass.png")]
    assert seen == [(77, 77, 77), (255, 255, 255)]


def own_picture(path: Path) -> Example:
    return eval_demo.own_picture(EvalConfig(checkpoint=("x",), image=str(path), find="dot"))


# ---------------------------------------------------------------------- what cannot be used


def broken(folder: Path) -> str:
    whole = folder / "whole.png"
    Image.effect_noise((64, 64), 50).save(whole)
    (folder / "broken.png").write_bytes(whole.read_bytes()[:300])
    return str(folder / "broken.png")


def no_picture(folder: Path) -> str:
    (folder / "notes.txt").write_text("no picture")
    return str(folder / "notes.txt")


def elongated(folder: Path) -> str:
    Image.new("RGB", (4100, 20)).save(folder / "long.png")
    return str(folder / "long.png")


@pytest.mark.parametrize(
    "path, reason",
    [
        (lambda folder: str(folder / "absent.png"), "is missing"),
        (broken, "cannot be read"),
        (no_picture, "cannot be read"),
        (elongated, "4100x20 is too elongated"),
        (str, "cannot be read"),  # a folder
    ],
    ids=["absent", "broken", "no picture", "too elongated", "folder"],
)
def test_a_picture_that_cannot_be_used_is_named(path, reason: str, checkpoint: str, evaluate, tmp_path: Path) -> None:
    image = path(tmp_path)
    printed, complaint = evaluate("--checkpoint", checkpoint, "--image", image, "--find", "dot")
    assert complaint.startswith(f"activeo3: {image}: the picture ") and reason in complaint
    assert "\n" not in complaint and printed == ""


@pytest.mark.parametrize(
    "argv, words",
    [
        ([], ("--checkpoint is missing",)),
        (["--checkpoint", "no/such/folder"], ("no/such/folder", "does not exist")),
        (["--checkpoint", str(ROOT / "tests")], (str(ROOT / "tests"), "no config.json that can be used")),
        (["--checkpoint", str(ROOT / "data")], (str(ROOT / "data"), "it holds tiny")),
        (["--checkpoint", "x", "--methods", "psychic"], ("--methods", "psychic", "repeat")),
        (["--checkpoint", "x", "--task_model", "psychic"], ("--task_model", "psychic", "oracle")),
        (["--checkpoint", "x", "--task_model", "detector"], ("--task_model detector", "--task_checkpoint")),
        (["--checkpoint", "x", "--benchmark", "atlantis"], ("--benchmark atlantis is not known", "scenes")),
        (["--checkpoint", "x", "--split", "tomorrow"], ("tomorrow", "test")),
        (["--checkpoint", "x", "--benchmark", "coco"], ("data root",)),
        (["--checkpoint", "x", "--data", "coco", "--data_root", "no/such/data"], ("no/such/data",)),
        (["--checkpoint", "x", "--image", "photo.jpg"], ("--image", "--find")),
        (["--checkpoint", "x", "--limit", "many"], ("--limit", "'many'")),
        (["--checkpoint", "x", "x"], ("--checkpoint names x twice",)),
        (["--checkpoint", "a/b", "c/d"], ("different start policies, a/b and c/d", "--start")),
        (
            ["--checkpoint", str(ROOT / "data" / "tiny"), "no/such/folder", "--start", str(ROOT / "data" / "tiny")],
            ("no/such/folder",),
        ),
        (["--checkpoint", "x", "y", "--image", "photo.jpg", "--find", "dot"], ("--image", "one --checkpoint")),
        (["--checkpoint", "x", "--budgets", "3", "11"], ("--budgets is 11", "at most 10")),
        (["--checkpoint", "x", "--budgets", "few"], ("--budgets", "'few'")),
    ],
    ids=lambda value: " ".join(value[:4]) if isinstance(value, list) else "",
)
def test_what_cannot_be_used_is_one_sentence(argv: list[str], words: tuple[str, ...], evaluate) -> None:
    printed, complaint = evaluate(*argv)
    assert complaint.startswith("activeo3: ") and "\n" not in complaint
    assert all(word in complaint for word in words), complaint
    assert printed == ""


@pytest.mark.parametrize(
    "value, reason", [(1e38, "gives logits that are not finite"), (float("nan"), "has weights that are not finite")]
)
def test_a_policy_that_gives_no_numbers_is_named_with_its_weight(
    value: float, reason: str, make_vlm, evaluate, tmp_path: Path
) -> None:
    """Finite weights can be of no use: what decides is what they make of a picture."""
    vlm, where = make_vlm("qwen3_vl"), "model.language_model.layers.1.mlp.down_proj.weight"
    vlm.model.get_parameter(where).data[3] = value
    vlm.save(tmp_path)
    _, complaint = evaluate("--checkpoint", str(tmp_path), "--limit", "1", "--methods", "active", *SMALL)
    assert (
        complaint.startswith(f"activeo3: {tmp_path} {reason}")
        and where in complaint
        and "use an earlier checkpoint." in complaint
    )


def test_a_start_policy_that_is_gone_is_named(make_vlm, checkpoint: str, evaluate, tmp_path: Path) -> None:
    make_vlm("qwen3_vl").save(tmp_path)
    (tmp_path / "activeo3.json").write_text(json.dumps({"step": 3, "world": 1, "config": {"model": "runs/gone/away"}}))
    _, complaint = evaluate("--checkpoint", str(tmp_path), "--limit", "1", "--methods", "grid")
    assert "runs/gone/away does not exist" in complaint


@pytest.mark.parametrize("text", ["{", "[1]", '{"step": 3, "world": 1}', "caf\xe9"])
def test_a_checkpoint_that_says_nothing_of_its_run_is_named(text: str, evaluate, tmp_path: Path) -> None:
    (tmp_path / "activeo3.json").write_text(text, encoding="latin-1")
    _, complaint = evaluate("--checkpoint", str(tmp_path), "--limit", "1", "--methods", "grid")
    assert complaint.startswith(f"activeo3: {tmp_path / 'activeo3.json'}") and "\n" not in complaint


def test_an_output_folder_that_cannot_be_written_is_named_before_the_work(
    checkpoint: str, evaluate, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        printed, complaint = evaluate(
            "--checkpoint", checkpoint, "--limit", "1", "--methods", "grid", "--output_dir", str(folder), *SMALL
        )
        assert (
            complaint.startswith(f"activeo3: --output_dir {folder} is no folder that can be written to")
            and printed == ""
        )


def test_a_shell_sees_one_sentence_and_exit_code_1() -> None:
    ended = subprocess.run(
        [sys.executable, "evaluate.py", "--checkpoint", "./nowhere"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 1 and ended.stdout == ""
    assert ended.stderr.splitlines()[-1].startswith("activeo3: the model folder ./nowhere does not exist")
    assert "Traceback" not in ended.stderr


# ---------------------------------------------------------------------- pictures without a truth


def test_pictures_without_boxes_have_answers_and_no_scores(checkpoint: str, evaluate, tmp_path: Path) -> None:
    """Two photos of which nothing is known: what is found is neither right nor wrong."""
    photos(tmp_path, NAMES[:2])
    rows = [{"image": name, "query": "cat"} for name in NAMES[:2]]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = ["--checkpoint", checkpoint, "--data", "jsonl", "--data_root", str(tmp_path), "--methods", "grid", *SMALL]
    flags += ["--task_model", "oracle"]
    printed, complaint = evaluate(*flags, "--output_dir", str(tmp_path / "a"))
    (row,) = rows_in(tmp_path / "a")
    assert complaint == "" and row["n"] == 2 and row["metrics"]["AP"] is None and row["metrics"]["FP"] == 0
    assert len(json.loads((tmp_path / "a" / "answers-jsonl-grid.json").read_text())) == 2


# ---------------------------------------------------------------------- pictures put aside


@pytest.mark.parametrize("task", ["sense", "detection"])
def test_pictures_that_are_read_again_give_the_same_table(
    task: str, checkpoint: str, evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many pictures only a block is in memory: no number hangs on it."""
    (tmp_path / "photos").mkdir()
    as_label_studio(tmp_path / "photos")
    name = "coco_det" if task == "detection" else "coco"
    flags = ["--checkpoint", checkpoint, "--data", name, "--data_root", str(tmp_path / "photos"), "--split", "train"]
    rows, files = [], []
    for folder, most in (("all", 500), ("few", 2)):
        monkeypatch.setattr(eval_setup.BENCHMARKS[task], "in_memory", most)
        _, complaint = evaluate(*flags, "--task", task, "--limit", "6", "--output_dir", str(tmp_path / folder), *SMALL)
        assert complaint == ""
        rows.append([{k: v for k, v in row["metrics"].items() if k != "seconds"} for row in rows_in(tmp_path / folder)])
        written = [*(tmp_path / folder).glob("truth-*.json"), *(tmp_path / folder).glob("predictions-*.json")]
        files.append({path.name: path.read_bytes() for path in written})
    assert rows[0] == rows[1] and files[0] == files[1] and len(files[0]) >= (task == "sense")


def test_a_picture_that_is_put_aside_keeps_its_size_and_is_another_one_when_it_changes(tmp_path: Path) -> None:
    photos(tmp_path, NAMES[:1])
    (tmp_path / "test.jsonl").write_text(json.dumps({"image": NAMES[0], "query": "cat", "boxes": []}))
    data = open_dataset("jsonl", "test", str(tmp_path))
    (aside,) = data.without_images()
    assert aside.size_px == data[0].size_px != aside.image.size
    changed = replace(aside, query="dog")
    assert data.with_image(changed).image.tobytes() == data[0].image.tobytes()
    assert data.with_image(changed).query == "dog" and data.with_image(changed).size_px == data[0].size_px
    Image.new("RGB", data[0].size_px, "green").save(tmp_path / NAMES[0])
    (other,) = data.without_images()
    assert Runner()._digest(other) != Runner()._digest(aside) == Runner()._digest(replace(aside))
