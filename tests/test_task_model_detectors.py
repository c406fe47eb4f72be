"""task_model_detectors.py, label_set.py: detectors of every class that transformers has, tiny and random, each held to
the library's own processor and post-processing."""

import json
import shutil
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import tiny_detectors
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_detectors import CLOSED, LABELS, OPEN
from transformers.image_transforms import center_to_corners_format
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil

from activeo3 import label_set, task_model_detectors
from activeo3.config import TrainConfig
from activeo3.data_set import Dataset
from activeo3.geometry import clipped
from activeo3.label_set import found, same
from activeo3.model import ModelError
from activeo3.task_model_detectors import KINDS, Thresholds, check_queries, load
from activeo3.task_models import Crop, act
from activeo3.tasks import check_queries as check_data
from activeo3.tasks import task_of
from activeo3.types import Example, Region

CPU = torch.device("cpu")
CONFIG = TrainConfig()
KEEP_ALL = Thresholds(0.0, 0.0)
SQUARED = {"owlvit", "omdet-turbo", "rt_detr", "rt_detr_v2", "d_fine", "rf_detr"}


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """``make(kind)``: the folder of a detector of that class."""

    @lru_cache(maxsize=None)
    def folder(kind: str) -> str:
        path = tmp_path_factory.mktemp(kind)
        tiny_detectors.save(kind, path)
        return str(path)

    return folder


def by_the_library(folder: str, kind: str, image: Image.Image, query: str) -> list[tuple[float, list[float], str]]:
    """(score, box in pixels, label) of all that transformers' own processor and post-processing finds."""
    if kind in CLOSED:
        processor = (
            DetrImageProcessorPil.from_pretrained(folder)
            if kind == "rf_detr"
            else hf.AutoImageProcessor.from_pretrained(folder)
        )
        inputs = processor(images=image, return_tensors="pt")
        model = hf.AutoModelForObjectDetection.from_pretrained(folder)
    else:
        processor = hf.AutoProcessor.from_pretrained(folder)
        inputs = processor(images=image, text=[[f"a photo of a {query}"]], return_tensors="pt")
        model = hf.AutoModelForZeroShotObjectDetection.from_pretrained(folder)
    with torch.no_grad():
        out = model.eval()(**inputs)
    if kind in ("rf_detr", "conditional_detr", "deformable_detr"):  # DETR's post-processing is of a softmax
        processor = hf.AutoImageProcessor.from_pretrained(make_rt(folder))
    post = getattr(processor, "post_process_object_detection", None) or processor.post_process_grounded_object_detection
    (result,) = post(out, threshold=0.0, target_sizes=[image.size[::-1]])
    names = [LABELS[k] if kind in CLOSED else query for k in result["labels"].tolist()]
    return list(zip(result["scores"].tolist(), result["boxes"].tolist(), names))


def make_rt(folder: str) -> str:
    """A folder with RT-DETR's image processor, whose post-processing is that of all detectors with a sigmoid."""
    path = Path(folder) / "rt_detr"
    tiny_detectors.rt_detr()[1].save_pretrained(path)
    return str(path)


@pytest.mark.parametrize("kind", [*CLOSED, "owlvit", "owlv2"])
def test_boxes_and_scores_are_the_librarys(kind: str, make: Callable[[str], str], picture: Any) -> None:
    """In a window far from the origin, of a size that the processor leaves as it is."""
    size = (64, 64) if kind in SQUARED else (64, 40) if kind == "owlv2" else (96, 64)
    image, (x, y) = picture(400, 300, seed=2), (211, 97)
    window = (x, y, x + size[0], y + size[1])
    theirs = by_the_library(make(kind), kind, image.crop(window), "red star")
    query = max((name for *_, name in theirs), key=[name for *_, name in theirs].count)
    least = min(score for score, *_ in theirs)  # their post-processing keeps so many pairs of a box and a label
    detector = load(make(kind), CPU, Thresholds(least, 0.0))
    (found,) = detector.find([Crop(Example("a", image, query), Region(*map(float, window)))], CONFIG)
    wanted = sorted((one for one in theirs if one[2] == query and one[0] > least), key=lambda one: -one[0])
    boxes = clipped(np.array([box for _, box, _ in wanted]), size)
    seen = (boxes[:, 2:] - boxes[:, :2] > 0).all(axis=1)
    assert seen.sum() >= 3 and boxes[seen].std(axis=0).max() > 1  # boxes that tell places apart
    assert found.scores == pytest.approx(np.array([score for score, *_ in wanted])[seen], abs=1e-5)
    assert found.boxes_px == pytest.approx(boxes[seen] + [x, y, x, y], abs=1e-2)
    assert found.text.split("; ")[0].rpartition(" ")[0] == query


