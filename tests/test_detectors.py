"""task_models.py with task models that are no language models: real detector classes with tiny random
weights, held to the library's own post-processing, and the oracle, held to hand computation.
"""

import shutil
from dataclasses import replace
from typing import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForZeroShotObjectDetection, AutoTokenizer
from transformers.models.grounding_dino.processing_grounding_dino import GroundingDinoProcessor

from activeo3 import data_scenes, eval_baselines, metrics
from activeo3.config import ConfigError, TrainConfig
from activeo3.eval_config import EvalConfig
from activeo3.geometry import area, as_boxes, clipped
from activeo3.model import ModelError
from activeo3.task_model_detectors import GroundingDino, Thresholds, load
from activeo3.task_models import Crop, Detections, Oracle, act, crop_view, merge_crops
from activeo3.tasks import task_of
from activeo3.types import Example, Region

CPU = torch.device("cpu")
CONFIG = TrainConfig(task_batch=5)
ALL_SEEN = replace(CONFIG, least_seen=0.0)
KEEP_ALL = Thresholds(0.0, 0.0)


@pytest.fixture(scope="module", params=("grounding-dino", "mm-grounding-dino"))
def folder(request: pytest.FixtureRequest, make_detector: Callable[[str], str]) -> str:
    return make_detector(request.param)


@pytest.fixture(scope="module")
def detector(folder: str) -> GroundingDino:
    return load(folder, CPU, KEEP_ALL)


def question(image: Image.Image, query: str = "red star", boxes: list | tuple = (), **more) -> Example:
    return Example("a", image, query, as_boxes(boxes), **more)


def one(detector, image: Image.Image, window: tuple, query: str = "red star") -> Detections:
    (found,) = detector.find([Crop(question(image, query), Region(*map(float, window)))], CONFIG)
    return found


