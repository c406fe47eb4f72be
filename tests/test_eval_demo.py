"""eval_demo.py: a question about one's own picture, asked in three ways; and files that replace no photo."""

import json
import shutil
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
from launch import SMALL
from PIL import Image
from scripted import END, Scripted, blobs, painted, written

from activeo3 import data_scenes, drawing, eval_demo
from activeo3.config import ConfigError
from activeo3.eval_config import EvalConfig
from activeo3.eval_core import Models
from activeo3.prompts import final_answer, sensing_answer, zoom_call
from activeo3.task_models import Oracle

BOXES = [[40, 40, 120, 100], [300, 200, 380, 260]]
QUESTION = "Which colour is it?"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    painted((400, 320), [("red", box) for box in BOXES]).save(path)
    return path


def config_of(photo: Path, **changes: Any) -> EvalConfig:
    given = dict(
        checkpoint=("x",), image=str(photo), question=QUESTION, crop_side=64, sensing_side=128, max_new_tokens=60
    )
    return EvalConfig(**given | changes)


def is_crop(view: Image.Image) -> bool:
    """Of what is painted here, a crop is mostly red and the whole picture is not."""
    return bool((np.asarray(view)[..., 0] > 200).mean() > 0.3)


def seeing(tokenizer, family: str = "qwen3_vl") -> Scripted:
    """A model that looks at what is red, and says how many of the pictures it is shown are crops."""

    def says(model: Scripted, view: Any, text: str) -> str:
        if text.startswith("Where"):
            return sensing_answer(written(model, view, blobs(view, "red")), "red") + END
        views = view if isinstance(view, list) else [view]
        return f"{sum(map(is_crop, views))} of {len(views)}" + END

    return Scripted(family, tokenizer, says)


def shown_of(model: Scripted) -> list[tuple[int, str]]:
    """(pictures, question) of every question that was asked after looking."""
    return [(len(view), text) for view, text in model.shown if isinstance(view, list)]


def told(capsys: pytest.CaptureFixture) -> dict[str, str]:
    """What was printed, by what it is about."""
    return dict(line.split(":  ", 1) for line in capsys.readouterr().out.splitlines() if ":  " in line)


# ---------------------------------------------------------------------- three ways to ask


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_picture_and_crops_are_asked_about_in_one_prompt(
    family: str, photo: Path, tokenizer, tmp_path: Path, capsys
) -> None:
    model, config = seeing(tokenizer, family), config_of(photo)
    eval_demo.show(eval_demo.own_picture(config), Models({"start": model}, {"mllm": model}), config, tmp_path)
    assert [count for count, _ in shown_of(model)] == [1, 3]
    assert model.shown[0][1] == f"Where should one look to answer: {QUESTION}"
    assert shown_of(model)[0][1] == QUESTION and "the other 2 show parts of it enlarged" in shown_of(model)[1][1]
    said = told(capsys)
    assert said["whole picture, no zoom"] == "0 of 1" and said["picture and crops"] == "2 of 3"
    assert said["region 1"].startswith("(4") and said["region 2"].startswith("(30")
    assert all(sampling.temperature == 0 for _, _, sampling in model.batches)


def test_per_crop_asks_about_each_crop_alone(photo: Path, tokenizer, tmp_path: Path, capsys) -> None:
    """The authors' demo: no whole picture beside it, and no word of other pictures."""
    model, config = seeing(tokenizer), config_of(photo, protocol="per_crop")
    eval_demo.show(eval_demo.own_picture(config), Models({"start": model}, {"mllm": model}), config, tmp_path)
    assert shown_of(model) == [(1, QUESTION)] * 3
    said = told(capsys)
    assert said["crop 1 alone"] == said["crop 2 alone"] == "1 of 1" and said["whole picture, no zoom"] == "0 of 1"
    assert "picture and crops" not in said


def test_options_are_asked_with_and_the_chosen_one_is_named(photo: Path, tokenizer, tmp_path: Path, capsys) -> None:
    looks = seeing(tokenizer).says
    model = Scripted(
        "qwen3_vl", tokenizer, lambda *given: looks(*given) if given[2].startswith("Where") else "(B)" + END
    )
    config = config_of(photo, options=("green", "red"))
    eval_demo.show(eval_demo.own_picture(config), Models({"start": model}, {"mllm": model}), config, tmp_path)
    assert (
        all(text.splitlines()[-3:-1] == ["A. green", "B. red"] for _, text in shown_of(model))
        and len(shown_of(model)) == 2
    )
    assert told(capsys)["picture and crops"] == "(B)  [B. red]"