def test_omdet_finds_what_its_published_recipe_finds(make: Callable[[str], str], picture: Any) -> None:
    """By hand, because its processor needs torchvision: task and class as texts of 77 tokens or the model's length,
    sigmoid, and non-maximum suppression at 0.5 box by box."""
    image, folder = picture(64, 64, seed=4), make("omdet-turbo")
    tokenizer, pixels = (
        hf.AutoTokenizer.from_pretrained(folder),
        hf.AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt"),
    )
    texts = {
        f"{part}_{name}": tensor
        for part, text in (("classes", "red star"), ("tasks", "Detect red star."))
        for name, tensor in tokenizer(
            [text], padding="max_length", truncation=True, max_length=32, return_tensors="pt"
        ).items()
        if name != "token_type_ids"
    }
    with torch.no_grad():
        out = hf.AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval()(
            pixel_values=pixels.pixel_values, classes_structure=torch.tensor([1]), **texts
        )
    scores, boxes = (
        out.decoder_class_logits[0, :, 0].sigmoid(),
        center_to_corners_format(out.decoder_coord_logits[0]) * 64,
    )
    kept: list[int] = []
    for k in scores.argsort(descending=True).tolist():
        if all(overlap(boxes[k].tolist(), boxes[other].tolist()) <= 0.5 for other in kept):
            kept.append(k)
    (found,) = load(folder, CPU, KEEP_ALL).find(
        [Crop(Example("a", image, "red star"), Region(0.0, 0.0, 64.0, 64.0))], CONFIG
    )
    wanted = clipped(boxes[kept].double().numpy(), (64, 64))
    seen = (wanted[:, 2:] - wanted[:, :2] > 0).all(axis=1)
    assert 2 <= len(kept) < len(scores)
    assert found.boxes_px == pytest.approx(wanted[seen], abs=1e-3)
    assert found.scores == pytest.approx(scores[kept].numpy()[seen], abs=1e-5)


def overlap(a: list[float], b: list[float]) -> float:
    """IoU of two boxes."""
    width, height = (min(a[k + 2], b[k + 2]) - max(a[k], b[k]) for k in (0, 1))
    both = max(0.0, width) * max(0.0, height)
    return both / (sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - both)


@pytest.mark.parametrize("kind", [*OPEN, *CLOSED])
def test_a_detector_acts_on_crops_of_any_shape(kind: str, make: Callable[[str], str], picture: Any) -> None:
    """By its flags, in windows of several shapes at once, as each window alone; deaf to nothing that it should hear."""
    config = replace(CONFIG, task_model="detector", task_checkpoint=make(kind), box_threshold=0.0, text_threshold=0.0)
    detector = task_of(config).load_task_model("detector", CPU)
    image, other = picture(400, 300, seed=9), picture(400, 300, seed=10)
    windows = [Region(10.0, 10.0, 110.5, 90.25), Region(250.0, 150.0, 290.0, 290.0), Region(0.0, 0.0, 400.0, 2.5)]
    asked = [Example("a", image, "Persons"), Example("b", other, "person"), Example("c", image, "red star")]
    crops = [Crop(example, window) for example in asked for window in windows]
    together = detector.find(crops, config)
    for crop, one in zip(crops, together, strict=True):
        (alone,) = detector.find([crop], config)
        assert one.scores == pytest.approx(alone.scores, abs=1e-3) and (np.diff(one.scores) <= 0).all()
        assert np.array_equal(one.boxes_px, clipped(one.boxes_px, (400, 300)))
        low, high = np.array(crop.window[:2] * 2), np.array(crop.window[2:] * 2)
        assert (one.boxes_px >= low - 1e-6).all() and (one.boxes_px <= high + 1e-6).all()
    results = act(detector, asked, [windows] * 3, config)
    every = [[*result.boxes_px.round(1).tolist(), result.scores.round(2).tolist()] for result in results]
    assert sum(map(len, every)) >= 6 and every[0] != every[1] and every[0] != every[2]


@pytest.mark.parametrize("kind", ["owlv2", "yolos", "rt_detr"])
def test_damage_and_numbers_that_are_not_finite_are_named(
    kind: str, make: Callable[[str], str], picture: Any, tmp_path: Path
) -> None:
    whole, broken = Path(make(kind)), tmp_path / "broken"
    shutil.copytree(whole, broken, ignore=shutil.ignore_patterns("rt_detr"))
    weights = load_file(whole / "model.safetensors")
    name = max(weights, key=lambda name: weights[name].numel())
    save_file(
        {key: value for key, value in weights.items() if key != name}, broken / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ModelError, match=f"lacks 1 of .*{name}"):
        load(str(broken), CPU, KEEP_ALL)
    detector = load(str(whole), CPU, KEEP_ALL)
    for parameter in detector.model.parameters():
        parameter.data *= 1e20
    with pytest.raises(ModelError, match="boxes or scores that are not finite for example a;"):
        detector.find([Crop(Example("a", picture(90, 70), "person"), Region(0.0, 0.0, 90.0, 70.0))], CONFIG)