def by_the_library(
    folder: str, crop: Image.Image, text: str, **thresholds: float
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Boxes in pixels of a crop, scores and words, by transformers alone."""
    processor = GroundingDinoProcessor(
        AutoImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    )
    model = AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval()
    inputs = processor(images=crop, text=text, return_tensors="pt")
    with torch.no_grad():
        out = model(**inputs)
    (result,) = processor.post_process_grounded_object_detection(
        out, inputs.input_ids, target_sizes=[crop.size[::-1]], **thresholds
    )
    return result["boxes"].numpy(), result["scores"].numpy(), result["text_labels"]


# ---------------------------------------------------------------------- a detector


# Each size is one that the processor leaves as it is, so that ours and the library's view are the same pixels.
@pytest.mark.parametrize("size", [(96, 96), (128, 96), (96, 160)])
def test_boxes_and_scores_are_the_librarys(
    folder: str, detector: GroundingDino, picture, size: tuple[int, int]
) -> None:
    image = picture(400, 300, seed=2)
    x, y = 211, 97  # far from the origin
    window = (x, y, x + size[0], y + size[1])
    boxes, scores, _ = by_the_library(folder, image.crop(window), "red star.", threshold=0.0)
    wanted = clipped(boxes.astype(float), size)
    found = one(detector, image, window)
    order = np.argsort(-scores, kind="stable")
    order = order[area(wanted[order]) > 0]
    assert len(found.boxes_px) >= 5 and found.boxes_px.std(axis=0).min() > 1  # boxes that tell places apart
    assert found.scores == pytest.approx(scores[order], abs=1e-5)
    assert found.boxes_px == pytest.approx(wanted[order] + [x, y, x, y], abs=1e-2)


def test_the_place_of_the_crop_is_all_that_moves_its_boxes(detector: GroundingDino, picture) -> None:
    content = picture(160, 120, seed=5)  # larger than the window, because resampling reads a little beyond it
    here, there = Image.new("RGB", (1000, 700)), Image.new("RGB", (1000, 700))
    here.paste(content, (0, 0))
    there.paste(content, (840, 580))
    near, far = one(detector, here, (20, 20, 140, 100)), one(detector, there, (860, 600, 980, 680))
    assert len(near.boxes_px) >= 5
    assert far.boxes_px == pytest.approx(near.boxes_px + [840, 580, 840, 580], abs=1e-2)
    assert far.scores == pytest.approx(near.scores, abs=1e-5) and far.text == near.text


def test_a_detector_sees_and_listens(detector: GroundingDino, picture) -> None:
    first = one(detector, picture(128, 96, seed=1), (0, 0, 128, 96))
    other = one(detector, picture(128, 96, seed=2), (0, 0, 128, 96))
    asked = one(detector, picture(128, 96, seed=1), (0, 0, 128, 96), query="green ring")
    for changed in (other, asked):
        assert changed.scores.shape != first.scores.shape or np.abs(changed.scores - first.scores).max() > 1e-3


@pytest.mark.parametrize(
    "sides, size",
    [
        ((96, 96), (96, 96)),
        ((1000, 1000), (96, 96)),
        ((400, 300), (128, 96)),
        ((20, 60), (64, 160)),
        ((2, 900), (32, 160)),
        ((900, 2), (160, 32)),
    ],
)
def test_a_view_has_the_detectors_size_in_whole_strides(detector: GroundingDino, sides: tuple, size: tuple) -> None:
    assert detector.view_size(Region(7.5, 3.0, 7.5 + sides[0], 3.0 + sides[1])) == size


def test_a_sliver_is_a_bad_region_and_no_exception(detector: GroundingDino, picture) -> None:
    for window in ((0, 0, 2, 300), (0, 0, 400, 2.5)):
        found = one(detector, picture(400, 300), window)
        assert np.array_equal(found.boxes_px, clipped(found.boxes_px, (window[2], window[3])))


def test_boxes_stay_in_their_crop_and_come_best_first(detector: GroundingDino, picture) -> None:
    window = (40.5, 20.25, 140.5, 90.75)
    found = one(detector, picture(200, 120), window)
    assert (np.diff(found.scores) <= 0).all() and ((found.scores > 0) & (found.scores < 1)).all()
    low, high = np.array(window[:2] * 2), np.array(window[2:] * 2)
    assert (found.boxes_px >= low - 1e-9).all() and (found.boxes_px <= high + 1e-9).all()
    assert (area(found.boxes_px) > 0).all() and found.boxes_px.shape == (len(found.scores), 4)


def test_the_box_threshold_is_the_librarys(folder: str, picture) -> None:
    image = picture(128, 96, seed=3)
    scores = by_the_library(folder, image, "red star.", threshold=0.0)[1]
    for threshold in np.quantile(scores, [0.3, 0.7]).tolist():
        kept = by_the_library(folder, image, "red star.", threshold=threshold)[1]
        found = one(load(folder, CPU, Thresholds(threshold, 0.0)), image, (0, 0, 128, 96))
        assert 0 < len(kept) < len(scores)
        assert found.scores == pytest.approx(np.sort(kept)[::-1], abs=1e-5)


def test_the_text_threshold_asks_for_a_word_of_the_query(folder: str, picture) -> None:
    """Not for the full stop or a special token, which the library's labels may consist of."""
    image = picture(128, 96, seed=3)
    limit = 0.5 * float(np.median(by_the_library(folder, image, "red star.", threshold=0.0)[1]))
    _, scores, labels = by_the_library(folder, image, "red star.", threshold=0.0, text_threshold=limit)
    words = [set(label.replace(".", " ").split()) & {"red", "star"} for label in labels]
    named = [score for score, own in zip(scores, words) if own]
    assert 0 < len(named) < sum(map(bool, labels))  # some have a label that is no word of the query
    found = one(load(folder, CPU, Thresholds(0.0, limit)), image, (0, 0, 128, 96))
    assert found.scores == pytest.approx(sorted(named, reverse=True), abs=1e-5)
    assert [part.split()[-1] for part in found.text.split("; ")] == [f"{score:.2f}" for score in found.scores]
    said = [set(part.split()[:-1]) for part in found.text.split("; ")]
    assert sorted(map(sorted, said)) == sorted(map(sorted, filter(None, words)))
    assert one(load(folder, CPU, Thresholds(0.0, 1.0)), image, (0, 0, 128, 96)).text == ""


def test_no_detection_is_an_empty_answer(folder: str, picture) -> None:
    strict = load(folder, CPU, Thresholds(1.0, 0.0))
    (outcome,) = act(strict, [question(picture(128, 96))], [[Region(0.0, 0.0, 128.0, 96.0)]], CONFIG)
    assert outcome.boxes_px.shape == (0, 4) and outcome.scores.shape == (0,) and outcome.texts == ("",)


def test_splitting_the_work_and_other_shapes_beside_change_nothing(detector: GroundingDino, picture) -> None:
    image, other = picture(400, 300, seed=7), picture(90, 200, seed=8)
    looks = [Crop(question(image), Region(5.0 * k, 3.0, 5.0 * k + 90, 63.0)) for k in range(7)]
    looks[2:2] = [
        Crop(question(other, "small green ring"), Region(0.0, 10.0, 64.0, 170.0)),
        Crop(question(other), Region(3.0, 3.0, 67.0, 67.0)),
    ]
    whole = detector.find(looks, CONFIG)
    for look, found in zip(looks, whole, strict=True):
        (alone,) = detector.find([look], CONFIG)
        assert found.scores == pytest.approx(alone.scores, abs=1e-5)
        assert found.boxes_px == pytest.approx(alone.boxes_px, abs=1e-2)
    assert detector.find([], CONFIG) == []


def test_a_detector_acts_with_its_scores(detector: GroundingDino, picture) -> None:
    """End to end: two crops of one picture, merged by score over both."""
    image = picture(400, 300, seed=9)
    windows = [Region(10.0, 10.0, 110.0, 90.0), Region(250.0, 150.0, 350.0, 290.0)]
    examples = [question(image), question(image, "green ring")]
    outcomes = act(detector, examples, [windows, [Region(9.0, 9.0, 10.0, 80.0)]], CONFIG)
    parts = detector.find([Crop(examples[0], window) for window in windows], CONFIG)
    assert outcomes[0].texts == tuple(part.text for part in parts)
    assert outcomes[0].scores.max() == max(part.scores.max() for part in parts)
    assert (np.diff(outcomes[0].scores) <= 0).all() and len(set(outcomes[0].scores)) > 3
    assert outcomes[1].boxes_px.shape == (0, 4) and outcomes[1].texts == ()
    assert 0 <= sum(metrics.ap_ar_50(examples[0], outcomes[0])) <= 2


def test_a_detector_is_frozen_and_loaded_by_its_flags(folder: str) -> None:
    config = TrainConfig(task_model="detector", task_checkpoint=folder, box_threshold=0.4, text_threshold=0.3)
    loaded = task_of(config).load_task_model(config.task_model, CPU)
    assert loaded.thresholds == (0.4, 0.3)
    assert not loaded.model.training and not any(p.requires_grad for p in loaded.model.parameters())
    with loaded.gathered() as whole:
        assert whole is loaded


def test_what_is_no_detector_is_named(make_vlm, tmp_path) -> None:
    with pytest.raises(ModelError, match="no/such/folder does not exist"):
        load("no/such/folder", CPU, Thresholds(0.25, 0.25))
    make_vlm("qwen3_vl").save(tmp_path)
    with pytest.raises(ModelError, match="qwen3_vl model; supported are grounding-dino, mm-grounding-dino"):
        load(str(tmp_path), CPU, Thresholds(0.25, 0.25))
    for weights in tmp_path.glob("*.safetensors"):
        weights.unlink()
    (tmp_path / "config.json").write_text('{"model_type": "grounding-dino"}')
    with pytest.raises(ModelError, match="has no weights that can be used"):
        load(str(tmp_path), CPU, Thresholds(0.25, 0.25))


def test_a_detector_without_some_of_its_weights_is_refused(make_detector, tmp_path) -> None:
    shutil.copytree(make_detector("grounding-dino"), tmp_path / "half")
    file = tmp_path / "half/model.safetensors"
    weights = {name: tensor for name, tensor in load_file(file).items() if "decoder.layers.1.fc1" not in name}
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(
        ModelError,
        match=r"half lacks 2 of \d+ weights, model.decoder.layers.1.fc1.bias, model.decoder.layers.1.fc1.weight\.$",
    ):
        load(str(tmp_path / "half"), CPU, Thresholds(0.25, 0.25))


# ---------------------------------------------------------------------- the oracle


def test_the_oracle_finds_what_the_window_holds() -> None:
    boxes = [
        (100, 100, 110, 110),
        (195, 100, 205, 110),
        (191, 150, 201, 160),
        (300, 300, 310, 310),
        (120, 120, 130, 130),
    ]
    crowd = np.array([False, False, False, False, True])
    example = question(Image.new("RGB", (400, 400)), boxes=boxes, crowd=crowd)
    (found,) = Oracle().find([Crop(example, Region(50.0, 50.0, 200.0, 200.0))], ALL_SEEN)
    assert found.boxes_px.tolist() == [list(boxes[0]), list(boxes[2])]  # half of the second, 90 % of the third
    assert found.scores.tolist() == [1.0, 1.0] and found.text == "2 of 4 true boxes"


def test_the_oracle_acts_as_the_ceiling() -> None:
    boxes = [(10, 10, 30, 30), (100, 10, 130, 40), (300, 300, 320, 320)]
    image = Image.new("RGB", (400, 400))
    example, empty = question(image, boxes=boxes), question(image, boxes=[])
    everything = Region(0.0, 0.0, 400.0, 400.0)
    both = [Region(0.0, 0.0, 150.0, 50.0), Region(90.0, 0.0, 200.0, 50.0)]
    whole, part, none, nothing = act(
        Oracle(), [example, example, example, empty], [[everything], both, [], [everything]], ALL_SEEN
    )
    assert metrics.ap_ar_50(example, whole) == (1.0, 1.0)
    assert part.boxes_px.tolist() == [list(boxes[0]), list(boxes[1])]  # the second, seen twice, counts once
    assert metrics.ap_ar_50(example, part)[1] == pytest.approx(2 / 3)
    assert len(none.boxes_px) == len(nothing.boxes_px) == 0


@pytest.mark.parametrize("shape, sides", [("square", (15, 60)), ("aspect", (6, 30))])
def test_the_oracle_finds_what_is_large_enough_in_the_view_of_its_crop(
    shape: str, sides: tuple[int, int], make_vlm
) -> None:
    """Held to the view itself: a black square on white, and how far it reaches there along its shorter side."""
    config, vlm, rng, seen = replace(CONFIG, crop_shape=shape), make_vlm("qwen3_vl"), np.random.default_rng(0), []
    for _ in range(60):
        x, y, side = *rng.integers(150, 200, 2), int(rng.integers(*sides))
        image = Image.new("RGB", (600, 400), "white")
        image.paste("black", (x, y, x + side, y + side))
        x1, y1 = rng.integers(0, 150, 2)
        look = Crop(
            question(image, boxes=[(x, y, x + side, y + side)]),
            Region(x1, y1, *rng.integers(260, 400, 1), *rng.integers(260, 400, 1)),
        )
        view, _ = crop_view(vlm, image, look.window, config)
        dark = np.asarray(view.convert("L")) < 128
        reach = min(dark.any(axis=0).sum(), dark.any(axis=1).sum())
        if abs(reach - config.least_seen) > 1.5:  # the view has whole pixels, of an aspect in whole tokens
            (found,) = Oracle().find([look], config)
            assert len(found.boxes_px) == (reach > config.least_seen), (side, look.window, reach)
            seen.append(len(found.boxes_px))
    assert 15 < sum(seen) < len(seen) - 15


def test_strips_show_the_oracle_nothing_and_good_regions_everything() -> None:
    """Of the embedded world; to an oracle that sees all, the same three strips show everything in every picture."""
    examples = [data_scenes.example("train", index) for index in range(8)]
    strips = [
        eval_baselines.from_unit(as_boxes([(0, 0, 0.46, 1), (0.27, 0, 0.73, 1), (0.54, 0, 1, 1)]), one.size_px)
        for one in examples
    ]
    good = [eval_baselines.oracle_regions(one, 3) for one in examples]
    for regions, config, wanted in (
        (strips, CONFIG, 0.0),
        (good, CONFIG, 2.0),
        (strips, ALL_SEEN, 2.0),
        (good, ALL_SEEN, 2.0),
    ):
        found = act(Oracle(), examples, regions, config)
        assert [sum(metrics.ap_ar_50(*pair)) for pair in zip(examples, found)] == [wanted] * len(examples)


def test_equal_questions_about_equal_pictures_are_not_one(picture) -> None:
    """Two examples may share picture and query and differ in what is true."""
    image = picture(64, 64)
    first, second = question(image, boxes=[(0, 0, 9, 9)]), question(image, boxes=[(20, 20, 40, 40)])
    whole = [Region(0.0, 0.0, 64.0, 64.0)]
    outcomes = act(Oracle(), [first, second], [whole, whole], CONFIG)
    assert [outcome.boxes_px.tolist() for outcome in outcomes] == [[[0, 0, 9, 9]], [[20, 20, 40, 40]]]


# ---------------------------------------------------------------------- merging by score


@pytest.mark.parametrize("merge", ["nms", "concat"])
def test_the_better_score_comes_first_and_stays(merge: str) -> None:
    box, shifted, other = (0, 0, 10, 10), (0, 0, 10, 9), (50, 50, 60, 60)
    parts = [
        Detections(as_boxes([box, other]), np.array([0.3, 0.5]), "a"),
        Detections(as_boxes([shifted]), np.array([0.9]), "b"),
    ]
    outcome = merge_crops(parts, merge)
    wanted = [shifted, other] if merge == "nms" else [shifted, other, box]
    assert outcome.boxes_px.tolist() == [list(map(float, one)) for one in wanted]
    assert outcome.scores.tolist() == [0.9, 0.5, 0.3][: len(wanted)] and outcome.texts == ("a", "b")


def test_a_task_model_of_its_own_needs_its_checkpoint() -> None:
    for make in (
        lambda: TrainConfig(task_model="detector"),
        lambda: EvalConfig(checkpoint=("x",), task_model=("mllm", "detector")),
    ):
        with pytest.raises(ConfigError, match="--task_checkpoint"):
            make()
    with pytest.raises(ConfigError, match="--task_model psychic is not known"):
        EvalConfig(checkpoint=("x",), task_model=("psychic",))
    with pytest.raises(ConfigError, match="--task_options box_threshold"):
        replace(CONFIG, box_threshold=1.5)