def test_a_policy_that_zooms_in_turns_is_followed(photo: Path, tokenizer, tmp_path: Path, capsys) -> None:
    """It zooms where a zoom is offered, and answers by what it sees then."""

    def says(model: Scripted, view: Any, text: str) -> str:
        if "look closer" in text:
            return zoom_call(written(model, view, blobs(view, "red"))[0]) + END
        return final_answer("red" if is_crop(view) else "no idea") + END

    model = Scripted("qwen3_vl", tokenizer, says)
    config = config_of(photo, task="zoom_qa", wording="paper", least_zoom=0.001)
    eval_demo.show(eval_demo.own_picture(config), Models({"start": model}, {"mllm": model}), config, tmp_path)
    said = told(capsys)
    assert list(said) == ["whole picture, no zoom", "turn 1 (zoom_executed)", "turn 2 (answered)", "region 1", "answer"]
    assert (
        said["answer"] == "red"
        and said["whole picture, no zoom"] == "no idea"
        and said["region 1"].startswith("(40, 40)")
    )


def test_an_answer_without_regions_leaves_the_picture_alone(photo: Path, tokenizer, tmp_path: Path, capsys) -> None:
    model = Scripted("qwen3_vl", tokenizer, lambda model, view, text: "red" + END)
    for protocol in ("together", "per_crop"):
        config = config_of(photo, protocol=protocol)
        eval_demo.show(eval_demo.own_picture(config), Models({"start": model}, {"mllm": model}), config, tmp_path)
        said = told(capsys)
        assert (
            said["regions"] == "none, so there is no crop: the answer has a wrong form (tags)"
            and said["whole picture, no zoom"] == "red"
        )
        assert "picture and crops" not in said and "crop 1 alone" not in said


def test_a_checkpoint_that_was_trained_to_zoom_in_turns_does_so(photo: Path) -> None:
    config = config_of(photo)
    assert eval_demo.as_trained(config, "zoom_qa").task == "zoom_qa"
    assert eval_demo.as_trained(config, "sense") == eval_demo.as_trained(config, "") == config
    finding = config_of(photo, question="", find="dot")
    assert eval_demo.as_trained(finding, "zoom_qa") == finding
    alone = config_of(photo, protocol="per_crop")
    assert eval_demo.as_trained(alone, "zoom_qa") == alone


def test_what_cannot_speak_cannot_answer(photo: Path, tokenizer, tmp_path: Path) -> None:
    config = config_of(photo, task_model=("oracle",))
    with pytest.raises(ConfigError, match="--question is answered in words: leave out --task_model oracle"):
        eval_demo.show(
            eval_demo.own_picture(config), Models({"start": seeing(tokenizer)}, {"mllm": Oracle()}), config, tmp_path
        )