def test_what_cannot_be_used_is_named(
    make: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(make("detr"), tmp_path / "timm")
    config = json.loads((tmp_path / "timm/config.json").read_text())
    config["backbone_config"] = {"model_type": "timm_backbone", "backbone": "resnet50"}
    (tmp_path / "timm/config.json").write_text(json.dumps(config))
    monkeypatch.setattr(task_model_detectors, "is_timm_available", lambda: False)
    with pytest.raises(ModelError, match="timm has a backbone of timm: pip install timm"):
        load(str(tmp_path / "timm"), CPU, KEEP_ALL)
    shutil.copytree(make("yolos"), tmp_path / "vision")
    settings = tmp_path / "vision/preprocessor_config.json"
    settings.write_text(json.dumps({"image_processor_type": "PPDocLayoutV2ImageProcessor"}))
    with pytest.raises(ModelError, match="vision has no image processor that can be used"):
        load(str(tmp_path / "vision"), CPU, KEEP_ALL)
    (tmp_path / "vision/config.json").write_text('{"model_type": "resnet"}')
    with pytest.raises(ModelError, match=f"is a resnet model; supported are {', '.join(KINDS)}"):
        load(str(tmp_path / "vision"), CPU, KEEP_ALL)


# ---------------------------------------------------------------------- the query in the label set


@pytest.mark.parametrize(
    "query, label",
    [("Person", "person"), ("PEOPLE", "person"), ("sofas", "couch"), ("traffic lights", "Traffic_Light"), ("buses", "bus"),
     ("houses", "house"), ("knives", "knife"), ("wine glasses", "wine glass"), ("TV monitor", "tv"), ("cherries", "cherry"),
     ("dining-table", "diningtable"), ("mobile phones", "cell phone"), ("aeroplane", "airplane")],
)  # fmt: skip
def test_a_query_is_a_label_in_other_words(query: str, label: str) -> None:
    assert same(query, label) and same(label, query)


@pytest.mark.parametrize(
    "query, label", [("red car", "car"), ("dog", "cat"), ("animal", "dog"), ("man", "person"), ("", "cat"), ("?", "!")]
)
def test_nothing_is_guessed(query: str, label: str) -> None:
    assert not same(query, label)


def test_synonyms_are_of_one_line_and_stand_once() -> None:
    lines = [line.split(", ") for line in label_set.SYNONYMS.strip().splitlines()]
    names = [name for line in lines for name in line]
    assert len(names) == len(set(names)) and all(len(line) > 1 for line in lines)
    assert found("couches", LABELS) == [3] and found("N/A labels", LABELS) == []


def test_a_query_that_is_no_label_is_said_before_weights_are_read(
    make: Callable[[str], str], tmp_path: Path, picture: Any
) -> None:
    """From config.json alone; of rows that show their query all are looked at, else the first examples."""
    shutil.copytree(make("yolos"), tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors", "rt_detr"))
    bare = str(tmp_path / "bare")
    check_queries(bare, ["persons", "sofa"])
    with pytest.raises(
        ModelError,
        match="bare: the detector knows no 'peron' .did you mean person..; its 5 labels are red star, person",
    ):
        check_queries(bare, ["sofa", "peron"])
    check_queries(make("owlvit"), ["whatever it is"])
    config = replace(CONFIG, task_model="detector", task_checkpoint=bare)
    rows = [Example(str(k), picture(8, 8), "person" if k < 30 else "zebra") for k in range(31)]
    with pytest.raises(ModelError, match="knows no 'zebra'"):
        check_data(Dataset("d", "train", rows, lambda row, k: row), task_of(config))
    hidden = Dataset("d", "train", range(31), lambda row, k: rows[30 - row])
    with pytest.raises(ModelError, match="knows no 'zebra'"):
        check_data(hidden, task_of(config))
    check_data(hidden, task_of(CONFIG))  # another task model


def test_a_query_that_comes_late_is_named_with_its_example(make: Callable[[str], str], picture: Any) -> None:
    detector = load(make("rt_detr"), CPU, KEEP_ALL)
    with pytest.raises(ModelError, match="example 17: the detector knows no 'zebra'"):
        act(detector, [Example("17", picture(64, 64), "zebra")], [[Region(0.0, 0.0, 64.0, 64.0)]], CONFIG)