@pytest.mark.parametrize(
    "flags, words",
    [
        (dict(find="dot"), ("one of --find and --question",)),
        (dict(image=""), ("one of --find and --question",)),
        (dict(question="", options=("a", "b")), ("--image goes with one of",)),
        (dict(question="", find="dot", options=("a", "b")), ("--options belongs to --question",)),
        (dict(question="", find="dot", protocol="per_crop"), ("--protocol belongs to --question",)),
        (dict(protocol="each"), ("--protocol", "'each'", "per_crop")),
        (dict(protocol="per_crop", task="zoom_qa"), ("--protocol per_crop", "--task zoom_qa")),
        (dict(options=("a",)), ("--options", "2 to 26")),
        (dict(task="segment"), ("--task segment",)),
        (dict(question="", find="dot", task="zoom_qa"), ("--task zoom_qa",)),
    ],
)
def test_flags_that_do_not_go_together_are_named(flags: dict, words: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(tmp_path / "photo.png", **flags)
    assert all(word in str(caught.value) for word in words), caught.value


# ---------------------------------------------------------------------- what is left behind


def test_png_and_page_show_the_same_words(photo: Path, tokenizer, tmp_path: Path) -> None:
    model, config = seeing(tokenizer), config_of(photo, question="Which colour is <b>it</b>?")
    eval_demo.show(eval_demo.own_picture(config), Models({"start": model}, {"mllm": model}), config, tmp_path)
    page = (tmp_path / "photo.png.looked.html").read_text()
    assert ">2 of 3</td>" in page and "Which colour is &lt;b&gt;it&lt;/b&gt;?" in page and page.count("<img") == 2
    assert "true box" not in page and "default-src 'none'" in page
    with Image.open(tmp_path / "photo.png.looked.png") as drawn:
        pixels = np.asarray(drawn)
        assert drawn.width == 446 and (np.abs(pixels.astype(int) - drawing.REGION).sum(axis=2) < 30).sum() > 100


def test_long_words_are_broken_to_the_width_of_the_panel() -> None:
    short, long = (
        drawing.words_panel([("a", "b")], 300),
        drawing.words_panel([("a", "b" * 200 + " c" * 100), ("x", "")], 300),
    )
    assert short.width == long.width == 300 and long.height > 4 * short.height
    assert drawing.words_panel([], 300).width == 300
    right_edge = np.asarray(long)[:, -8:]
    assert (right_edge == drawing.PAPER).all()


def test_a_photo_is_never_replaced(checkpoint: str, evaluate, tmp_path: Path) -> None:  # noqa: F811
    """Side by side, with results beside them, and with the name that the drawing would have."""
    for name, colour in (("IMG.jpg", "red"), ("IMG.png", "blue"), ("IMG.jpg.looked.png", "green")):
        Image.new("RGB", (64, 48), colour).save(tmp_path / name)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    ask = ["--checkpoint", checkpoint, "--output_dir", str(tmp_path), "--find", "dot", *SMALL]
    for _ in range(2):
        assert evaluate(*ask, "--image", str(tmp_path / "IMG.png"))[1] == ""
    printed, complaint = evaluate(*ask[:2], "--image", str(tmp_path / "IMG.jpg"), *ask[2:])
    assert (
        complaint.startswith(f"activeo3: {tmp_path / 'IMG.jpg.looked.png'} was not written by activeo3")
        and printed == ""
    )
    assert {path: path.read_bytes() for path in before} == before
    assert {path.name for path in tmp_path.iterdir()} - {path.name for path in before} == {
        ".activeo3", "IMG.png.looked.png", "IMG.png.looked.html",
    }  # fmt: skip


def test_names_are_as_long_as_a_file_system_takes() -> None:
    long = ["x" * 250 + ".jpg", "ü" * 120 + ".png", "x" * 249 + "y.jpg"]
    found = [name for image in long for name in eval_demo.names(config_of(Path(image)))]
    assert len(set(found)) == 6 and all(len(name.encode()) < 255 for name in found)
    assert eval_demo.names(config_of(Path("a/IMG.jpg"))) == ("IMG.jpg.looked.png", "IMG.jpg.looked.html")


def test_the_script_answers_with_the_checkpoint_itself(
    make_vlm: Callable, evaluate, photo: Path, tmp_path: Path
) -> None:  # noqa: F811
    """Its start policy is not even there. A run that was trained to zoom in turns is asked so."""
    for task, words in (("sense", "regions:  none"), ("zoom_qa", "answer:  no answer")):
        trained = tmp_path / task / "checkpoint-3"
        make_vlm("qwen2_5_vl", seed=1).save(trained)
        (trained / "activeo3.json").write_text(
            json.dumps({"step": 3, "world": 1, "config": {"model": "/gone", "task": task}})
        )
        printed, complaint = evaluate(
            "--checkpoint", str(trained), "--image", str(photo), "--question", QUESTION, *SMALL
        )
        assert complaint == "" and words in printed and (trained / "eval" / "photo.png.looked.html").exists()


# ---------------------------------------------------------------------- the tiny policy and its world


def test_a_query_that_the_tiny_policy_cannot_know_is_said(
    checkpoint: str, evaluate, photo: Path, tmp_path: Path
) -> None:
    """Also when it was trained here on the world alone; not for a policy that has seen other pictures."""
    folder = tmp_path / "trained"
    shutil.copytree(checkpoint, folder)
    flags = ["--checkpoint", str(folder), "--image", str(photo), "--output_dir", str(tmp_path / "out"), *SMALL]
    for run, said in (({}, True), ({"data": ["scenes"]}, True), ({"data": ["coco"]}, False)):
        (folder / "activeo3.json").write_text(json.dumps({"step": 0, "world": 1, "config": run}))
        printed, complaint = evaluate(*flags, "--start", checkpoint, "--find", "blood cell")
        assert complaint == "" and ("note:  the tiny policy cannot know 'blood cell'" in printed) == said
    printed, _ = evaluate(*flags, "--start", checkpoint, "--find", "red star")
    assert "note:" not in printed
    (folder / "activeo3.json").unlink()
    assert "note:" not in evaluate(*flags, "--find", "blood cell")[0]  # from elsewhere


@pytest.mark.parametrize("find", ["", "white cross"])
def test_a_picture_of_the_embedded_world_has_its_truth(
    find: str, checkpoint: str, evaluate, tmp_path: Path, monkeypatch
) -> None:
    captions = []
    drawn = drawing.annotated_picture
    monkeypatch.setattr(drawing, "annotated_picture", lambda *a, **k: captions.append((a[0], k)) or drawn(*a, **k))
    asked = ["--find", find] if find else []
    printed, complaint = evaluate(
        "--checkpoint", checkpoint, "--image", "scenes:3", *asked, "--output_dir", str(tmp_path), *SMALL
    )
    ((example, options),) = captions
    things = data_scenes.scene("test", 3).of_kind(*(find or "purple square").split())
    assert complaint == "" and example.query == (find or "purple square")
    assert example.boxes_px.tolist() == [list(map(float, thing.box_px)) for thing in things]
    assert options["truth"] == bool(things)  # no "0 true boxes"
    assert (f", {len(things)} are there" in printed) == bool(things)
    assert (tmp_path / "scenes-3.looked.png").is_file() and (tmp_path / "scenes-3.looked.html").is_file()


def test_the_world_has_a_last_picture(checkpoint: str, evaluate, tmp_path: Path) -> None:
    (_, complaint) = evaluate("--checkpoint", checkpoint, "--image", "scenes:1000", "--output_dir", str(tmp_path))
    assert str(complaint) == "activeo3: --image scenes:1000: its pictures are scenes:0 to scenes:999"
